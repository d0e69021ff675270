"""A stock Dask cluster whose scheduler and workers live in Ray actors.

So one substrate starts, places and restarts every process, on one machine and on a cluster. The actors ask Ray for no
cores: Dask sums while the actors that score wait for the next maps. Every connection is encrypted with a certificate
that exists in memory alone, for whoever reaches a Dask port may run code there.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import psutil
import ray
import torch
from distributed import Scheduler, Security, Worker
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.allocator import keep_freed_memory
from cryoseg_dist.runtime.executor import last_line
from cryoseg_dist.runtime.ray_start import start_ray

START_SECONDS, STOP_SECONDS = 120.0, 10.0
# Cores of a cluster for each worker, where their number is not given.
CORES_A_WORKER = 2
# A worker that lives shorter than this did not start well; after so many in a row no more are tried.
SHORT_LIFE, MOST_SHORT_LIVES = 10.0, 5
# Share of a node's memory that its workers hold before they spill to disk; the rest is for the system and the store.
MEMORY_SHARE = 0.8
# State pages would listen on every address; nobody needs them.
_NO_PAGES = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@ray.remote(num_cpus=0, max_restarts=0)
class _SchedulerActor:
    """The scheduler; it holds no data."""

    async def start(self, security: Security) -> str:
        """Listen on this node's address and tell where."""
        logging.getLogger("distributed").setLevel(logging.WARNING)
        self._scheduler = await Scheduler(
            host=ray.util.get_node_ip_address(), port=0, protocol="tls", security=security, **_NO_PAGES
        )
        return str(self._scheduler.address)

    async def worker_names(self) -> list[str]:
        """Workers that are connected."""
        return [str(worker.name) for worker in self._scheduler.workers.values()]

    async def close(self) -> None:
        """Stop listening."""
        await self._scheduler.close()


@ray.remote(num_cpus=0, max_restarts=0)
class _WorkerActor:
    """One worker; what it held when it dies is computed again by others."""

    async def run(
        self, scheduler: str, security: Security, name: str, threads: int, memory: int | None, neighbours: int
    ) -> None:
        """Work until :meth:`close` or until the scheduler is gone."""
        logging.getLogger("distributed").setLevel(logging.WARNING)
        torch.set_num_threads(1)
        keep_freed_memory()
        limit = memory or int(MEMORY_SHARE * psutil.virtual_memory().total / neighbours)
        worker = Worker(
            scheduler,
            host=ray.util.get_node_ip_address(),
            protocol="tls",
            security=security,
            name=name,
            nthreads=threads,
            memory_limit=limit,
            death_timeout=START_SECONDS,
            **_NO_PAGES,
        )
        async with worker as self._worker:
            await self._worker.finished()

    async def close(self) -> None:
        """Leave the scheduler."""
        await self._worker.close(reason="no longer needed")

    async def process(self) -> int:
        """Number of the process."""
        return os.getpid()


@dataclass(frozen=True)
class _Hosted:
    """A worker at work."""

    actor: Any
    node: str
    started: float


