"""The engine without an engine: units one after another in this process."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryoseg_dist.runtime.backlog import Backlog
from cryoseg_dist.runtime.executor import STORE_PATIENCE, Finished, Retry, Worker
from cryoseg_dist.schema.work import MapStage, Unit
from cryoseg_dist.store.project import Project


class InlineExecutor:
    """Runs units in the driver's process.

    Parameters
    ----------
    root : Path
        The project.
    device : str
    patience : float
        Seconds that the storage may refuse before the run stops.
    """

    def __init__(self, root: Path, device: str = "cpu", patience: float = STORE_PATIENCE) -> None:
        self._worker = Worker(Project(root), device)
        self._patience = patience
        self.in_flight = 0

    def map(self, stage: MapStage, units: Sequence[Unit]) -> Iterator[Finished | Retry]:
        """Compute units in order; failed ones again after a pause."""
        self._worker.load(stage)
        backlog = Backlog(units, self._patience)
        while backlog:
            job = backlog.take()
            if job is None:
                time.sleep(backlog.until_due() or 0.0)
                continue
            self.in_flight = 1
            step: Finished | Retry
            try:
                step = self._worker.run(job.unit, job.attempts)
            except Exception as error:  # a unit may fail in any way, the run goes on
                step = backlog.failed(job, error, self._worker.name)
            finally:
                self.in_flight = 0
            yield step

    def close(self) -> None:
        """Nothing to let go of."""
