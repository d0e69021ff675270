"""Accumulation of Fourier space as a Dask computation.

One fold makes the partial sum of a group of particles. Sums in memory, for the iterations of a refinement, are merged slab by
slab in a tree whose order is fixed by the folds' order, so the result does not depend on scheduling. Partial sums that are kept
in the store, for a reconstruction, are checkpoints; :mod:`~cryoseg_dist.runtime.slab_finishing` adds them in order.
All groups (half sets, classes) are one computation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask
import dask.threaded
import numpy as np
import torch
from dask.delayed import Delayed, delayed

from cryoseg_dist.errors import CryosegError, StageFailedError
from cryoseg_dist.runtime.executor import last_line
from cryoseg_dist.runtime.folds import Desk, Fold, ReduceStage, Teller, ToScheduler
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.schema.work import Outcome, Unit
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project

if TYPE_CHECKING:
    import dask.array as da


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
        self, stage: ReduceStage, groups: Mapping[str, Sequence[Unit]], *, on_fold: Teller | None = None
    ) -> dict[str, np.ndarray]:
        """The sum of each group of folds, all in one computation, in memory.

        Parameters
        ----------
        stage : ReduceStage
        groups : Mapping of str to sequence of Unit
            Half sets, say.
        on_fold : Callable, optional
            Called with the mark of each fold as it ends, once a fold, never twice at a time.

        Raises
        ------
        StageFailedError
            A fold failed.
        """
        project, run = Project(self.root), uuid4().hex
        with ExitStack() as stack:
            client, tell = self._connected(stack, Desk(None, on_fold))
            arrays = {}
            for name, units in groups.items():
                folds = [self._delayed(Fold(project, stage, unit), tell, run) for unit in units]
                arrays[name] = self._merged(folds, stage.partial_shape)
            totals = {name: np.empty(stage.partial_shape, dtype=np.float32) for name in groups}
            with _told_in_one_line():
                _compute(client, list(arrays.values()), list(totals.values()), self.workers)
        return totals

    def keep(
        self,
        stage: ReduceStage,
        groups: Mapping[str, Sequence[Unit]],
        run: str,
        *,
        on_fold: Teller | None = None,
    ) -> dict[str, tuple[int, ...]]:
        """Keep the partial sum of each fold in the store; those that the ledger of the run holds are not made again.

        Parameters
        ----------
        stage : ReduceStage
        groups : Mapping of str to sequence of Unit
            Half sets of classes, say.
        run : str
            Run id of the ledger and of the arrays (see :class:`~cryoseg_dist.runtime.partial_sums.PartialSums`).
        on_fold : Callable, optional
            As for :meth:`sums`.

        Returns
        -------
        dict of str to tuple of int
            Places of the partial sums of each group in the array. Folds that failed are left out.

        Raises
        ------
        StageFailedError
            Every fold of a group failed.
        """
        project = Project(self.root)
        place = {unit.key: i for i, unit in enumerate(unit for units in groups.values() for unit in units)}
        sums = PartialSums(project, run, stage.partial_shape)
        sums.create(len(place))
        with ExitStack() as stack:
            ledger = stack.enter_context(Ledger(project.ledger_path(run)))
            held = ledger.load()
            desk = Desk(ledger, on_fold)
            client, tell = self._connected(stack, desk)
            missing = [
                self._delayed(Fold(project, stage, unit, sums, place[unit.key], need_all=False), tell, uuid4().hex)
                for units in groups.values()
                for unit in units
                if unit.key not in held
            ]
            self._computed(client, missing)
            marks = held | desk.marks
        kept = {}
        for group, units in groups.items():
            ended = [marks[unit.key] for unit in units]
            kept[group] = tuple(place[mark.key] for mark in ended if mark.outcome is Outcome.DONE)
            if not kept[group]:
                raise StageFailedError(
                    f"reconstruct: expected some of {len(units)} folds of {group} done, got 0. "
                    f"First failure, {ended[0].key}: {ended[0].reason}"
                )
        return kept

    def run(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Call each task, side by side; what they return, in order.

        Raises
        ------
        CryosegError
            As a task raised it, or a summary of what else it raised.
        """
        with ExitStack() as stack:
            client, _ = self._connected(stack, Desk(None, None))
            run = uuid4().hex
            calls = [delayed(task, pure=False)(dask_key_name=f"task-{run}-{i}") for i, task in enumerate(tasks)]
            return self._computed(client, calls)

    def _computed(self, client: Any, calls: Sequence[Delayed]) -> list[Any]:
        with _told_in_one_line():
            if client is None:
                with _threads(self.workers) as pool:
                    return list(dask.compute(*calls, scheduler=dask.threaded.get, pool=pool))
            from distributed import as_completed

            futures = client.compute(list(calls))
            place = {future.key: i for i, future in enumerate(futures)}
            out: list[Any] = [None] * len(futures)
            for future in as_completed(futures, loop=client.loop):
                out[place[future.key]] = future.result()
                # Else it would be computed again, were its worker to die later.
                future.release()
            return out

    def _delayed(self, fold: Fold, tell: Teller, run: str) -> Delayed:
        # A partial, so that Dask does not look for collections in thousands of poses.
        return delayed(partial(fold.run, tell), pure=False)(dask_key_name=f"fold-{run}-{fold.unit.key}")

    def _connected(self, stack: ExitStack, desk: Desk) -> tuple[Any, Teller]:
        """A client of the scheduler, if there is one, and what folds tell of themselves to."""
        if self.address is None:
            return None, desk.take
        from distributed import Client

        place = {"scheduler_file" if self.address.endswith(".json") else "address": self.address}
        try:
            client = stack.enter_context(Client(**place, security=self.security, set_as_default=False))
        except Exception as fault:
            raise StageFailedError(
                f"{self.address}: expected a Dask scheduler that lets this client in, got {last_line(fault)}. "
                "Check engine.dask_address and what distributed.comm says of TLS."
            ) from fault
        topic = f"folds-{uuid4().hex}"
        client.subscribe_topic(topic, lambda event: desk.take(Mark.from_json(event[1])))
        return client, ToScheduler(topic)

    def _merged(self, folds: Sequence[Delayed], shape: tuple[int, ...]) -> "da.Array":
        """Slabs of the total, each merged in a tree of fixed order."""
        import dask.array as da

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


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except CryosegError:
        raise
    except Exception as fault:
        raise StageFailedError(f"reconstruct: the sums could not be made: {last_line(fault)}") from fault


def _threads(workers: int) -> ThreadPoolExecutor:
    """Threads that share the cores: torch would start as many again in each."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def _compute(client: Any, arrays: list["da.Array"], targets: list[np.ndarray], workers: int) -> None:
    """Compute all arrays together, each slab into its place in the target."""
    if client is None:
        import dask.array as da

        with _threads(workers) as pool, dask.config.set(scheduler=dask.threaded.get, pool=pool):
            da.store(arrays, targets, lock=False)
        return
    for array, target in zip(client.persist(arrays), targets, strict=True):
        low = 0
        for block in array.to_delayed().ravel():
            slab = client.compute(block).result()
            target[low : low + len(slab)] = slab
            low += len(slab)


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
