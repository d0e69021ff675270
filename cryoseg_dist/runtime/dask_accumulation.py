"""Accumulation of Fourier space as a Dask computation.

One fold makes the partial sum of a group of particles; partial sums are merged slab by slab in a tree whose order is
fixed by the folds' order, so the result does not depend on scheduling. A fold's partial sum may be kept in the store
with a mark in a ledger: what is marked is read, not computed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.reading import LazyInputs
from cryoseg_dist.schema.work import ArraySpec, Outcome, Region, Unit
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project


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
        A running Dask scheduler; threads of this process when not given.
    """

    root: Path
    workers: int = 2
    split_every: int = 4
    slabs: int = 4
    address: str | None = None

    def sums(
        self,
        stage: ReduceStage,
        groups: Mapping[str, Sequence[Unit]],
        *,
        checkpoint: str | None = None,
        on_fold: Callable[[str, Sequence[Unit]], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """The sum of each group of folds, all in one computation.

        Parameters
        ----------
        stage : ReduceStage
        groups : Mapping of str to sequence of Unit
            Half sets, say.
        checkpoint : str, optional
            Run id under which partial sums are kept in the store.
        on_fold : Callable, optional
            Called with the finished group's name and its units.

        Raises
        ------
        StageFailedError
            A fold failed.
        """
        totals = {}
        with self._scheduler():
            for name, units in groups.items():
                done: dict[str, Mark] = {}
                if checkpoint is not None:
                    self._create_partials(stage, groups, checkpoint)
                    done = Ledger(Project(self.root).ledger_path(checkpoint)).load()
                folds = [
                    delayed(_fold, pure=False)(str(self.root), stage, unit, checkpoint, i, unit.key in done)
                    for i, unit in self._numbered(groups, name)
                ]
                try:
                    totals[name] = np.asarray(self._merged(folds, stage.partial_shape).compute())
                except Exception as fault:
                    raise StageFailedError(f"reconstruct: a fold of {name} failed: {fault}") from fault
                if on_fold is not None:
                    on_fold(name, units)
        return totals

    @staticmethod
    def _numbered(groups: Mapping[str, Sequence[Unit]], name: str) -> list[tuple[int, Unit]]:
        numbered = [(group, unit) for group, units in groups.items() for unit in units]
        return [(i, unit) for i, (group, unit) in enumerate(numbered) if group == name]

    def _create_partials(self, stage: ReduceStage, groups: Mapping[str, Sequence[Unit]], run: str) -> None:
        n = sum(len(units) for units in groups.values())
        shape = stage.partial_shape
        Project(self.root).create(
            ArraySpec(
                f"{run}/partials",
                (n, *shape),
                ("fold", "z", "y", "x", "part"),
                "float32",
                (1, *shape),
                (1, *shape),
                doc="Partial sums: real part, imaginary part, weight",
            )
        )

    def _merged(self, folds: Sequence[Delayed], shape: tuple[int, ...]) -> da.Array:
        """Slabs of the total, each merged in a tree of fixed order."""
        n_slabs = min(self.slabs, shape[0])
        edges = [round(i * shape[0] / n_slabs) for i in range(n_slabs + 1)]
        blocks = []
        for low, high in pairwise(edges):
            level = [delayed(_slab, pure=True)(fold, low, high) for fold in folds]
            while len(level) > 1:
                level = [
                    delayed(_add, pure=True)(level[i : i + self.split_every])
                    for i in range(0, len(level), self.split_every)
                ]
            blocks.append(da.from_delayed(level[0], (high - low, *shape[1:]), dtype=np.float32))
        return da.concatenate(blocks, axis=0)

    def _scheduler(self) -> Any:
        if self.address is None:
            return dask.config.set(scheduler="threads", num_workers=self.workers)
        from distributed import Client

        return Client(self.address, set_as_default=True)


def _slab(volume: np.ndarray, low: int, high: int) -> np.ndarray:
    return volume[low:high]


def _add(parts: Sequence[np.ndarray]) -> np.ndarray:
    total = parts[0].astype(np.float64)
    for part in parts[1:]:
        total += part
    return total.astype(np.float32)


def _fold(root: str, stage: ReduceStage, unit: Unit, checkpoint: str | None, index: int, done: bool) -> np.ndarray:
    project = Project(Path(root))
    if checkpoint is None:
        return stage.partial(unit, LazyInputs(project, unit.reads))
    region = Region(f"{checkpoint}/partials", (index, 0, 0, 0, 0), (index + 1, *stage.partial_shape))
    if done:
        return project.read(region)[0]
    total = stage.partial(unit, LazyInputs(project, unit.reads))
    project.write(region, total[None])
    with Ledger(project.ledger_path(checkpoint)) as ledger:
        ledger.append(Mark(unit.key, Outcome.DONE))
    return total
