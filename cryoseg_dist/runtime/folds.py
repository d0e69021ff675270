"""One fold of an accumulation: a partial sum, returned or kept in the store, and what is told of it."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from cryoseg_dist.errors import BadInputError, DamagedDataError, StageFailedError, StoreUnavailableError
from cryoseg_dist.runtime.executor import MAX_ATTEMPTS, last_line, worker_name
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.runtime.reading import LazyInputs
from cryoseg_dist.schema.work import Outcome, Unit
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project

Teller = Callable[[Mark], None]


class ReduceStage(Protocol):
    """A stage whose units' results add up."""

    @property
    def partial_shape(self) -> tuple[int, ...]:
        """Extent of a partial sum; the first axis is cut into slabs."""

    def partial(self, unit: Unit, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The float32 sum over one unit."""

    def without(self, unit: Unit, reads: Collection[str]) -> Unit | None:
        """The unit without what needs some of its reads, None where nothing is left."""


@dataclass
class Desk:
    """Where the driver learns of folds: marks go to the ledger, then to the listener, once a fold."""

    ledger: Ledger | None
    on_fold: Teller | None
    marks: dict[str, Mark] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, mark: Mark) -> None:
        """Take the mark of a fold; one that was lost with its worker and made again is told once."""
        with self.lock:
            if mark.key in self.marks:
                return
            if self.ledger is not None:
                self.ledger.append(mark)
            self.marks[mark.key] = mark
            if self.on_fold is not None:
                self.on_fold(mark)


@dataclass(frozen=True)
class ToScheduler:
    """Sends marks from a Dask worker to whoever subscribed; they arrive before the fold's result does."""

    topic: str

    def __call__(self, mark: Mark) -> None:
        """Send a mark."""
        from distributed import get_worker

        get_worker().log_event(self.topic, {**mark.to_json(), "outcome": str(mark.outcome)})


@dataclass(frozen=True)
class Fold:
    """One fold, as it travels to a worker.

    Attributes
    ----------
    project : Project
    stage : ReduceStage
    unit : Unit
    kept : PartialSums, optional
        Where the partial sum is kept; it is returned when not given.
    place : int
        Its place there.
    need_all : bool
        A failure is raised; otherwise it is told of and counts as zero.
    """

    project: Project
    stage: ReduceStage
    unit: Unit
    kept: PartialSums | None = None
    place: int = 0
    need_all: bool = True

    def _unreadable(self) -> dict[str, str]:
        """Which reads fail, and why: the rest of the fold need not be lost with them."""
        lost, inputs = {}, LazyInputs(self.project, self.unit.reads)
        for name in self.unit.reads:
            try:
                inputs[name]
            except BadInputError as fault:
                lost[name] = str(fault)
        return lost

    def run(self, tell: Teller) -> np.ndarray | None:
        """Compute the partial sum, tell of it, and return it unless it is kept.

        Reads that fail are left out and named in the mark's record, as ``unreadable``.

        Raises
        ------
        StoreUnavailableError, DamagedDataError
            Not the fold's fault: the run stops, or makes again what is damaged.
        StageFailedError
            The fold failed, where all are needed.
        """
        started = time.perf_counter()
        nothing = np.broadcast_to(np.float32(0), self.stage.partial_shape)
        outcome, reason, attempts, total = Outcome.DONE, "", 0, nothing
        unit: Unit | None = self.unit
        lost: dict[str, str] = {}
        while attempts < MAX_ATTEMPTS and unit is not None:
            attempts += 1
            try:
                total = self.stage.partial(unit, LazyInputs(self.project, unit.reads))
                if self.kept is not None:
                    self.kept.write(self.place, total)
                outcome, reason = Outcome.DONE, ""
                break
            except BadInputError as fault:
                outcome, reason, total = Outcome.SET_ASIDE, str(fault), nothing
                if lost or not (lost := self._unreadable()):
                    break
                unit = self.stage.without(unit, lost)
            except (StoreUnavailableError, DamagedDataError):
                raise
            except Exception as fault:
                outcome, reason, total = Outcome.QUARANTINED, last_line(fault), nothing
        if self.need_all and outcome is not Outcome.DONE:
            raise StageFailedError(f"reconstruct: fold {self.unit.key} failed: {reason}")
        seconds = round(time.perf_counter() - started, 4)
        record = {"unreadable": lost} if lost and outcome is Outcome.DONE else {}
        mark = Mark(self.unit.key, outcome, record, reason, seconds, attempts, worker_name())
        if self.kept is not None and outcome is Outcome.DONE:
            regions = self.kept.regions(self.place)
            mark = replace(mark, writes=tuple((region.array, region.start, region.stop) for region in regions))
        tell(mark)
        return total if self.kept is None else None
