"""Which failures are the storage's: told from faults of a unit, for they pass or need an operator."""

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoseg_dist.errors import CryosegError, StoreUnavailableError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
AWAY = (
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.EREMOTEIO, errno.ENXIO, errno.ESHUTDOWN,
)  # fmt: skip
# How the Rust pipeline names what the system said.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
# And what an object store said.
_OBJECT_STORE = re.compile(r"Generic \w+ error|error performing (GET|PUT|HEAD|POST|DELETE)", re.IGNORECASE)


def system_error(fault: BaseException) -> int | None:
    """Number of the system's error behind an exception, None where there is none."""
    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        if found := _OS_ERROR.search(str(seen)):
            return int(found[1])
        seen = seen.__cause__ or seen.__context__
    return None


def _of_object_store(fault: BaseException) -> str | None:
    """What an object store said, after all retries; None where it was another fault."""
    seen: BaseException | None = fault
    while seen is not None:
        if type(seen).__module__.startswith("obstore") or _OBJECT_STORE.search(str(seen)):
            # Signed requests carry their signature behind a question mark.
            return re.sub(r"\?\S*", "", str(seen).strip().partition("\n")[0])
        seen = seen.__cause__ or seen.__context__
    return None


def unavailable(fault: BaseException, where: Path | str) -> StoreUnavailableError | None:
    """The error to raise where the storage is at fault, else None.

    Parameters
    ----------
    fault : BaseException
        What was caught.
    where : Path or str
        What was read or written.
    """
    if remote := _of_object_store(fault):
        remedy = (
            "Check the network, the bucket and the credentials in the environment, then give the same command again: it "
            "goes on."
        )
        return StoreUnavailableError(str(where), remote, remedy)
    number = system_error(fault)
    if number in NO_ROOM:
        remedy = "Make room (`cryoseg clean` tells what may go), then give the same command again: it goes on."
    elif number in CLOSED:
        remedy = "Give this user the right to write there, then give the same command again: it goes on."
    elif number in AWAY:
        remedy = "See that the storage is mounted and answers, then give the same command again: it goes on."
    else:
        return None
    return StoreUnavailableError(str(where), os.strerror(number), remedy, number in NO_ROOM)


@contextmanager
def storage_faults(where: Path | str) -> Iterator[None]:
    """Raise :class:`StoreUnavailableError` in place of what the system or the codecs say of a storage at fault."""
    started = time.monotonic()
    try:
        yield
    except (CryosegError, FileNotFoundError):
        raise
    except Exception as fault:
        error = unavailable(fault, where)
        if error is None:
            raise
        # Requests of an object store have been tried again by then.
        error.waited = time.monotonic() - started
        raise error from fault
