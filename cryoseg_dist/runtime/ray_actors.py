"""A bounded, retrying pump over a pool of Ray actors.

The driver keeps a few units in flight an actor and queues again what an actor loses; Ray itself retries nothing, for one
poison unit would take its neighbours with it. An actor holds a :class:`~cryoseg_dist.runtime.executor.Worker`, caches and
no truth: it may die at any time.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cryoseg_dist.errors import CryosegError, StageFailedError
from cryoseg_dist.runtime.backlog import Backlog, Job, pause
from cryoseg_dist.runtime.executor import STORE_PATIENCE, Finished, Retry, last_line
from cryoseg_dist.runtime.health import Health
from cryoseg_dist.runtime.ray_call import Answer, Flight, Member, UnitActor
from cryoseg_dist.runtime.ray_capacity import healthy_node, room, wait_for_room
from cryoseg_dist.runtime.ray_start import start_ray
from cryoseg_dist.schema.work import MapStage, Unit
from cryoseg_dist.store.project import Project

# Calls of a worker, queued at once: reads of the next unit overlap the computation of the last.
IN_FLIGHT = 2
# A call takes at most this part of a worker's share of what is left, so that all end together.
SHARES = 4
# Seconds that a worker rests at most after a failure.
LONGEST_REST = 2.0
# Seconds that a unit waits for another worker than the one it failed on, while none is up.
COMING_UP = 15.0
# Seconds that workers may take to come up when none is left; seconds between two tries to reach a lost one, at first and
# at most; tries before it is replaced.
START_PATIENCE, PROBE_PAUSE, LONGEST_PROBE_PAUSE, PROBES = 300.0, 1.0, 30.0, 3


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
    patience : float
        Seconds that the storage may refuse before the run stops.
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
        patience: float = STORE_PATIENCE,
    ) -> None:
        self._project, self._deadline, self._patience = Project(Path(root).resolve()), deadline, patience
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
        self._health = Health()
        self._members = [self._new_member() for _ in range(n)]
        self._stage_number = 0
        self._why_silent = ""

    @property
    def in_flight(self) -> int:
        """Units that actors have now, computing or next in turn."""
        return sum(len(flight.jobs) for member in self._members for flight in member.flights.values())

    @property
    def workers(self) -> int:
        """Actors of the pool."""
        return len(self._members)

    def _new_member(self, node: str | None = None) -> Member:
        options: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_concurrency": 1}
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = UnitActor.options(**options).remote(  # type: ignore[attr-defined]
            self._project, max(1, math.floor(self._cpus)), self._gpus > 0
        )
        return Member(actor, probe=actor.hello.remote())

    def map(self, stage: MapStage, units: Sequence[Unit]) -> Iterator[Finished | Retry]:
        """Compute units as actors come free.

        A unit whose actor died, or that ran into the deadline, may be the one that killed it: it is tried again
        with its actor to itself, and on another actor where there is one. When the storage is at fault, units under way
        end first.
        """
        self._stage_number += 1
        held = [ray.put(stage)]
        for member in self._members:
            member.size = 1
        backlog = Backlog(units, self._patience)
        fatal: CryosegError | None = None
        up_since = time.monotonic()
        try:
            while (backlog and fatal is None) or self.in_flight:
                if fatal is None:
                    self._launch(backlog, held)
                ready = self._wait(backlog)
                if any(member.probe is None for member in self._members):
                    up_since = time.monotonic()
                elif time.monotonic() - up_since > START_PATIENCE:
                    raise StageFailedError(
                        f"ray: expected workers, got none within {START_PATIENCE:g} s{self._why_silent}. "
                        "See that the cluster has room and every node sees the project; the same command goes on."
                    )
                for member in list(self._members):
                    for step in self._steps(member, ready, backlog):
                        if isinstance(step, CryosegError):
                            fatal = fatal or step
                        else:
                            yield step
            if fatal is not None:
                raise fatal
        finally:
            for member in self._members:
                for reference in member.flights:
                    ray.cancel(reference, force=False)
                member.flights = {}

    def _launch(self, backlog: Backlog, held: list[Any]) -> None:
        for depth in range(IN_FLIGHT):
            # The last units stand behind none: whoever comes free first shall take them.
            if depth and backlog.remaining <= len(self._members):
                return
            for member in self._members:
                if member.probe is not None or len(member.flights) != depth or time.monotonic() < member.rests_until:
                    continue
                # A worker that fails at once would else take all units before others have shown that they do not.
                if depth and self._health.streak(member.name):
                    continue
                if any(job.alone for flight in member.flights.values() for job in flight.jobs):
                    continue
                if jobs := self._call(member, backlog):
                    units = [(job.unit, job.attempts) for job in jobs]
                    reference = member.actor.run.remote(self._stage_number, held, units)
                    member.flights[reference] = Flight(jobs, time.monotonic())

    def _call(self, member: Member, backlog: Backlog) -> list[Job]:
        """The next unit, and with it as many as take little time and have not failed."""
        fits = self._fits(member)
        first = backlog.take(fits)
        if first is None:
            return []
        jobs, most = [first], min(member.size, backlog.remaining // (SHARES * len(self._members)))
        if first.failures or first.alone:
            return jobs
        while len(jobs) < most:
            job = backlog.take(lambda job: not job.failures and not job.alone and fits(job))
            if job is None:
                break
            jobs.append(job)
        return jobs

    def _fits(self, member: Member) -> Callable[[Job], bool]:
        others = [other for other in self._members if other is not member]
        up = any(other.probe is None for other in others)

        def fits(job: Job) -> bool:
            if job.alone and member.flights:
                return False
            # Another worker shall try, where there is one or will be soon.
            soon = others and time.monotonic() - job.failed_at < COMING_UP
            return job.failed_on != member.name or not (up or soon)

        return fits

    def _wait(self, backlog: Backlog) -> set[Any]:
        """References that are ready, at least one where any comes in time."""
        waited = [reference for member in self._members for reference in member.flights]
        now = time.monotonic()
        waited += [m.probe for m in self._members if m.probe is not None and m.probe_at <= now]
        timeout = max(0.05, min(1.0, self._deadline / 10))
        if (due := backlog.until_due()) is not None:
            timeout = min(timeout, max(due, 0.01))
        if not waited:
            time.sleep(min(timeout, PROBE_PAUSE / 10))
            return set()
        ready, _ = ray.wait(waited, num_returns=1, timeout=timeout)
        if ready and len(waited) > 1:
            ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        return set(ready)

    def _steps(self, member: Member, ready: set[Any], backlog: Backlog) -> Iterator[Finished | Retry | CryosegError]:
        """What became of the units of one actor."""
        if member.probe in ready:
            self._answered(member)
        for reference in [r for r in member.flights if r in ready]:
            if reference not in member.flights:
                break
            try:
                answer: Answer = ray.get(reference)
            except RayActorError as error:
                yield from self._lost(member, f"worker lost ({type(error).__name__})", backlog)
                return
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                answer = Answer(fault=cause if isinstance(cause, CryosegError) else last_line(cause))
            yield from self._landed(member, reference, answer, backlog)
        first = next(iter(member.flights.values()), None)
        if first is not None and time.monotonic() - first.started >= self._deadline:
            self._replace(member)
            yield from self._given_up(member, f"no result within {self._deadline:g} s", backlog)

    def _answered(self, member: Member) -> None:
        try:
            member.name, member.node = ray.get(member.probe)
            member.probe, member.silent = None, 0
        except RayError as error:
            self._why_silent = f" ({last_line(error)})"
            member.silent += 1
            if member.silent % PROBES == 0:
                self._replace(member)
            else:
                member.probe = member.actor.hello.remote()
            wait = min(PROBE_PAUSE * 2 ** (member.silent - 1), LONGEST_PROBE_PAUSE)
            member.probe_at = time.monotonic() + wait

    def _landed(
        self, member: Member, reference: Any, answer: Answer, backlog: Backlog
    ) -> Iterator[Finished | Retry | CryosegError]:
        """What a call brought: units that ended, one that failed, others that it did not begin."""
        jobs = member.flights.pop(reference).jobs
        for behind in member.flights.values():
            # It stood in the queue of its actor until now.
            behind.started = time.monotonic()
        for finished in answer.finished:
            self._health.finished(member.name, member.node)
            yield finished
        rest = jobs[len(answer.finished) :]
        for job in reversed(rest if answer.fault is None else rest[1:]):
            backlog.put_back(job)
        if answer.fault is None:
            member.size = answer.units_in_time()
        else:
            member.size = 1
            yield self._failed(member, rest[0], answer.fault, backlog)

    def _failed(
        self, member: Member, job: Job, fault: CryosegError | str, backlog: Backlog
    ) -> Finished | Retry | CryosegError:
        """A unit whose code failed, or whose storage did."""
        try:
            step = backlog.failed(job, fault, member.name)
        except CryosegError as fatal:
            return fatal
        if self._health.failed(member.name, member.node, job.unit.key):
            self._retire(member, backlog)
        else:
            wait = min(pause(self._health.streak(member.name)), LONGEST_REST)
            member.rests_until = time.monotonic() + wait
        return step

    def _lost(self, member: Member, reason: str, backlog: Backlog) -> Iterator[Finished | Retry | CryosegError]:
        """The actor's process is gone; Ray starts it again, on another node where its own is gone."""
        self._health.forget(member.name)
        member.probe, member.probe_at = member.actor.hello.remote(), time.monotonic()
        yield from self._given_up(member, reason, backlog)

    def _given_up(self, member: Member, reason: str, backlog: Backlog) -> Iterator[Finished | Retry | CryosegError]:
        """The unit under way counts as failed; those that stood behind it were not tried.

        Of a call of several units nobody knows which was under way: each is tried again by itself, and none counts as failed.
        """
        flights, member.flights, member.size = member.flights, {}, 1
        suspects: list[Job] = []
        for reference, flight in reversed(list(flights.items())):
            with suppress(RayError, GetTimeoutError):
                answer: Answer = ray.get(reference, timeout=0)
                member.flights = {reference: flight}
                yield from self._landed(member, reference, answer, backlog)
                continue
            for job in reversed(suspects):
                backlog.put_back(job)
            suspects = flight.jobs
        if len(suspects) == 1:
            try:
                yield backlog.failed(suspects[0], reason, member.name, suspect=True)
            except CryosegError as fatal:
                yield fatal
        elif suspects:
            for job in reversed(suspects):
                backlog.put_back(replace(job, alone=True))
            yield Retry(suspects[0].unit.key, suspects[0].attempts, f"{reason}, with {len(suspects)} units")

    def _replace(self, member: Member) -> None:
        """Put a new actor in the place of one that hangs, is sick, or will not come back."""
        with suppress(RayError):
            ray.kill(member.actor, no_restart=True)
        self._health.forget(member.name)
        node = None
        if sick := self._health.sick_nodes():
            held = [other.node for other in self._members if other is not member]
            node = healthy_node(sick, held, self._cpus, self._gpus)
            if node is None and set(held) - sick:
                # Only sick nodes have room: rather one worker less.
                self._members.remove(member)
                return
        fresh = self._new_member(node)
        member.actor, member.probe, member.probe_at, member.rests_until = fresh.actor, fresh.probe, 0.0, 0.0

    def _retire(self, member: Member, backlog: Backlog) -> None:
        """Replace a sick worker, and with it all of a sick node; units that stood behind go back untried."""
        sick = self._health.sick_nodes()
        for other in [m for m in self._members if m is member or m.node in sick]:
            for flight in reversed(list(other.flights.values())):
                for job in reversed(flight.jobs):
                    backlog.put_back(job)
            other.flights = {}
            self._replace(other)

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        for member in self._members:
            ray.kill(member.actor, no_restart=True)
        self._members = []
        if self._owns_ray:
            ray.shutdown()
