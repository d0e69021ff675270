"""Units that wait: in their order, and those that failed again after a pause that grows with each failure."""

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryoseg_dist.errors import DamagedDataError, StoreUnavailableError
from cryoseg_dist.runtime.executor import MAX_ATTEMPTS, Finished, Retry, last_line, quarantined
from cryoseg_dist.schema.work import Unit

# Seconds before the second attempt; each further pause is longer by this factor, up to the longest.
FIRST_PAUSE, PAUSE_GROWTH, LONGEST_PAUSE = 0.2, 3.0, 20.0
LOOKED_AT = 16


def pause(failures: int) -> float:
    """Seconds to wait after so many failures of a unit: exponential, and random by half, so that units do not come back at once."""
    longest = min(FIRST_PAUSE * PAUSE_GROWTH ** (failures - 1), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Job:
    """A unit that is to be computed.

    Attributes
    ----------
    unit : Unit
    attempts : int
        Which attempt this is, from 1. Failures of the storage do not count.
    alone : bool
        It may have killed its worker: nothing else shall stand beside it.
    failed_on : str
        The worker that it failed on last: another one shall try.
    failed_at : float
        Monotonic seconds.
    storage_since : float, optional
        Monotonic seconds since which the storage has refused it.
    failures : int
        Of any kind.
    """

    unit: Unit
    attempts: int = 1
    alone: bool = False
    failed_on: str = ""
    failed_at: float = 0.0
    storage_since: float | None = None
    failures: int = 0


class Backlog:
    """Units of one stage that no worker has yet.

    Parameters
    ----------
    units : sequence of Unit
    patience : float
        Seconds that the storage may refuse a unit before the run stops.
    """

    def __init__(self, units: Sequence[Unit], patience: float) -> None:
        self._fresh, self._untouched = iter(units), len(units)
        self._next: Job | None = None
        self._front: deque[Job] = deque()
        self._waiting: list[tuple[float, int, Job]] = []
        self._count = itertools.count()
        self._patience = patience

    def __bool__(self) -> bool:
        return self.remaining > 0

    @property
    def remaining(self) -> int:
        """Units that no worker has."""
        return self._untouched + len(self._front) + len(self._waiting)

    def _peek(self) -> Job | None:
        if self._next is None:
            unit = next(self._fresh, None)
            self._next = None if unit is None else Job(unit)
        return self._next

    def take(self, fits: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """The next unit that is due and fits, None where there is none now."""
        if self._front and fits(self._front[0]):
            return self._front.popleft()
        now = time.monotonic()
        # The first of a heap are the first due, nearly: looking at a few keeps this cheap where all units fail.
        for place, (due, _, job) in enumerate(self._waiting[:LOOKED_AT]):
            if due <= now and fits(job):
                del self._waiting[place]
                heapq.heapify(self._waiting)
                return job
        fresh = self._peek() if not self._front else None
        if fresh is None or not fits(fresh):
            return None
        self._next = None
        self._untouched -= 1
        return fresh

    def put_back(self, job: Job) -> None:
        """Take a unit back that was not tried: it is the next one."""
        self._front.appendleft(job)

    def until_due(self) -> float | None:
        """Seconds until a waiting unit is due; None where none waits."""
        return None if not self._waiting else max(0.0, self._waiting[0][0] - time.monotonic())

    def failed(
        self, job: Job, fault: BaseException | str, worker: str = "", *, suspect: bool = False
    ) -> Finished | Retry:
        """What becomes of a unit that failed.

        Parameters
        ----------
        job : Job
        fault : BaseException or str
            What was raised, or what happened to its worker.
        worker : str
        suspect : bool
            It may have killed its worker.

        Raises
        ------
        StoreUnavailableError
            The storage is full, or has refused for longer than ``patience``.
        DamagedDataError
            An input is damaged: no attempt can help.
        """
        if isinstance(fault, DamagedDataError):
            raise fault
        reason = fault if isinstance(fault, str) else last_line(fault)
        now, failures = time.monotonic(), job.failures + 1
        last: dict[str, Any] = {"failed_on": worker, "failed_at": now, "failures": failures}
        if isinstance(fault, StoreUnavailableError):
            since = now - fault.waited if job.storage_since is None else job.storage_since
            if fault.full or now - since >= self._patience:
                raise fault
            again = replace(job, storage_since=since, **last)
        elif job.attempts >= MAX_ATTEMPTS:
            return quarantined(job.unit, job.attempts, reason)
        else:
            again = replace(job, attempts=job.attempts + 1, alone=suspect, storage_since=None, **last)
        wait = pause(failures)
        heapq.heappush(self._waiting, (now + wait, next(self._count), again))
        return Retry(job.unit.key, job.attempts, reason)
