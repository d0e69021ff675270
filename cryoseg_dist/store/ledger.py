"""What is finished: an append-only journal a run, and a lock a project."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryoseg_dist.errors import CryosegError
from cryoseg_dist.schema.work import Outcome


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
    """

    key: str
    outcome: Outcome
    record: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 1
    worker: str = ""


class Ledger:
    """Append-only journal of JSON lines.

    A mark is durable against a killed process once :meth:`append` returns, and against a lost machine within a
    second. A torn last line, left by a crash, is cut off.

    Parameters
    ----------
    path : Path
    """

    SYNC_SECONDS = 1.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._synced = 0.0

    def load(self) -> dict[str, Mark]:
        """All marks by key; the last one of a key counts."""
        if not self.path.exists():
            return {}
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            with self.path.open("r+b") as stream:
                stream.truncate(whole)
        marks = {}
        for line in data[:whole].splitlines():
            values = json.loads(line)
            values["outcome"] = Outcome(values["outcome"])
            marks[values["key"]] = Mark(**values)
        return marks

    def append(self, mark: Mark) -> None:
        """Add a mark."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._descriptor, (json.dumps(asdict(mark), separators=(",", ":")) + "\n").encode())
        if time.monotonic() - self._synced > self.SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and let go of the file."""
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
        JSON values.
    upstream : Mapping of str to str
        Run ids and digests of inputs and weights.
    """
    text = json.dumps([stage, settings, upstream], sort_keys=True, default=str)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@contextmanager
def project_lock(root: Path) -> Iterator[None]:
    """Hold a project for one driver.

    Raises
    ------
    CryosegError
        Another live process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise CryosegError(
                f"{root}: expected a project that no other driver holds, got process {holder} at work in it. "
                "Wait for it or stop it."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
