"""A Ray actor around a worker, what a call of it brings back, and what the driver knows of both.

Units that take milliseconds would wait for Ray rather than for the processor, so a call takes several of them.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from cryoseg_dist.errors import CryosegError
from cryoseg_dist.runtime.allocator import keep_freed_memory
from cryoseg_dist.runtime.backlog import Job
from cryoseg_dist.runtime.executor import Finished, Worker, last_line
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.store.project import Project

# A call begins no further unit after so many seconds, and has so many units at most. A worker that dies loses no more.
CALL_SECONDS, MOST_UNITS = 0.1, 64


@dataclass
class Answer:
    """What became of the units of a call, in their order; it ends with the first that failed.

    Attributes
    ----------
    finished : list of Finished
    fault : CryosegError or str, optional
        Why the next one failed.
    """

    finished: list[Finished] = field(default_factory=list)
    fault: CryosegError | str | None = None

    def units_in_time(self) -> int:
        """How many such units would fill a call."""
        seconds = sum(finished.mark.seconds for finished in self.finished)
        return min(MOST_UNITS, max(1, int(CALL_SECONDS * len(self.finished) / max(seconds, 1e-6))))


@ray.remote(max_restarts=-1, max_task_retries=0)
class UnitActor:
    """A worker in a process of its own."""

    def __init__(self, project: Project, threads: int, gpu: bool) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        os.environ["NUMBA_NUM_THREADS"] = str(threads)
        self._worker = Worker(project, "cuda" if gpu else "cpu")
        self._stage_number = -1

    def hello(self) -> tuple[str, str]:
        """Name of the worker and of its node: the process is up."""
        return self._worker.name, ray.get_runtime_context().get_node_id()

    def run(self, number: int, stage: list[Any], units: Sequence[tuple[Unit, int]]) -> Answer:
        """Compute units, each with the number of its attempt; a stage seen for the first time is loaded first."""
        if number != self._stage_number:
            # The reference travels in a list, so that Ray hands it over unresolved and it is fetched once.
            self._worker.load(ray.get(stage[0]))
            self._stage_number = number
        answer, until = Answer(), time.monotonic() + CALL_SECONDS
        for unit, attempts in units:
            try:
                answer.finished.append(self._worker.run(unit, attempts))
            except Exception as fault:  # a unit may fail in any way, the run goes on
                answer.fault = fault if isinstance(fault, CryosegError) else last_line(fault)
                break
            if time.monotonic() > until:
                break
        return answer


@dataclass
class Flight:
    """Units on their way in one call."""

    jobs: list[Job]
    started: float


@dataclass(eq=False)
class Member:
    """An actor of the pool.

    Attributes
    ----------
    actor : ActorHandle
    name, node : str
        Of the process that answered last.
    probe : ObjectRef, optional
        Asks whether the process is up; units wait until it answers.
    probe_at : float
        Monotonic seconds from which its answer counts.
    silent : int
        Probes in a row without an answer.
    rests_until : float
        Monotonic seconds before which it gets no unit.
    size : int
        Units that its next call takes at most.
    flights : dict of ObjectRef to Flight
        Calls, in the order in which they are computed.
    """

    actor: Any
    name: str = ""
    node: str = ""
    probe: Any = None
    probe_at: float = 0.0
    silent: int = 0
    rests_until: float = 0.0
    size: int = 1
    flights: dict[Any, Flight] = field(default_factory=dict)
