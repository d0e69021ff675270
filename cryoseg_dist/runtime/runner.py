"""The runner: skips what is done, moves the rest, marks and tells."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryoseg_dist.errors import StageFailedError, StoreUnavailableError
from cryoseg_dist.runtime.backlog import pause
from cryoseg_dist.runtime.events import EventBus, StageFinished, StageStarted, UnitFinished, UnitRetried, UnitsFound
from cryoseg_dist.runtime.executor import STORE_PATIENCE, Executor, Retry
from cryoseg_dist.schema.work import ArraySpec, MapStage, Outcome, Unit
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.location import is_url
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.space import bytes_of, require_room

# A stage is broken, and is stopped, when so many units were given up and none was done.
BROKEN_AFTER = 20


@dataclass
class Runner:
    """Runs stages on an engine.

    Attributes
    ----------
    project : Project
    executor : Executor
    emit : EventBus
    check_space : bool
        Refuse to start units whose results do not fit the disk.
    patience : float
        Seconds that the storage may refuse marks before the run stops.
    """

    project: Project
    executor: Executor
    emit: EventBus
    check_space: bool = True
    patience: float = STORE_PATIENCE

    def run(
        self,
        stage: MapStage,
        run_id: str,
        specs: Iterable[ArraySpec],
        units: Sequence[Unit],
        *,
        quiet: bool = False,
        need_all: bool = False,
    ) -> list[Mark]:
        """Compute the units that the run's ledger does not hold yet.

        The order is arrays, then mark: whatever kills the process, a marked unit's arrays are whole.

        Parameters
        ----------
        stage : MapStage
        run_id : str
            Name of the ledger.
        specs : iterable of ArraySpec
            Arrays to create.
        units : sequence of Unit
            With distinct keys.
        quiet : bool
            Emit unit events only (for the inner steps of an iterative stage).
        need_all : bool
            Raise when any unit did not end as done.

        Returns
        -------
        list of Mark
            In the order of ``units``.

        Raises
        ------
        StageFailedError
            No unit was done, or not all of them where all are needed; or their results do not fit the disk.
        StoreUnavailableError
            The storage is full, or refused for too long; the same call goes on later.
        DamagedDataError
            Part of an array that a unit reads is not what was written.
        """
        if len({unit.key for unit in units}) != len(units):
            raise ValueError(f"{run_id}: units with the same key")
        for spec in specs:
            self.project.create(spec)
        started = time.monotonic()
        with Ledger(self.project.ledger_path(run_id)) as ledger:
            marks = ledger.load()
            missing = [unit for unit in units if unit.key not in marks]
            ended = Counter(mark.outcome for mark in marks.values())
            held = Counter(str(marks[unit.key].outcome) for unit in units if unit.key in marks)
            if held:
                self.emit(UnitsFound(stage.name, run_id, dict(held)))
            if not quiet:
                self.emit(StageStarted(stage.name, run_id, len(units), len(units) - len(missing)))
            # Nobody can tell how much room a bucket has.
            if missing and self.check_space and not is_url(self.project.location):
                regions = [region for unit in missing for region in unit.writes.values()]
                dtypes = {name: self.project.spec(name).dtype for name in {region.array for region in regions}}
                require_room(self.project.root, bytes_of(regions, dtypes), stage.name)
            if missing:
                for step in self.executor.map(stage, missing):
                    if isinstance(step, Retry):
                        self.emit(UnitRetried(stage.name, run_id, step.key, step.attempts, step.reason))
                        continue
                    mark = step.mark
                    self._keep(ledger, mark)
                    marks[mark.key] = mark
                    ended[mark.outcome] += 1
                    self.emit(
                        UnitFinished(
                            stage.name,
                            run_id,
                            mark.key,
                            mark.outcome,
                            mark.seconds,
                            step.bytes_read,
                            step.bytes_written,
                            mark.attempts,
                            mark.worker,
                            mark.reason,
                            mark.record,
                        )
                    )
                    if ended[Outcome.QUARANTINED] >= BROKEN_AFTER and not ended[Outcome.DONE]:
                        raise StageFailedError(
                            f"{stage.name}: expected some units done, got {BROKEN_AFTER} that failed and none that did not. "
                            f"Last failure, {mark.key}: {mark.reason}. Mend its cause, then `cryoseg retry`."
                        )
        ordered = [marks[unit.key] for unit in units]
        outcomes = Counter(str(mark.outcome) for mark in ordered)
        if not quiet:
            self.emit(StageFinished(stage.name, run_id, dict(outcomes), time.monotonic() - started))
        n_done = outcomes[str(Outcome.DONE)]
        if ordered and (n_done == 0 or (need_all and n_done < len(ordered))):
            worst = next(mark for mark in ordered if mark.outcome is not Outcome.DONE)
            raise StageFailedError(
                f"{stage.name}: expected {'all' if need_all else 'some'} of {len(ordered)} units done, got {n_done}. "
                f"First failure, {worst.key}: {worst.reason}"
            )
        return ordered

    def _keep(self, ledger: Ledger, mark: Mark) -> None:
        """Write a mark, again and again while the storage is away: its arrays are there."""
        started, failures = time.monotonic(), 0
        while True:
            try:
                ledger.append(mark)
                return
            except StoreUnavailableError as fault:
                failures += 1
                if fault.full or time.monotonic() - started >= self.patience:
                    raise
                time.sleep(pause(failures))
