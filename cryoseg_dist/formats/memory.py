"""Memory that a file may take: what is free on this machine or in this container."""

import contextlib
from pathlib import Path

import psutil

from cryoseg_dist.errors import BadInputError


def free_bytes() -> int:
    """Free memory of this machine, or of the container where that is less."""
    free = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    # No such file, or "max": no limit.
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def require_room(where: str, n_bytes: int) -> None:
    """Refuse pixels that the free memory does not hold, before any is taken: a small compressed file may promise many.

    Raises
    ------
    BadInputError
    """
    free = free_bytes()
    if n_bytes > free:
        raise BadInputError(
            where, f"pixels that fit {free / 2**30:.1f} GiB of free memory", f"{n_bytes / 2**30:.1f} GiB"
        )
