"""Where a run stands, from its log: read line by line as it grows."""

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Failures that are kept to be shown.
MOST_FAILURES = 200


@dataclass
class StageProgress:
    """One stage of the last run.

    Attributes
    ----------
    name : str
    run : str
        Run id, without the iteration.
    total, before : int
        Units, and those done before this start; ``total`` is 0 for a stage that iterates.
    ended : Counter of str
        Units that ended since it started, by outcome.
    started, seen : float
        Seconds since 1970: of the start and of the last event.
    iteration : int, optional
    figures : dict
        Of the last iteration.
    outcomes : dict, optional
        Of the finished stage.
    """

    name: str
    run: str = ""
    total: int = 0
    before: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    started: float = 0.0
    seen: float = 0.0
    iteration: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    outcomes: dict[str, int] | None = None

    @property
    def done(self) -> int:
        """Units that have ended, earlier runs included."""
        return self.before + sum(self.ended.values())

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the stage ends at its rate so far; None where nothing tells."""
        n = sum(self.ended.values())
        if self.outcomes is not None or not self.total or not n or now <= self.started:
            return None
        return (self.total - self.done) * (now - self.started) / n


@dataclass(frozen=True)
class Failure:
    """A unit that failed: when, where, how it ended (``retried`` where it goes on) and why."""

    time: float
    stage: str
    unit: str
    outcome: str
    message: str


class RunProgress:
    """Follows the log of a project; :meth:`update` reads what was added.

    Parameters
    ----------
    log : Path
        ``events.jsonl``; it need not exist yet.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = 0
        self.stages: dict[str, StageProgress] = {}
        self.failures: deque[Failure] = deque(maxlen=MOST_FAILURES)
        self.figures: dict[str, float] = {}
        self.last = 0.0

    def update(self) -> None:
        """Take in the lines added since; a line that is not whole yet waits for the next time."""
        try:
            with self._log.open("rb") as stream:
                if stream.seek(0, 2) < self._offset:
                    # Another log of the same name.
                    self.__init__(self._log)  # type: ignore[misc]
                stream.seek(self._offset)
                added = stream.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
                self._take(event)
            except (ValueError, KeyError, TypeError, AttributeError):
                # A line cut by a killed driver; the ledger, not this log, is the truth.
                continue

    def _take(self, event: dict[str, Any]) -> None:
        self.last = max(self.last, float(event["time"]))
        kind, name = event["event"], event.get("stage")
        if kind == "Figures":
            self.figures.update(event["values"])
        if not name or kind == "Message":
            return
        if kind == "StageStarted" or name not in self.stages:
            self.stages[name] = StageProgress(name, started=event["time"])
        stage = self.stages[name]
        stage.seen = event["time"]
        stage.run = (event.get("run") or stage.run).partition("/")[0]
        if kind == "StageStarted":
            stage.total, stage.before = event["total"], event["done"]
        elif kind == "UnitFinished":
            stage.ended[event["outcome"]] += 1
            if event["outcome"] != "done":
                self._failed(event, event["outcome"])
        elif kind == "UnitRetried":
            self._failed(event, "retried")
        elif kind == "IterationFinished":
            if stage.iteration is not None and event["iteration"] <= stage.iteration:
                stage.history.clear()
            stage.iteration, stage.figures = event["iteration"], event["figures"]
            if "resolution" in stage.figures:
                stage.history.append((stage.iteration, stage.figures["resolution"]))
        elif kind == "StageFinished":
            stage.outcomes = event["outcomes"]

    def _failed(self, event: dict[str, Any], outcome: str) -> None:
        self.failures.append(Failure(event["time"], event["stage"], event["unit"], outcome, event["message"]))
