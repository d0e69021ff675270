"""How a unit is computed, and what an engine must do."""

import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.runtime.reading import read_all
from cryoseg_dist.schema.work import ImageFile, MapStage, Outcome, Unit
from cryoseg_dist.store.checksums import FileDigest, digest_of
from cryoseg_dist.store.ledger import Mark
from cryoseg_dist.store.project import Project


@dataclass(frozen=True, slots=True)
class Finished:
    """A unit that ended, with what it moved."""

    mark: Mark
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """A unit that failed and goes back to the queue."""

    key: str
    attempts: int
    reason: str


class Executor(Protocol):
    """An engine: it moves the units of one stage and knows nothing of ledgers or events."""

    @property
    def in_flight(self) -> int:
        """Units that workers have now."""

    def map(self, stage: MapStage, units: Sequence[Unit]) -> Iterator[Finished | Retry]:
        """Compute units in any order; every unit ends in exactly one ``Finished``."""

    def close(self) -> None:
        """Let go of workers."""


MAX_ATTEMPTS = 3
# Seconds that a storage may refuse before a run stops.
STORE_PATIENCE = 60.0


class Worker:
    """Opens the project, keeps one stage's state, computes units: the same code in every engine.

    Parameters
    ----------
    project : Project
    device : str
        Torch device of the stage's state.
    """

    def __init__(self, project: Project, device: str = "cpu") -> None:
        self._project = project
        self._device = device
        self._stage: MapStage | None = None
        self._state: Any = None
        self.name = worker_name()

    def load(self, stage: MapStage) -> None:
        """Take up a stage: read what its units share and build its state."""
        self._state = stage.setup(read_all(self._project, stage.shared_reads), self._device)
        self._stage = stage

    def run(self, unit: Unit, attempts: int = 1) -> Finished:
        """Read, compute, write. Bad input ends the unit; any other failure is raised.

        Raises
        ------
        StoreUnavailableError, DamagedDataError
            The storage is at fault, not the unit.
        Exception
            Whatever the stage or the store raised, but ``BadInputError``.
        """
        if self._stage is None:
            raise RuntimeError("no stage loaded")
        started = time.perf_counter()

        def mark(outcome: Outcome, record: Any = None, reason: str = "") -> Mark:
            seconds = round(time.perf_counter() - started, 4)
            return Mark(unit.key, outcome, record or {}, reason, seconds, attempts, self.name)

        try:
            inputs = read_all(self._project, unit.reads)
            files = self._digests(unit)
            result = self._stage.compute(unit, inputs, self._state)
        except BadInputError as fault:
            return Finished(mark(Outcome.SET_ASIDE, reason=str(fault)))
        if set(result.arrays) != set(unit.writes):
            raise RuntimeError(f"{unit.key}: computed {sorted(result.arrays)}, planned {sorted(unit.writes)}")
        for name, region in unit.writes.items():
            self._project.write(region, result.arrays[name])
        written = tuple((region.array, region.start, region.stop) for region in unit.writes.values())
        return Finished(
            replace(mark(Outcome.DONE, dict(result.record)), writes=written, inputs=files),
            sum(a.nbytes for a in inputs.values()),
            sum(a.nbytes for a in result.arrays.values()),
        )

    def _digests(self, unit: Unit) -> dict[str, FileDigest]:
        """Checksums of the foreign files that the unit reads whole."""
        whole = [read for read in unit.reads.values() if isinstance(read, ImageFile) and read.sections is None]
        return {read.path: digest_of(Path(read.path)) for read in whole}


def worker_name() -> str:
    """How events name this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def quarantined(unit: Unit, attempts: int, reason: str) -> Finished:
    """The end of a unit that failed again and again."""
    return Finished(Mark(unit.key, Outcome.QUARANTINED, {}, reason, 0.0, attempts))


def last_line(error: BaseException) -> str:
    """What an exception says, in one line, with where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}{at}"
