"""The runner: skips what is done, moves the rest, marks and tells."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.events import EventBus, StageFinished, StageStarted, UnitFinished, UnitRetried, UnitsFound
from cryoseg_dist.runtime.executor import Executor, Retry
from cryoseg_dist.schema.work import ArraySpec, MapStage, Outcome, Unit
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project


@dataclass
class Runner:
    """Runs stages on an engine.

    Attributes
    ----------
    project : Project
    executor : Executor
    emit : EventBus
    """

    project: Project
    executor: Executor
    emit: EventBus

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
            No unit was done, or not all of them where all are needed.
        """
        if len({unit.key for unit in units}) != len(units):
            raise ValueError(f"{run_id}: units with the same key")
        for spec in specs:
            self.project.create(spec)
        started = time.monotonic()
        with Ledger(self.project.ledger_path(run_id)) as ledger:
            marks = ledger.load()
            missing = [unit for unit in units if unit.key not in marks]
            held = Counter(str(marks[unit.key].outcome) for unit in units if unit.key in marks)
            if held:
                self.emit(UnitsFound(stage.name, run_id, dict(held)))
            if not quiet:
                self.emit(StageStarted(stage.name, run_id, len(units), len(units) - len(missing)))
            if missing:
                for step in self.executor.map(stage, missing):
                    if isinstance(step, Retry):
                        self.emit(UnitRetried(stage.name, run_id, step.key, step.attempts, step.reason))
                        continue
                    mark = step.mark
                    ledger.append(mark)
                    marks[mark.key] = mark
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
