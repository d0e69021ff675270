"""A run that meets damaged data computes them again."""

from collections.abc import Callable
from typing import TypeVar

from cryoseg_dist.errors import DamagedDataError
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.schema.work import Region
from cryoseg_dist.store.take_back import take_back_region

Result = TypeVar("Result")


def mended(session: Session, action: Callable[[], Result]) -> Result:
    """Run what may meet damaged data; what wrote them is taken back and everything unfinished is run again.

    Parameters
    ----------
    session : Session
    action : Callable
        Skips what is finished, as every stage does.

    Raises
    ------
    DamagedDataError
        Nobody is known to have written them, or they were damaged again at once.
    """
    seen: set[tuple[str, tuple[int, ...]]] = set()
    while True:
        try:
            return action()
        except DamagedDataError as fault:
            place = (fault.array, fault.start)
            if place in seen:
                raise
            seen.add(place)
            taken = take_back_region(session.project, Region(fault.array, fault.start, fault.stop))
            if not taken:
                raise
            what = ", ".join([*(mark.key for mark in taken.marks[:5]), *taken.states[:5]])
            session.say(
                f"{fault.array} is damaged from {list(fault.start)} on ({fault.got}): {what} computed again", "mend"
            )
