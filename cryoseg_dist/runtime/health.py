"""Which workers and nodes are sick: they fail where others succeed."""

from collections import defaultdict
from dataclasses import dataclass, field

# A worker is sick after so many different units in a row failed on it; a node after so many of its workers were.
SICK_AFTER, SICK_WORKERS = 3, 2


@dataclass
class _Record:
    node: str
    failed: dict[str, None] = field(default_factory=dict)
    finished: int = 0
    # Units that others had finished when the present row of failures began.
    elsewhere: int = 0


class Health:
    """Judges workers by the units that end on them.

    A broken stage fails everywhere and makes no worker sick: others, or the worker itself before, must have finished units.
    """

    def __init__(self) -> None:
        self._workers: dict[str, _Record] = {}
        self._finished = 0
        self._sick: dict[str, set[str]] = defaultdict(set)

    def _record(self, worker: str, node: str) -> _Record:
        return self._workers.setdefault(worker, _Record(node))

    def finished(self, worker: str, node: str) -> None:
        """A unit ended well there."""
        record = self._record(worker, node)
        record.failed.clear()
        record.finished += 1
        self._finished += 1

    def failed(self, worker: str, node: str, unit: str) -> bool:
        """A unit failed there; whether the worker is sick."""
        record = self._record(worker, node)
        if not record.failed:
            record.elsewhere = self._finished - record.finished
        record.failed[unit] = None
        others = self._finished - record.finished > record.elsewhere
        if len(record.failed) < SICK_AFTER or not (others or record.finished):
            return False
        self._sick[record.node].add(worker)
        return True

    def streak(self, worker: str) -> int:
        """Units in a row that failed there."""
        record = self._workers.get(worker)
        return 0 if record is None else len(record.failed)

    def forget(self, worker: str) -> None:
        """The worker is gone."""
        self._workers.pop(worker, None)

    def sick_nodes(self) -> set[str]:
        """Nodes several of whose workers were sick."""
        return {node for node, workers in self._sick.items() if node and len(workers) >= SICK_WORKERS}
