"""From kept partial sums to maps, slab by slab through the store: no process holds a padded volume.

Each step is a set of tasks that read some planes and write whole shards of the next array:

1. ``sums``: partial sums added in the order of the folds, in double precision (a group of one fold has its sum already).
2. ``complete``, with symmetry: planes gather from those planes of the sums that the point group turns into them. Views are not
   expanded instead, for that would insert every image once for each operator, and insertion is what takes the time.
3. ``lines``: weights divided out, transformed and cropped along y, which lies within a slab; of all wanted maps at once, for reading
   the sums takes longest.
4. ``maps``: stretches of y read across all slabs, transformed and cropped along z and, from complex to real and so last, along x.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.finishing import Division, central_lines, division, shell_sums
from cryoseg_dist.kernels.interpolation import Interpolation, gridding_line
from cryoseg_dist.kernels.symmetrisation import gather, reach
from cryoseg_dist.runtime.partial_sums import SLAB_BYTES, SUM_DIMS, PartialSums, cuts, slab_planes, slab_region
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store.project import Project

Tasks = Sequence[Callable[[], Any]]
Run = Callable[[Tasks], list[Any]]


@dataclass(frozen=True)
class MapOfGroups:
    """A map of the sums of one group, or of two together.

    Attributes
    ----------
    into : int
        Its place in the array ``maps``.
    groups : tuple of int
    mean : Tensor, shape (m // 2 + 1,)
        Mean weight by padded shell.
    shrinkage : Tensor, shape (size // 2 + 1,), optional
        As of :func:`~cryoseg_dist.kernels.finishing.finish`.
    """

    into: int
    groups: tuple[int, ...]
    mean: Tensor
    shrinkage: Tensor | None = None


@dataclass(frozen=True)
class SlabFinishing:
    """The end of a reconstruction. Steps are given to a ``Run`` that calls their tasks side by side.

    Attributes
    ----------
    partials : PartialSums
        Arrays are made beside them.
    size, padding : int
        Box in pixels, and its oversampling.
    operators : Tensor, shape (s, 3, 3)
        The point group.
    folds : Mapping of str to tuple of int
        For each group, places of its partial sums.
    max_shell : float, optional
    interpolation : Interpolation
        That the slices were inserted with.
    """

    partials: PartialSums
    size: int
    padding: int
    operators: Tensor
    folds: Mapping[str, tuple[int, ...]]
    max_shell: float | None = None
    interpolation: Interpolation = Interpolation.TRILINEAR

    @property
    def project(self) -> Project:
        """Where all is kept."""
        return self.partials.project

    @property
    def maps(self) -> str:
        """The array of the maps, (map, z, y, x)."""
        return self._name("maps")

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of an accumulator."""
        return self.partials.shape

    @property
    def slabs(self) -> list[slice]:
        """Planes of each slab."""
        return self.partials.slabs

    @property
    def columns(self) -> list[slice]:
        """Stretches of y of the transposed lines."""
        line = 8 * self.shape[0] * self.shape[2]
        return cuts(self.size, max(1, min(SLAB_BYTES // line, -(-self.size // 8))))

    @property
    def has_symmetry(self) -> bool:
        """Whether there is a step 2."""
        return len(self.operators) > 1

    def create(self, n_maps: int, attributes: Mapping[str, Any]) -> None:
        """Make the arrays."""
        m, _, width, _ = self.shape
        n, planes, columns = len(self.folds), slab_planes(self.shape), self.columns[0].stop
        slab = (1, planes, m, width, 3)
        for name in ("sums", "complete") if self.has_symmetry else ("sums",):
            self._create(name, (n, *self.shape), ("group", *SUM_DIMS), "float32", slab)
        lines = (1, planes, columns, width)
        self._create("lines", (n_maps, m, self.size, width), ("map", "z", "y", "x"), "complex64", lines)
        maps, block = (n_maps, *(self.size,) * 3), (1, self.size, columns, self.size)
        self._create("maps", maps, ("map", "z", "y", "x"), "float32", block, attributes)

    def remove(self) -> None:
        """Remove what only led to the maps."""
        self.partials.remove()
        for name in ("sums", "complete", "lines"):
            self.project.remove(self._name(name))

    def add_up(self, run: Run) -> list[Tensor]:
        """Step 1: the mean weight by padded shell of each group."""
        several = [group for group, places in enumerate(self.folds.values()) if len(places) > 1]
        run([partial(self._add, group, some) for group in several for some in self.slabs])
        return run([partial(self.partials.mean_weight, places) for places in self.folds.values()])

    def complete(self, run: Run) -> list[Tensor]:
        """Step 2: the same after symmetry."""
        n = len(self.slabs)
        parts = run([partial(self._complete, group, some) for group in range(len(self.folds)) for some in self.slabs])
        return [mean_by_shell(parts[first : first + n]) for first in range(0, len(parts), n)]

    def make_maps(self, run: Run, wanted: Sequence[MapOfGroups]) -> None:
        """Steps 3 and 4."""
        size, padding, limit = self.size, self.padding, self.max_shell
        divisions = [division(w.mean, size, padding=padding, shrinkage=w.shrinkage, max_shell=limit) for w in wanted]
        made = [(w.into, w.groups, divide) for w, divide in zip(wanted, divisions, strict=True)]
        run([partial(self._lines, made, some) for some in self.slabs])
        run([partial(self._map, each.into, some) for each in wanted for some in self.columns])

    def read_total(self, group: int) -> np.ndarray:
        """The whole sum of a group, after step 1."""
        return self._read_sums(group, slice(0, self.shape[0]))

    def _name(self, array: str) -> str:
        return f"{self.partials.run}/{array}"

    def _create(
        self,
        array: str,
        shape: tuple[int, ...],
        dims: tuple[str, ...],
        dtype: str,
        shard: tuple[int, ...],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        spec = ArraySpec(self._name(array), shape, dims, dtype, shard, shard, attributes=attributes or {})
        self.project.create(spec)

    def _slab(self, array: str, index: int, planes: slice) -> Region:
        return slab_region(self._name(array), index, planes, *self.shape[1:])

    def _add(self, group: int, planes: slice) -> None:
        total = self.partials.added(list(self.folds.values())[group], planes)
        self.project.write(self._slab("sums", group, planes), total[None])

    def _read_sums(self, group: int, planes: slice) -> np.ndarray:
        """Planes of a group's sum, after step 1."""
        places = list(self.folds.values())[group]
        if len(places) == 1:
            return self.partials.read(places[0], planes)
        return self.project.read(self._slab("sums", group, planes))[0]

    def _completed(self, group: int, planes: slice) -> np.ndarray:
        if not self.has_symmetry:
            return self._read_sums(group, planes)
        return self.project.read(self._slab("complete", group, planes))[0]

    def _complete(self, group: int, planes: slice) -> tuple[np.ndarray, np.ndarray]:
        radius = self.size / 2
        out = np.zeros((planes.stop - planes.start, *self.shape[1:]), dtype=np.float32)
        wanted = reach(planes.start, planes.stop, self.shape[0], self.operators, radius, self.padding)
        for source in self.slabs:
            if np.isin(np.arange(source.start, source.stop), wanted).any():
                numbers = np.arange(source.start, source.stop)
                held = self._read_sums(group, source)
                gather(held, numbers, out, planes.start, self.operators, radius, self.padding)
        self.project.write(self._slab("complete", group, planes), out[None])
        return shell_sums(out, planes.start)

    def _lines(self, made: Sequence[tuple[int, tuple[int, ...], Division]], planes: slice) -> None:
        held = {group: self._completed(group, planes) for group in {g for _, groups, _ in made for g in groups}}
        for into, groups, divide in made:
            total = held[groups[0]]
            for group in groups[1:]:
                total = total + held[group]
            lines = central_lines(torch.from_numpy(divide(total, planes.start)), self.size, 1, self.shape[0]).numpy()
            region = slab_region(self._name("lines"), into, planes, self.size, self.shape[2])
            self.project.write(region, np.ascontiguousarray(lines)[None])

    def _map(self, into: int, columns: slice) -> None:
        m, width = self.shape[0], self.shape[2]
        read = Region(self._name("lines"), (into, 0, columns.start, 0), (into + 1, m, columns.stop, width))
        lines = central_lines(torch.from_numpy(self.project.read(read)[0]), self.size, 0, m)
        values = central_lines(lines, self.size, 2, m)
        profile = gridding_line(self.size, self.padding, interpolation=self.interpolation)
        values /= (profile[:, None, None] * profile[columns][None, :, None] * profile[None, None, :]).float()
        size = self.size
        written = Region(self.maps, (into, 0, columns.start, 0), (into + 1, size, columns.stop, size))
        self.project.write(written, values.numpy()[None])


def mean_by_shell(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """Mean weight by shell from what its slabs give."""
    total, count = (np.sum([part[i] for part in parts], axis=0) for i in (0, 1))
    return torch.from_numpy(total / count)
