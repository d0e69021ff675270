"""What is finished: an append-only journal a run."""

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.checksums import FileDigest
from cryoseg_dist.store.journal import Journal, cut_torn_line

# A line that names a unit whose mark does not count any more.
TAKEN_BACK = "taken_back"


@dataclass(frozen=True, slots=True)
class Mark:
    """A finished unit.

    Attributes
    ----------
    key : str
    outcome : Outcome
    record : Mapping
        The unit's small results.
    reason : str
        Why it was set aside or quarantined.
    seconds : float
        Reading, computing and writing.
    attempts : int
    worker : str
    finished_at : float
        Seconds since 1970.
    writes : tuple of (str, tuple of int, tuple of int)
        What the unit wrote: array, start, stop.
    inputs : Mapping of str to FileDigest
        Foreign files that it read whole.
    """

    key: str
    outcome: Outcome
    record: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 1
    worker: str = ""
    finished_at: float = field(default_factory=time.time)
    writes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    inputs: Mapping[str, FileDigest] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values, as far as :func:`_plain` can make them such."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.inputs:
            values["inputs"] = {path: asdict(found) for path, found in self.inputs.items()}
        return {name: value for name, value in values.items() if value or name not in ("writes", "inputs")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Mark":
        """The mark that :meth:`to_json` gave.

        Raises
        ------
        ValueError, KeyError, TypeError
            No mark.
        """
        writes = tuple((array, tuple(start), tuple(stop)) for array, start, stop in values.get("writes", ()))
        inputs = {path: FileDigest(**found) for path, found in values.get("inputs", {}).items()}
        return cls(**{**values, "outcome": Outcome(values["outcome"]), "writes": writes, "inputs": inputs})


def _plain(value: Any) -> Any:
    """JSON value of a NumPy scalar or array in a record."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"expected a JSON value, got {type(value).__name__}")


def _canonical(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else _plain(value)


class Ledger:
    """Append-only journal of JSON lines.

    A mark is durable against a killed process once :meth:`append` returns, and against a lost machine within a
    second of the next append or at :meth:`close`. A torn last line, left by a crash, is cut off. Threads may share a
    ledger; of processes, only the one that holds the project's lock writes.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal = Journal(path)
        self._lock = threading.Lock()

    def load(self) -> dict[str, Mark]:
        """All marks by key; the last one of a key counts, unless it was taken back.

        Raises
        ------
        BadInputError
            A line inside the journal is damaged, which no crash of this program does.
        """
        cut_torn_line(self.path)
        if not self.path.exists():
            return {}
        marks: dict[str, Mark] = {}
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                values = json.loads(line)
                if TAKEN_BACK in values:
                    marks.pop(values[TAKEN_BACK], None)
                    continue
                marks[values["key"]] = Mark.from_json(values)
            except (ValueError, KeyError, TypeError) as fault:
                raise BadInputError(
                    f"{self.path}, line {number}",
                    "the mark of a unit",
                    str(fault),
                    "Delete that line; its unit is computed again.",
                ) from None
        return marks

    def append(self, mark: Mark) -> None:
        """Add a mark.

        Raises
        ------
        TypeError
            The record holds something that JSON cannot.
        StoreUnavailableError
            The storage is full or refuses.
        """
        self._write_line(json.dumps(mark.to_json(), separators=(",", ":"), default=_plain))

    def take_back(self, keys: Iterable[str]) -> None:
        """Let the marks of units count no more: a next run computes them. Nothing is erased."""
        for key in keys:
            self._write_line(json.dumps({TAKEN_BACK: key, "finished_at": time.time()}, separators=(",", ":")))

    def _write_line(self, text: str) -> None:
        with self._lock:
            self._journal.append(text)

    def close(self) -> None:
        """Make everything durable and let go of the file."""
        with self._lock:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run_id(stage: str, settings: Mapping[str, Any], upstream: Mapping[str, str]) -> str:
    """Name of a stage run: the stage and a digest of all that determines its result.

    Parameters
    ----------
    stage : str
    settings : Mapping
        JSON values and paths.
    upstream : Mapping of str to str
        Run ids and digests of inputs and weights.

    Raises
    ------
    TypeError
        A value whose text is not the same in every process, such as a set.
    """
    text = json.dumps([stage, settings, upstream], sort_keys=True, separators=(",", ":"), default=_canonical)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
