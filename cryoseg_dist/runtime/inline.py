"""The engine without an engine: units one after another in this process."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryoseg_dist.runtime.executor import MAX_ATTEMPTS, Finished, Retry, Worker, last_line, quarantined
from cryoseg_dist.schema.work import MapStage, Unit


class InlineExecutor:
    """Runs units in the driver's process.

    Parameters
    ----------
    root : Path
        The project.
    device : str
    """

    def __init__(self, root: Path, device: str = "cpu") -> None:
        self._worker = Worker(root, device)
        self.in_flight = 0

    def map(self, stage: MapStage, units: Sequence[Unit]) -> Iterator[Finished | Retry]:
        """Compute units in order; failed ones again at the end."""
        self._worker.load(stage)
        queue = deque((unit, 1) for unit in units)
        while queue:
            unit, attempts = queue.popleft()
            self.in_flight = 1
            try:
                finished = self._worker.run(unit, attempts)
            except Exception as error:  # a unit may fail in any way, the run goes on
                reason = last_line(error)
                if attempts >= MAX_ATTEMPTS:
                    yield quarantined(unit, attempts, reason)
                else:
                    queue.append((unit, attempts + 1))
                    yield Retry(unit.key, attempts, reason)
                continue
            finally:
                self.in_flight = 0
            yield finished

    def close(self) -> None:
        """Nothing to let go of."""
