"""Lines that are appended whole or not at all."""

import os
import time
from pathlib import Path

from cryoseg_dist.store.faults import storage_faults

_BLOCK = 1 << 16


class Journal:
    """A file to which whole lines are appended; not for two threads at once.

    A line is safe from a killed process once :meth:`append` returns, and from a lost machine within ``sync_seconds`` of the
    next append or at :meth:`close`.

    Parameters
    ----------
    path : Path
        Begun, with its folder, by the first line.
    sync_seconds : float
    """

    def __init__(self, path: Path, sync_seconds: float = 1.0) -> None:
        self.path = path
        self._sync_seconds = sync_seconds
        self._descriptor: int | None = None
        self._synced = 0.0

    def append(self, text: str) -> None:
        """Add a line.

        Raises
        ------
        StoreUnavailableError
            The storage is full or refuses; the file is as it was.
        """
        rest = memoryview((text + "\n").encode())
        with storage_faults(self.path):
            if self._descriptor is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # A torn line must not run into the next one.
                cut_torn_line(self.path)
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            before = os.fstat(self._descriptor).st_size
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                # Nor may half a line of a full disk.
                os.ftruncate(self._descriptor, before)
                raise
            if time.monotonic() - self._synced > self._sync_seconds:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and let go of the file."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            with storage_faults(self.path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cut_torn_line(path: Path) -> None:
    """Cut off a last line without its end, which a crash left; no file is no fault."""
    try:
        stream = path.open("r+b")
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
