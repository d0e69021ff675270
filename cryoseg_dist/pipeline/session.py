"""An open project with its engine, settings and listeners."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryoseg_dist.pipeline.config import EngineSettings, RunSettings
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.events import EventBus, JsonLog, Message, Sink, without_secrets
from cryoseg_dist.runtime.executor import Executor
from cryoseg_dist.runtime.inline import InlineExecutor
from cryoseg_dist.runtime.ray_token import forget_token
from cryoseg_dist.runtime.runner import Runner
from cryoseg_dist.schema.work import ArraySpec, MapStage, Unit
from cryoseg_dist.store.clean import write_current
from cryoseg_dist.store.ledger import Mark, run_id
from cryoseg_dist.store.lock import project_lock
from cryoseg_dist.store.manifest import write_manifest
from cryoseg_dist.store.project import Project


@dataclass
class Session:
    """What every step of the pipeline works with.

    Attributes
    ----------
    settings : RunSettings
    project : Project
    runner : Runner
    emit : EventBus
    command : tuple of str
        The command line, for provenance.
    summing : LazyAccumulation
    runs : list of str
        Run ids that were asked for, in this session.
    """

    settings: RunSettings
    project: Project
    runner: Runner
    emit: EventBus
    command: tuple[str, ...]
    summing: "LazyAccumulation"
    runs: list[str] = field(default_factory=list)

    def accumulation(self) -> Accumulation:
        """How Fourier space is summed here."""
        return self.summing.get()

    def run_id(self, stage: str, settings: Mapping[str, Any], upstream: Mapping[str, str]) -> str:
        """Name of a stage run; its manifest is written beside the ledger."""
        name = run_id(stage, settings, upstream)
        write_manifest(self.project, name, stage, settings, upstream, self.command)
        if name not in self.runs:
            self.runs.append(name)
        return name

    def finished(self) -> None:
        """The results are there: what this session did not ask for is superseded."""
        write_current(self.project, self.runs, time.time())

    def map(
        self,
        stage: MapStage,
        name: str,
        specs: Sequence[ArraySpec],
        units: Sequence[Unit],
        *,
        quiet: bool = False,
        need_all: bool = False,
    ) -> list[Mark]:
        """Run a stage's units (see :meth:`Runner.run`)."""
        return self.runner.run(stage, name, specs, units, quiet=quiet, need_all=need_all)

    def say(self, text: str, stage: str = "") -> None:
        """Tell the user a sentence."""
        self.emit(Message(text, stage))


def build_executor(settings: EngineSettings, root: Path) -> Executor:
    """The engine that the settings name."""
    if settings.engine == "inline":
        return InlineExecutor(root, patience=settings.store_patience)
    if settings.ray_address is not None:
        forget_token()
    # Ray takes seconds to import and is not needed inline.
    from cryoseg_dist.runtime.ray_actors import RayExecutor

    return RayExecutor(
        root,
        address=settings.ray_address,
        workers=settings.workers,
        cpus_per_worker=settings.cpus_per_worker,
        gpus_per_worker=settings.gpus_per_worker,
        deadline=settings.unit_deadline,
        wait=settings.wait_for_workers,
        patience=settings.store_patience,
    )


@contextmanager
def open_session(settings: RunSettings, root: Path, sinks: Sequence[Sink], command: Sequence[str]) -> Iterator[Session]:
    """Lock and open a project, start its engine, and let go of both at the end.

    Raises
    ------
    CryosegError
        Another driver holds the project.
    """
    # What was started first has started Ray too, and ends last.
    with project_lock(root), ExitStack() as started:
        project = Project(root, create=True, store=settings.engine.store)
        said = tuple(without_secrets(word) for word in command)
        project.command = said
        project.write_json("settings.json", settings.model_dump(exclude_unset=True))
        emit = EventBus(*sinks, JsonLog(root / "events.jsonl"))
        executor = LazyExecutor(settings.engine, root, started)
        summing = LazyAccumulation(settings, root, started)
        runner = Runner(project, executor, emit, settings.engine.check_space, settings.engine.store_patience)
        yield Session(settings, project, runner, emit, said, summing)


class LazyExecutor:
    """Starts the engine with the first unit: a run that has nothing left to compute starts none; the stack ends it."""

    def __init__(self, settings: EngineSettings, root: Path, started: ExitStack) -> None:
        self._settings, self._root, self._started = settings, root, started
        self._executor: Executor | None = None

    @property
    def in_flight(self) -> int:
        """Units that workers have now."""
        return 0 if self._executor is None else self._executor.in_flight

    def map(self, stage: MapStage, units: Sequence[Unit]) -> Any:
        """Compute units on the engine."""
        if self._executor is None:
            self._executor = build_executor(self._settings, self._root)
            self._started.callback(self.close)
        return self._executor.map(stage, units)

    def close(self) -> None:
        """Stop the engine if it was started."""
        if self._executor is not None:
            self._executor.close()


class LazyAccumulation:
    """Starts Dask workers, where the settings ask for them, with the first sum; the stack ends them."""

    def __init__(self, settings: RunSettings, root: Path, started: ExitStack) -> None:
        self._settings, self._root, self._started = settings, root, started
        self._accumulation: Accumulation | None = None
        self._threads = settings.engine.workers or os.cpu_count() or 1

    def limit(self, threads: int) -> None:
        """Sum so many folds at once in this process, at most."""
        self._threads = threads

    def get(self) -> Accumulation:
        """How sums are made."""
        if self._accumulation is None:
            self._accumulation = self._start()
        if self._accumulation.address is None:
            return replace(self._accumulation, workers=self._threads)
        return self._accumulation

    def _start(self) -> Accumulation:
        engine, split = self._settings.engine, self._settings.reconstruct.split_every
        threads = Accumulation(self._root, self._threads, split, address=engine.dask_address)
        wanted = engine.dask_workers if engine.ray_address is None or engine.dask_workers is not None else -1
        if engine.engine == "inline" or engine.dask_address is not None or not wanted:
            return threads
        if engine.ray_address is not None:
            forget_token()
        from cryoseg_dist.runtime.dask_on_ray import DaskOnRay

        dask = self._started.enter_context(DaskOnRay(None if wanted < 0 else wanted, address=engine.ray_address))
        return Accumulation(self._root, dask.workers, split, address=dask.address, security=dask.security)
