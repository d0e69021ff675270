"""Accumulation of Fourier space as a Dask computation.

One fold makes the partial sum of a group of particles; partial sums are merged slab by slab in a tree whose order is
fixed by the folds' order, so the result does not depend on scheduling. All groups (half sets, say) are one computation.
A fold's partial sum may be kept in the store with a mark in a ledger: what is marked is read, not computed again.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from cryoseg_dist.errors import BadInputError, CryosegError, DamagedDataError, StageFailedError, StoreUnavailableError
from cryoseg_dist.runtime.executor import MAX_ATTEMPTS, last_line, worker_name
from cryoseg_dist.runtime.reading import LazyInputs
from cryoseg_dist.schema.work import ArraySpec, Outcome, Region, Unit
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project

# Bytes of a shard of a kept partial sum: encoding takes a few times as much.
SHARD_BYTES = 16 << 20

Teller = Callable[[Mark], None]


class ReduceStage(Protocol):
    """A stage whose units' results add up."""

    @property
    def partial_shape(self) -> tuple[int, ...]:
        """Extent of a partial sum; the first axis is cut into slabs."""

    def partial(self, unit: Unit, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The float32 sum over one unit."""


@dataclass(frozen=True)
class Accumulation:
    """How sums are made.

    Attributes
    ----------
    root : Path
        The project; every fold opens it itself.
    workers : int
        Threads, where there is no scheduler.
    split_every : int
        Partial sums merged at once.
    slabs : int
        Pieces of the first axis that are merged independently.
    address : str, optional
        A running Dask scheduler, or its scheduler file (``.json``); threads of this process when not given.
    security : optional
        What :class:`distributed.Client` needs to connect to it.
    """

    root: Path
    workers: int = 2
    split_every: int = 4
    slabs: int = 4
    address: str | None = None
    security: Any = None

    def sums(
        self,
        stage: ReduceStage,
        groups: Mapping[str, Sequence[Unit]],
        *,
        checkpoint: str | None = None,
        on_fold: Teller | None = None,
        need_all: bool = True,
    ) -> dict[str, np.ndarray]:
        """The sum of each group of folds, all in one computation.

        Parameters
        ----------
        stage : ReduceStage
        groups : Mapping of str to sequence of Unit
            Half sets, say.
        checkpoint : str, optional
            Run id under which partial sums are kept in the store (see :func:`partials_name`) and marked in the ledger.
        on_fold : Callable, optional
            Called with the mark of each fold as it ends, once a fold, never twice at a time.
        need_all : bool
            A fold that fails fails the computation; otherwise it is set aside and counts as zero.

        Raises
        ------
        StageFailedError
            A fold failed, or every fold of a group was set aside.
        """
        held: dict[str, Mark] = {}
        with ExitStack() as stack:
            ledger = None
            if checkpoint is not None:
                _create_partials(Project(self.root), stage, groups, checkpoint)
                ledger = stack.enter_context(Ledger(Project(self.root).ledger_path(checkpoint)))
                held = ledger.load()
            desk = _Desk(ledger, on_fold)
            client, tell = self._connected(stack, desk)
            every = [unit for units in groups.values() for unit in units]
            place = {unit.key: i for i, unit in enumerate(every)}
            run = uuid4().hex
            arrays = {}
            for name, units in groups.items():
                jobs = [
                    _Fold(str(self.root), stage, unit, checkpoint, place[unit.key], held.get(unit.key), need_all)
                    for unit in units
                ]
                # A partial, so that Dask does not look for collections in thousands of poses.
                folds = [
                    delayed(partial(_run_fold, job, tell), pure=False)(dask_key_name=f"fold-{run}-{job.unit.key}")
                    for job in jobs
                ]
                arrays[name] = self._merged(folds, stage.partial_shape)
            totals = {name: np.empty(stage.partial_shape, dtype=np.float32) for name in groups}
            try:
                _compute(client, list(arrays.values()), list(totals.values()), self.workers)
            except CryosegError:
                raise
            except Exception as fault:
                raise StageFailedError(f"reconstruct: the sums could not be made: {last_line(fault)}") from fault
            marks = held | desk.marks
        for name, units in groups.items():
            ended = [marks[unit.key] for unit in units if unit.key in marks]
            if ended and not any(mark.outcome is Outcome.DONE for mark in ended):
                raise StageFailedError(
                    f"reconstruct: expected some of {len(units)} folds of {name} done, got 0. "
                    f"First failure, {ended[0].key}: {ended[0].reason}"
                )
        return totals

    def _connected(self, stack: ExitStack, desk: "_Desk") -> tuple[Any, Teller]:
        """A client of the scheduler, if there is one, and what folds tell of themselves to."""
        if self.address is None:
            return None, desk.take
        from distributed import Client

        place = {"scheduler_file" if self.address.endswith(".json") else "address": self.address}
        client = stack.enter_context(Client(**place, security=self.security, set_as_default=False))
        topic = f"folds-{uuid4().hex}"
        client.subscribe_topic(topic, lambda event: desk.take(Mark.from_json(event[1])))
        return client, _ToScheduler(topic)

    def _merged(self, folds: Sequence[Delayed], shape: tuple[int, ...]) -> da.Array:
        """Slabs of the total, each merged in a tree of fixed order."""
        rows = -(-shape[0] // self.slabs)
        blocks = []
        for low in range(0, shape[0], rows):
            high = min(low + rows, shape[0])
            level = [delayed(_slab, pure=True)(fold, low, high) for fold in folds]
            while len(level) > 1:
                level = [
                    delayed(_add, pure=True)(level[i : i + self.split_every])
                    for i in range(0, len(level), self.split_every)
                ]
            blocks.append(da.from_delayed(level[0], (high - low, *shape[1:]), dtype=np.float32))
        return da.concatenate(blocks, axis=0)


def partials_name(run: str) -> str:
    """The store's array of the partial sums that a run keeps."""
    return f"{run}/folds"


def _compute(client: Any, arrays: list[da.Array], targets: list[np.ndarray], workers: int) -> None:
    """Compute all arrays together, each slab into its place in the target."""
    if client is None:
        with dask.config.set(scheduler="threads", num_workers=workers):
            da.store(arrays, targets, lock=False)
        return
    for array, target in zip(client.persist(arrays), targets, strict=True):
        low = 0
        for block in array.to_delayed().ravel():
            slab = client.compute(block).result()
            target[low : low + len(slab)] = slab
            low += len(slab)


def _create_partials(project: Project, stage: ReduceStage, groups: Mapping[str, Sequence[Unit]], run: str) -> None:
    shape = stage.partial_shape
    rows = min(shape[0], max(1, SHARD_BYTES // (4 * int(np.prod(shape[1:])))))
    shard = (1, rows, *shape[1:])
    project.create(
        ArraySpec(
            partials_name(run),
            (sum(len(units) for units in groups.values()), *shape),
            ("fold", "z", "y", "x", "part"),
            "float32",
            shard,
            shard,
            doc="Partial sums: real part, imaginary part, weight",
        )
    )


def _slab(volume: np.ndarray, low: int, high: int) -> np.ndarray:
    return volume[low:high]


def _add(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum in double precision, plane by plane, for a slab in double precision would be large."""
    if len(parts) == 1:
        return parts[0]
    total = np.empty(parts[0].shape, dtype=np.float32)
    for z in range(len(total)):
        plane = parts[0][z].astype(np.float64)
        for part in parts[1:]:
            plane += part[z]
        total[z] = plane
    return total


@dataclass
class _Desk:
    """Where the driver learns of folds: marks go to the ledger, then to the listener, once a fold."""

    ledger: Ledger | None
    on_fold: Teller | None
    marks: dict[str, Mark] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, mark: Mark) -> None:
        """Take the mark of a fold; one that was lost with its worker and made again is told once."""
        with self.lock:
            if mark.key in self.marks:
                return
            if self.ledger is not None:
                self.ledger.append(mark)
            self.marks[mark.key] = mark
            if self.on_fold is not None:
                self.on_fold(mark)


@dataclass(frozen=True)
class _ToScheduler:
    """Sends marks from a Dask worker to whoever subscribed; they arrive before the fold's result does."""

    topic: str

    def __call__(self, mark: Mark) -> None:
        from distributed import get_worker

        get_worker().log_event(self.topic, {**mark.to_json(), "outcome": str(mark.outcome)})


@dataclass(frozen=True)
class _Fold:
    """One fold, as it travels to a worker."""

    root: str
    stage: ReduceStage
    unit: Unit
    checkpoint: str | None
    index: int
    held: Mark | None
    need_all: bool

    def read(self, project: Project) -> np.ndarray:
        """The partial sum that was kept."""
        out = np.empty(self.stage.partial_shape, dtype=np.float32)
        for rows, region in self._shards(project):
            out[rows] = project.read(region)[0]
        return out

    def write(self, project: Project, total: np.ndarray) -> None:
        """Keep the partial sum, shard by shard."""
        for rows, region in self._shards(project):
            project.write(region, total[rows][None])

    def _shards(self, project: Project) -> list[tuple[slice, Region]]:
        name = partials_name(str(self.checkpoint))
        extent, rows = self.stage.partial_shape, project.spec(name).shards[1]
        cuts = [slice(low, min(low + rows, extent[0])) for low in range(0, extent[0], rows)]
        return [(c, Region(name, (self.index, c.start, 0, 0, 0), (self.index + 1, c.stop, *extent[1:]))) for c in cuts]


def _run_fold(fold: _Fold, tell: Teller) -> np.ndarray:
    """The partial sum of one fold: read where it was kept, else computed, kept and told of."""
    project = Project(Path(fold.root))
    nothing = np.broadcast_to(np.float32(0), fold.stage.partial_shape)
    key = fold.unit.key
    if fold.held is not None and fold.held.outcome is not Outcome.DONE:
        if fold.need_all:
            raise StageFailedError(f"reconstruct: fold {key} failed before: {fold.held.reason}")
        return nothing
    if fold.held is not None:
        try:
            return fold.read(project)
        except Exception as fault:
            # What was kept is damaged: the images are still there.
            logging.getLogger(__name__).warning("fold %s is made again: %s", key, last_line(fault))
    started = time.perf_counter()
    outcome, reason, attempts, total = Outcome.DONE, "", 0, nothing
    while attempts < MAX_ATTEMPTS:
        attempts += 1
        try:
            total = fold.stage.partial(fold.unit, LazyInputs(project, fold.unit.reads))
            if fold.checkpoint is not None:
                fold.write(project, total)
            outcome, reason = Outcome.DONE, ""
            break
        except BadInputError as fault:
            outcome, reason, total = Outcome.SET_ASIDE, str(fault), nothing
            break
        except (StoreUnavailableError, DamagedDataError):
            # Not the fold's fault: the run stops, or makes again what is damaged.
            raise
        except Exception as fault:
            outcome, reason, total = Outcome.QUARANTINED, last_line(fault), nothing
    if fold.need_all and outcome is not Outcome.DONE:
        raise StageFailedError(f"reconstruct: fold {key} failed: {reason}")
    seconds = round(time.perf_counter() - started, 4)
    tell(Mark(key, outcome, {}, reason, seconds, attempts, worker_name()))
    return total