class DaskOnRay:
    """Scheduler and workers in Ray actors, from ``with`` to its end; a worker that dies is replaced.

    Parameters
    ----------
    workers : int, optional
        Worker processes, spread over the nodes by their cores; one for every two cores when not given.
    threads : int
        Tasks a worker does at once.
    memory : int, optional
        Bytes a worker holds before it spills to disk; its share of the node's memory when not given.
    address : str, optional
        A running Ray cluster, where Ray is not initialised yet; an embedded one is started when not given.

    Attributes
    ----------
    address : str
        Of the Dask scheduler.
    security : Security
        What a client needs to connect.
    """

    def __init__(
        self, workers: int | None = None, *, threads: int = 1, memory: int | None = None, address: str | None = None
    ) -> None:
        self._n, self._threads, self._memory, self._ray_address = workers or 0, threads, memory, address
        self.address = ""
        self.security = Security.temporary()
        self._hosted: dict[Any, _Hosted] = {}
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._replace_the_dead, name="dask-on-ray", daemon=True)
        self._scheduler: Any = None
        self._why_ended = ""
        self._owns_ray = False
        self._count = self._short_lives = 0

    def __enter__(self) -> Self:
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            start_ray(self._ray_address)
        if not self._n:
            self._n = max(1, int(ray.cluster_resources().get("CPU", 0)) // CORES_A_WORKER)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        # Beside the driver: then the loss of a node costs workers only.
        here = _bound_to(ray.get_runtime_context().get_node_id())
        self._scheduler = _SchedulerActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        try:
            self.address = ray.get(self._scheduler.start.remote(self.security), timeout=START_SECONDS)
            for node, neighbours in places(ray.nodes(), self._n):
                self._host(node, neighbours)
            # Workers may die while they start, too.
            self._watch.start()
            deadline = time.monotonic() + START_SECONDS
            while len(ray.get(self._scheduler.worker_names.remote(), timeout=START_SECONDS)) < self._n:
                if time.monotonic() > deadline:
                    raise StageFailedError(f"dask: expected {self._n} workers within {START_SECONDS:g} s, got fewer.")
                time.sleep(0.1)
        except RayError as fault:
            why = self._why_ended or last_line(fault)
            raise StageFailedError(f"dask: the scheduler or its workers did not start: {why}") from fault

    def _host(self, node: str, neighbours: int) -> None:
        """Start a worker on a node; it ends at once where that is gone."""
        actor = _WorkerActor.options(scheduling_strategy=_bound_to(node)).remote()  # type: ignore[attr-defined]
        name = f"ray-{self._count}"
        self._count += 1
        reference = actor.run.remote(self.address, self.security, name, self._threads, self._memory, neighbours)
        self._hosted[reference] = _Hosted(actor, node, time.monotonic())

    def _replace_the_dead(self) -> None:
        try:
            while not self._closing.is_set() and self._short_lives < MOST_SHORT_LIVES:
                ended, _ = ray.wait(list(self._hosted), timeout=0.5)
                for reference in ended:
                    lost = self._hosted.pop(reference)
                    self._why_ended = _why(reference)
                    if self._closing.is_set():
                        return
                    short = time.monotonic() - lost.started < SHORT_LIFE
                    self._short_lives = self._short_lives + 1 if short else 0
                    self._host(*vacant(places(ray.nodes(), self._n), [h.node for h in self._hosted.values()]))
        except (RayError, StageFailedError) as fault:
            logging.getLogger(__name__).error("dask: a lost worker cannot be replaced: %s", fault)
        if not self._closing.is_set():
            # Without its scheduler, a computation ends with an error rather than never.
            ray.kill(self._scheduler, no_restart=True)

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self._n

    def processes(self) -> list[int]:
        """Process numbers of the workers."""
        return ray.get([hosted.actor.process.remote() for hosted in list(self._hosted.values())])

    def close(self) -> None:
        """Stop workers and scheduler, and Ray where it was started here."""
        self._closing.set()
        if self._watch.is_alive():
            self._watch.join(timeout=STOP_SECONDS)
        actors = [hosted.actor for hosted in self._hosted.values()]
        with contextlib.suppress(RayError):
            ray.wait([a.close.remote() for a in actors], num_returns=max(1, len(actors)), timeout=STOP_SECONDS)
            if self._scheduler is not None:
                ray.get(self._scheduler.close.remote(), timeout=STOP_SECONDS)
        for actor in (*actors, self._scheduler):
            if actor is not None:
                ray.kill(actor, no_restart=True)
        self._hosted, self._scheduler = {}, None
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False


def _bound_to(node: str) -> NodeAffinitySchedulingStrategy:
    """A place on a node and on no other: given a soft wish, Ray draws any node for an actor that asks for no resources."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _why(ended: Any) -> str:
    """What a worker that ended says, in one line."""
    try:
        ray.get(ended)
    except RayError as fault:
        return last_line(fault)
    return ""


def places(nodes: Sequence[Mapping[str, Any]], workers: int) -> list[tuple[str, int]]:
    """Where workers go: the next one always to the living node with the most cores a worker.

    Parameters
    ----------
    nodes : sequence of Mapping
        As ``ray.nodes()`` gives them.
    workers : int

    Returns
    -------
    list of (str, int)
        Node of each worker, and how many workers that node gets in all.

    Raises
    ------
    StageFailedError
        No living node has cores to offer.
    """
    cores = {
        str(node["NodeID"]): float(node["Resources"]["CPU"])
        for node in nodes
        if node.get("Alive") and node.get("Resources", {}).get("CPU", 0) > 0
    }
    if not cores:
        raise StageFailedError("dask: expected a Ray node with cores, got none. Start nodes that take work.")
    held = dict.fromkeys(cores, 0)
    chosen = []
    for _ in range(workers):
        node = max(cores, key=lambda n: cores[n] / (held[n] + 1))
        held[node] += 1
        chosen.append(node)
    return [(node, held[node]) for node in chosen]


def vacant(wanted: Sequence[tuple[str, int]], held: Sequence[str]) -> tuple[str, int]:
    """The first of the wanted places that nobody holds, for a worker that takes another's place."""
    free = list(held)
    for place in wanted:
        if place[0] not in free:
            return place
        free.remove(place[0])
    return wanted[-1]
