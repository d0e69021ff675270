"""What happens in a run, as values that any number of listeners receive."""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from cryoseg_dist.errors import StoreUnavailableError
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.journal import Journal


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins: ``total`` units, of which ``done`` were finished before."""

    stage: str
    run_id: str
    total: int
    done: int


@dataclass(frozen=True, slots=True)
class UnitsFound:
    """Units that the ledger of a run held already, by outcome: they are skipped, not done again."""

    stage: str
    run_id: str
    outcomes: Mapping[str, int]


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
class Figures:
    """What the run has come to so far: ``micrographs``, ``picks``, ``particles``, ``resolution`` in A ..."""

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence for the user."""

    text: str
    stage: str = ""


Event = StageStarted | UnitsFound | UnitFinished | UnitRetried | IterationFinished | StageFinished | Figures | Message


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


# The ledgers, not the log, hold what must not be lost with a machine.
LOG_SYNC_SECONDS = 30.0
# How a log line calls what events hold under another name.
_LOG_NAMES = {"run_id": "run", "key": "unit", "reason": "message", "text": "message"}
_SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (
        re.compile(
            r"(?i)(\b\w*(?:token|secret|password|passwd|access_key|signature|credential)\w*[\"']?\s*[=:]\s*)[^\s,&\"']+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)(\bbearer\s+)\S+"), r"\1***"),
)


def without_secrets(text: str) -> str:
    """A text whose passwords in addresses, tokens and keys are starred out."""
    for pattern, stars in _SECRETS:
        text = pattern.sub(stars, text)
    return text


def values_of(event: Event) -> list[tuple[str, Any]]:
    """Fields of an event but its bulky record; copies nothing."""
    return [(field.name, getattr(event, field.name)) for field in fields(event) if field.name != "record"]


class JsonLog:
    """Appends each event as a line of JSON to a file.

    A line holds ``time`` (seconds since 1970) and ``event``, and what applies of ``stage``, ``run``, ``unit``, ``worker``,
    ``outcome``, ``seconds`` and ``message``. Texts are cleared of secrets: an address in an error may hold a password.
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, LOG_SYNC_SECONDS)

    def __call__(self, event: Event) -> None:
        """Write an event; bulky unit records stay in the ledger."""
        values = {_LOG_NAMES.get(name, name): value for name, value in values_of(event)}
        if "message" in values:
            values["message"] = without_secrets(values["message"])
        line = {"time": round(time.time(), 3), "event": type(event).__name__, **values}
        # A storage that refuses stops the run by its units and ledgers, which wait for it; the log loses a line.
        with suppress(StoreUnavailableError):
            self._journal.append(json.dumps(line, default=str))

    def close(self) -> None:
        """Let go of the file."""
        with suppress(StoreUnavailableError):
            self._journal.close()
