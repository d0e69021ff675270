"""What is finished: an append-only journal a run."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.schema.work import Outcome

_BLOCK = 1 << 16


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
    """

    key: str
    outcome: Outcome
    record: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 1
    worker: str = ""
    finished_at: float = field(default_factory=time.time)


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

    SYNC_SECONDS = 1.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._synced = 0.0
        self._lock = threading.Lock()

    def load(self) -> dict[str, Mark]:
        """All marks by key; the last one of a key counts.

        Raises
        ------
        BadInputError
            A line inside the journal is damaged, which no crash of this program does.
        """
        self._cut_torn_line()
        if not self.path.exists():
            return {}
        marks = {}
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                values = json.loads(line)
                values["outcome"] = Outcome(values["outcome"])
                marks[values["key"]] = Mark(**values)
            except (ValueError, KeyError, TypeError) as fault:
                raise BadInputError(
                    f"{self.path}, line {number}",
                    "the mark of a unit",
                    str(fault),
                    "Delete that line; its unit is computed again.",
                ) from None
        return marks

    def _cut_torn_line(self) -> None:
        try:
            stream = self.path.open("r+b")
        except FileNotFoundError:
            return
        with stream:
            end = stream.seek(0, os.SEEK_END)
            whole = end
            while whole > 0:
                start = max(0, whole - _BLOCK)
                stream.seek(start)
                newline = stream.read(whole - start).rfind(b"\n")
                if newline >= 0:
                    whole = start + newline + 1
                    break
                whole = start
            if whole != end:
                stream.truncate(whole)

    def append(self, mark: Mark) -> None:
        """Add a mark.

        Raises
        ------
        TypeError
            The record holds something that JSON cannot.
        """
        values = {f.name: getattr(mark, f.name) for f in fields(mark)}
        line = (json.dumps(values, separators=(",", ":"), default=_plain) + "\n").encode()
        with self._lock:
            if self._descriptor is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # A torn line must not run into the next mark.
                self._cut_torn_line()
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            if time.monotonic() - self._synced > self.SYNC_SECONDS:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and let go of the file."""
        with self._lock:
            if self._descriptor is not None:
                os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = None

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
