"""One driver a project: a lock that a killed driver leaves at once, on this machine or on another.

Two signs are needed. The kernel's file lock goes with its process, whatever kills it, but some cluster file systems keep
it to one machine or do not know it. So the holder also counts a heartbeat in the lock's file. Whoever finds the
heartbeat of another machine watches it: it moves, the holder lives; it stands still, the holder is gone. No clocks are
compared.
"""

import _thread
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryoseg_dist.errors import CryosegError

LOCK_NAME = ".lock"
# Seconds between heartbeats, and how many of them a silent holder is given.
HEARTBEAT, PATIENCE = 4.0, 4
# Bytes of the file: it is rewritten as one block.
BLOCK = 1024
NO_FILE_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP)


class LockedError(CryosegError):
    """Another driver works in the project."""


def _started(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; empty where there is none."""
    try:
        # The name in brackets may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _here() -> dict[str, Any]:
    """What tells the present process from any other."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "machine": f"{_text_of('/proc/sys/kernel/random/boot_id')} {namespace}",
        "started": _started(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _read(descriptor: int) -> dict[str, Any] | None:
    """What the file says of its holder; None for no holder, or none that can be made out."""
    try:
        held = json.loads(os.pread(descriptor, BLOCK, 0).rstrip(b" \n\0") or b"null")
    except (ValueError, OSError):
        return None
    return held if isinstance(held, dict) and held.get("pid") else None


def _write(descriptor: int, holder: Mapping[str, Any]) -> None:
    os.pwrite(descriptor, json.dumps(holder).encode()[: BLOCK - 1].ljust(BLOCK - 1) + b"\n", 0)


def _refusal(root: Path, holder: Mapping[str, Any] | None) -> LockedError:
    who = "another process"
    if holder is not None:
        who = f"process {holder['pid']} on {holder.get('host')} (since {holder.get('since')})"
    return LockedError(
        f"{root}: expected a project that no other driver holds, got {who} at work in it. Wait for it or stop it."
    )


def _take_file_lock(descriptor: int) -> bool:
    """Whether the kernel gives the file to this process, or has no say on this file system."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        if fault.errno in NO_FILE_LOCKS:
            return True
        if isinstance(fault, BlockingIOError):
            return False
        raise
    return True


def _is_gone(descriptor: int, holder: Mapping[str, Any], heartbeat: float) -> bool:
    """Whether the holder that the file names is dead."""
    here = _here()
    if holder.get("machine") == here["machine"] and holder.get("host") == here["host"]:
        alive = bool(holder.get("started")) and _started(int(holder["pid"])) == holder.get("started")
        return not alive
    deadline = time.monotonic() + PATIENCE * heartbeat
    while time.monotonic() < deadline:
        time.sleep(min(0.5 * heartbeat, 1.0))
        now = _read(descriptor)
        if now is not None and now.get("beat") != holder.get("beat"):
            return False
    return True


class _Heart(threading.Thread):
    """Counts in the lock's file until it is stopped, or finds another's name there."""

    def __init__(self, path: Path, descriptor: int, holder: Mapping[str, Any], heartbeat: float) -> None:
        super().__init__(name="project-lock", daemon=True)
        self._path, self._descriptor, self._holder, self._heartbeat = path, descriptor, holder, heartbeat
        self._stopped = threading.Event()
        self.lost = False

    def run(self) -> None:
        beat = 0
        while not self._stopped.wait(self._heartbeat):
            held = _read(self._descriptor)
            mine = held is None or all(held.get(key) == self._holder[key] for key in ("pid", "machine", "started"))
            if not mine or not self._same_file():
                # This process slept for long, and its project went to another driver.
                self.lost = True
                _thread.interrupt_main()
                return
            beat += 1
            # A full disk or a storage that is away for a while: the next beat tries again.
            with suppress(OSError):
                _write(self._descriptor, {**self._holder, "beat": beat})

    def _same_file(self) -> bool:
        with suppress(OSError):
            return self._path.stat().st_ino == os.fstat(self._descriptor).st_ino
        return True

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@contextmanager
def project_lock(root: Path, heartbeat: float = HEARTBEAT) -> Iterator[None]:
    """Hold a project for one driver.

    The lock of a killed process of this machine is taken over at once; that of another machine once its heartbeat stood
    still for ``PATIENCE`` beats.

    Parameters
    ----------
    root : Path
        The project, created if it is missing.
    heartbeat : float
        Seconds.

    Raises
    ------
    LockedError
        Another live process holds it, or took it while this one was asleep.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        free = _take_file_lock(descriptor)
        holder = _read(descriptor)
        if not free or (holder is not None and not _is_gone(descriptor, holder, heartbeat)):
            raise _refusal(root, holder)
        mine = _here()
        _write(descriptor, {**mine, "beat": 0})
        heart = _Heart(path, descriptor, mine, heartbeat)
        heart.start()
        try:
            yield
        except KeyboardInterrupt:
            if heart.lost:
                raise _refusal(root, _read(descriptor)) from None
            raise
        finally:
            heart.stop()
            if not heart.lost:
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
