"""A bounded, retrying pump over a pool of Ray actors.

The driver keeps a few units in flight an actor and queues again what an actor loses; Ray itself retries nothing, for one
poison unit would take its neighbours with it. An actor holds a :class:`~cryoseg_dist.runtime.executor.Worker`, caches and
no truth: it may die at any time.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.executor import MAX_ATTEMPTS, Finished, Retry, Worker, last_line, quarantined
from cryoseg_dist.runtime.ray_capacity import room, wait_for_room
from cryoseg_dist.schema.work import MapStage, Unit

# Reads of the next unit overlap the computation of the last.
IN_FLIGHT = 2
OBJECT_STORE_BYTES = 256 << 20


@ray.remote(max_restarts=-1, max_task_retries=0)
class _Actor:
    """A worker in a process of its own."""

    def __init__(self, root: str, threads: int, gpu: bool) -> None:
        torch.set_num_threads(threads)
        os.environ["NUMBA_NUM_THREADS"] = str(threads)
        self._worker = Worker(Path(root), "cuda" if gpu else "cpu")
        self._stage_number = -1

    def run(self, number: int, stage: list[Any], unit: Unit, attempts: int) -> Finished:
        """Compute a unit; a stage seen for the first time is loaded first."""
        if number != self._stage_number:
            # The reference travels in a list, so that Ray hands it over unresolved and it is fetched once.
            self._worker.load(ray.get(stage[0]))
            self._stage_number = number
        return self._worker.run(unit, attempts)


@dataclass
class _Flight:
    """A unit on its way."""

    unit: Unit
    attempts: int
    actor: Any
    alone: bool
    started: float = field(default_factory=time.monotonic)


class RayExecutor:
    """Moves units to Ray actors.

    Parameters
    ----------
    root : Path
        The project, on storage that every node sees.
    address : str, optional
        A running cluster; an embedded one is started when not given.
    workers : int, optional
        Actors; as many as the cluster's cores (or GPUs) hold when not given.
    cpus_per_worker, gpus_per_worker : float
    deadline : float
        Seconds after which a unit counts as hung and its actor is replaced.
    wait : float
        Seconds to wait for nodes when ``workers`` do not fit yet. An autoscaling cluster is asked for them; the
        run goes on with those that fit when the time is over.
    """

    def __init__(
        self,
        root: Path,
        *,
        address: str | None = None,
        workers: int | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        deadline: float = 3600.0,
        wait: float = 0.0,
    ) -> None:
        self._root, self._deadline = Path(root).resolve(), deadline
        self._cpus, self._gpus = cpus_per_worker, gpus_per_worker
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            start_ray(address)
        fit = room(cpus_per_worker, gpus_per_worker)
        if wait > 0:
            wanted = workers or max(fit, 1)
            fit = wait_for_room(wanted, cpus_per_worker, gpus_per_worker, wait)
            workers = min(wanted, fit) or wanted
        n = workers or fit
        if n < 1 or n > fit:
            resources = ray.cluster_resources()
            raise StageFailedError(
                f"ray: expected room for {max(n, 1)} workers of {cpus_per_worker:g} cores and {gpus_per_worker:g} GPUs, "
                f"got {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs. Ask for fewer or smaller ones, "
                "or let the run wait for nodes (engine.wait_for_workers)."
            )
        self._actors = [self._new_actor() for _ in range(n)]
        self._stage_number = 0
        self._flights: dict[Any, _Flight] = {}

    @property
    def in_flight(self) -> int:
        """Units that actors have now, computing or next in turn."""
        return len(self._flights)

    def _new_actor(self) -> Any:
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_concurrency": 1}
        actor = _Actor.options(**options)  # type: ignore[attr-defined]
        return actor.remote(str(self._root), max(1, math.floor(self._cpus)), self._gpus > 0)

    def map(self, stage: MapStage, units: Sequence[Unit]) -> Iterator[Finished | Retry]:
        """Compute units as actors come free.

        A unit whose actor died, or that ran into the deadline, may be the one that killed it: it is tried again
        with its actor to itself.
        """
        self._stage_number += 1
        held = [ray.put(stage)]
        queue = deque((unit, 1, False) for unit in units)
        flights = self._flights = {}
        try:
            while queue or flights:
                self._launch(queue, flights, held)
                timeout = max(0.05, min(1.0, self._deadline / 10))
                ready, _ = ray.wait(list(flights), num_returns=1, timeout=timeout)
                for reference in ready:
                    landed = flights.pop(reference)
                    for behind in flights.values():
                        if behind.actor is landed.actor:
                            # It stood in the queue of its actor until now.
                            behind.started = time.monotonic()
                    yield self._landed(reference, landed, queue)
                yield from self._overdue(queue, flights)
        finally:
            for reference in flights:
                ray.cancel(reference, force=False)
            self._flights = {}

    def _launch(self, queue: deque[tuple[Unit, int, bool]], flights: dict[Any, _Flight], held: list[Any]) -> None:
        for actor in self._actors:
            mine = [f for f in flights.values() if f.actor is actor]
            while queue and len(mine) < IN_FLIGHT and not any(f.alone for f in mine):
                alone = queue[0][2]
                if alone and mine:
                    break
                unit, attempts, alone = queue.popleft()
                flight = _Flight(unit, attempts, actor, alone)
                flights[actor.run.remote(self._stage_number, held, unit, attempts)] = flight
                mine.append(flight)

    def _landed(self, reference: Any, flight: _Flight, queue: deque[tuple[Unit, int, bool]]) -> Finished | Retry:
        try:
            finished: Finished = ray.get(reference)
            return finished
        except RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
            return self._again(flight, last_line(cause), queue, suspect=False)
        except RayActorError as error:
            return self._again(flight, f"worker lost ({type(error).__name__})", queue, suspect=True)
        except RayError as error:
            return self._again(flight, last_line(error), queue, suspect=True)

    def _again(
        self, flight: _Flight, reason: str, queue: deque[tuple[Unit, int, bool]], *, suspect: bool
    ) -> Finished | Retry:
        if flight.attempts >= MAX_ATTEMPTS:
            return quarantined(flight.unit, flight.attempts, reason)
        queue.append((flight.unit, flight.attempts + 1, suspect))
        return Retry(flight.unit.key, flight.attempts, reason)

    def _overdue(self, queue: deque[tuple[Unit, int, bool]], flights: dict[Any, _Flight]) -> Iterator[Finished | Retry]:
        now = time.monotonic()
        for i, actor in enumerate(self._actors):
            mine = {r: f for r, f in flights.items() if f.actor is actor}
            if not mine:
                continue
            first = next(iter(mine.values()))
            if now - first.started < self._deadline:
                continue
            ray.kill(actor, no_restart=True)
            self._actors[i] = self._new_actor()
            for reference, flight in mine.items():
                del flights[reference]
                if flight is first:
                    yield self._again(flight, f"no result within {self._deadline:g} s", queue, suspect=True)
                else:
                    # It only stood behind the hung one.
                    queue.appendleft((flight.unit, flight.attempts, flight.alone))

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors = []
        if self._owns_ray:
            ray.shutdown()


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join a cluster, or start an embedded one that listens on this machine alone and reports to nobody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is not None:
        ray.init(address=address, **common)
        return
    # "local": otherwise Ray would join whatever cluster was last started on this machine.
    ray.init(
        address="local",
        num_cpus=cpus or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        **common,
    )
