"""What a user sees while a run goes on: bars in a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from cryoseg_dist.runtime.events import (
    Event,
    IterationFinished,
    Message,
    StageFinished,
    StageStarted,
    UnitFinished,
    UnitRetried,
)
from cryoseg_dist.schema.work import Outcome

# Seconds between plain lines of a stage.
LINE_INTERVAL = 10.0


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def iteration_line(event: IterationFinished) -> str:
    """An iteration in one line."""
    f = event.figures
    of = f" of {f['of']:.0f}" if "of" in f else ""
    parts = [f"{event.stage}: iteration {event.iteration}{of}", f"{f['resolution']:.2f} A"]
    if "angular_step" in f:
        parts.append(f"step {f['angular_step']:.3g} deg")
    if "max_probability" in f:
        parts.append(f"certainty {f['max_probability']:.2f}")
    return ", ".join(parts)


class Progress:
    """A listener that shows stages, counts, rates, time left and failures.

    Parameters
    ----------
    stream : TextIO, optional
        Standard error when not given.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: Bars | None = None
        if self._stream.isatty():
            self._bars = Bars(
                TextColumn("{task.description:12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
        self._total = self._done = self._first = 0
        self._started = self._told = 0.0

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _line(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case StageStarted():
                self._begin(event)
            case UnitFinished():
                self._unit(event)
            case UnitRetried():
                self._line(f"{event.stage}: {event.key} is tried again: {event.reason}")
            case IterationFinished():
                self._line(iteration_line(event))
            case StageFinished():
                counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in sorted(event.outcomes.items()))
                self._line(f"{event.stage}: {counts} in {duration(event.seconds)}")
                self._total = 0
            case Message():
                self._line(f"{event.stage}: {event.text}" if event.stage else event.text)

    def _begin(self, event: StageStarted) -> None:
        self._total, self._done, self._first = event.total, event.done, event.done
        self._started = self._told = time.monotonic()
        again = f", {event.done} of them finished before" if event.done else ""
        self._line(f"{event.stage}: {event.total} units{again}")
        if self._bars is not None:
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(event.stage, total=event.total, completed=event.done)

    def _unit(self, event: UnitFinished) -> None:
        if event.outcome is not Outcome.DONE:
            self._line(f"{event.stage}: {event.key} {event.outcome.replace('_', ' ')}: {event.reason}")
        if not self._total:
            return
        self._done += 1
        if self._bars is not None:
            self._bars.advance(self._bars.task_ids[-1])
            return
        now = time.monotonic()
        if now - self._told >= LINE_INTERVAL:
            self._told = now
            rate = (self._done - self._first) / (now - self._started)
            left = duration((self._total - self._done) / rate)
            self._line(f"{event.stage}: {self._done} of {self._total}, {rate:.2g} a second, {left} left")
