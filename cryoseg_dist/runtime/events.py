"""What happens in a run, as values that any number of listeners receive."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cryoseg_dist.schema.work import Outcome


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins: ``total`` units, of which ``done`` were finished before."""

    stage: str
    run_id: str
    total: int
    done: int


@dataclass(frozen=True, slots=True)
class UnitFinished:
    """A unit ended; ``record`` holds its small results."""

    stage: str
    run_id: str
    key: str
    outcome: Outcome
    seconds: float
    bytes_read: int
    bytes_written: int
    attempts: int
    worker: str
    reason: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnitRetried:
    """A unit failed and will be tried again."""

    stage: str
    run_id: str
    key: str
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True)
class IterationFinished:
    """An iterative stage made a step; ``figures`` such as resolution in A."""

    stage: str
    iteration: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage ended; how many units ended in which way."""

    stage: str
    run_id: str
    outcomes: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence for the user."""

    text: str
    stage: str = ""


Event = StageStarted | UnitFinished | UnitRetried | IterationFinished | StageFinished | Message


class Sink(Protocol):
    """A listener."""

    def __call__(self, event: Event) -> None:
        """Take an event; must not block."""


class EventBus:
    """Hands each event to every sink, in order."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = list(sinks)

    def add(self, sink: Sink) -> None:
        """Add a listener."""
        self._sinks.append(sink)

    def __call__(self, event: Event) -> None:
        """Hand out an event."""
        for sink in self._sinks:
            sink(event)


class JsonLog:
    """Appends each event as a line of JSON to a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, event: Event) -> None:
        """Write an event; bulky unit records stay in the ledger."""
        values = asdict(event)
        values.pop("record", None)
        line = {"time": round(time.time(), 3), "event": type(event).__name__, **values}
        self._stream.write(json.dumps(line, default=str) + "\n")
