"""From kept partial sums to maps, slab by slab through the store: no process holds a padded volume.

Each step is a set of tasks that read some planes and write whole shards of the next array:

1. ``sums``: partial sums added in the order of the folds, in double precision (a group of one fold has its sum already); the plane
   x = 0 also by itself, ``edges``, for Friedel mates lie in other slabs.
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
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store.project import Project

# Bytes of a shard, which is what a task takes at once.
SLAB_BYTES = 32 << 20
SUM_DIMS = ("group", "z", "y", "x", "part")

Tasks = Sequence[Callable[[], Any]]
Run = Callable[[Tasks], list[Any]]


def slab_planes(shape: Sequence[int]) -> int:
    """Planes of a slab of an accumulator of that shape."""
    return max(1, min(SLAB_BYTES // (4 * int(np.prod(shape[1:]))), -(-shape[0] // 8)))


def cuts(extent: int, width: int) -> list[slice]:
    """Stretches of at most ``width``."""
    return [slice(low, min(low + width, extent)) for low in range(0, extent, width)]


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
    project : Project
    run : str
        Run id under which arrays are made.
    size, padding : int
        Box in pixels, and its oversampling.
    operators : Tensor, shape (s, 3, 3)
        The point group.
    folds : Mapping of str to tuple of int
        For each group, places of its partial sums in the array ``partials``.
    partials : str
    max_shell : float, optional
    interpolation : Interpolation
        That the slices were inserted with.
    """

    project: Project
    run: str
    size: int
    padding: int
    operators: Tensor
    folds: Mapping[str, tuple[int, ...]]
    partials: str
    max_shell: float | None = None
    interpolation: Interpolation = Interpolation.TRILINEAR

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Extent of an accumulator."""
        m = self.size * self.padding
        return (m, m, m // 2 + 1, 3)

    @property
    def slabs(self) -> list[slice]:
        """Planes of each slab."""
        return cuts(self.shape[0], slab_planes(self.shape))

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
            self._create(name, (n, *self.shape), SUM_DIMS, "float32", slab)
        self._create("edges", (n, m, m, 3), ("group", "z", "y", "part"), "float32", (1, planes, m, 3))
        lines = (1, planes, columns, width)
        self._create("lines", (n_maps, m, self.size, width), ("map", "z", "y", "x"), "complex64", lines)
        maps, block = (n_maps, *(self.size,) * 3), (1, self.size, columns, self.size)
        self._create("maps", maps, ("map", "z", "y", "x"), "float32", block, attributes)

    def remove(self) -> None:
        """Remove what only led to the maps."""
        for name in ("sums", "complete", "edges", "lines"):
            self.project.remove(self._name(name))

    def add_up(self, run: Run) -> list[Tensor]:
        """Step 1: the mean weight by padded shell of each group."""
        return self._means(run, self._total)

    def complete(self, run: Run) -> list[Tensor]:
        """Step 2: the same after symmetry."""
        return self._means(run, self._complete)

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
        return f"{self.run}/{array}"

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

    def _region(self, array: str, index: int, planes: slice, *others: slice | int) -> Region:
        """Planes of an array's item; ``others`` are the further axes, as stretches or whole."""
        ends = [slice(0, o) if isinstance(o, int) else o for o in others]
        start = (index, planes.start, *(e.start for e in ends))
        return Region(array, start, (index + 1, planes.stop, *(e.stop for e in ends)))

    def _slab(self, array: str, index: int, planes: slice) -> Region:
        return self._region(array, index, planes, *self.shape[1:])

    def _means(self, run: Run, step: Callable[[int, slice], tuple[np.ndarray, np.ndarray]]) -> list[Tensor]:
        n = len(self.slabs)
        parts = run([partial(step, g, some) for g in range(len(self.folds)) for some in self.slabs])
        return [mean_by_shell(parts[first : first + n]) for first in range(0, len(parts), n)]

    def _places(self, group: int) -> tuple[int, ...]:
        return self.folds[list(self.folds)[group]]

    def _read_sums(self, group: int, planes: slice) -> np.ndarray:
        """Planes of a group's sum, after step 1."""
        places = self._places(group)
        array, index = (self.partials, places[0]) if len(places) == 1 else (self._name("sums"), group)
        return self.project.read(self._slab(array, index, planes))[0]

    def _total(self, group: int, planes: slice) -> tuple[np.ndarray, np.ndarray]:
        places = self._places(group)
        if len(places) == 1:
            out = self._read_sums(group, planes)
        else:
            total = np.zeros((planes.stop - planes.start, *self.shape[1:]), dtype=np.float64)
            for fold in places:
                total += self.project.read(self._slab(self.partials, fold, planes))[0]
            out = total.astype(np.float32)
            self.project.write(self._slab(self._name("sums"), group, planes), out[None])
        edge = self._region(self._name("edges"), group, planes, self.shape[1], 3)
        self.project.write(edge, np.ascontiguousarray(out[:, :, 0])[None])
        return shell_sums(out, planes.start, has_mates=False)

    def _with_mates(self, group: int, planes: slice) -> np.ndarray:
        """A slab of the sums whose plane x = 0 is completed."""
        m = self.shape[0]
        slab = self._read_sums(group, planes)
        mirrored = (m - np.arange(planes.start, planes.stop)) % m
        low, high = int(mirrored.min()), int(mirrored.max()) + 1
        if planes.start == 0:
            # Plane 0 is its own mirror image; the others lie at the end.
            rest = mirrored[1:]
            low, high = (int(rest.min()), m) if len(rest) else (m, m)
        edges = (
            self.project.read(self._region(self._name("edges"), group, slice(low, high), m, 3))[0]
            if high > low
            else None
        )
        flipped = (m - np.arange(m)) % m
        sign = np.array((1.0, -1.0, 1.0), dtype=np.float32)
        mates = np.empty((len(mirrored), m, 3), dtype=np.float32)
        for i, z in enumerate(mirrored):
            source = slab[0, :, 0] if z == 0 else edges[z - low]  # type: ignore[index]
            mates[i] = source[flipped] * sign
        slab[:, :, 0] += mates
        return slab

    def _completed(self, group: int, planes: slice) -> np.ndarray:
        if not self.has_symmetry:
            return self._with_mates(group, planes)
        return self.project.read(self._slab(self._name("complete"), group, planes))[0]

    def _complete(self, group: int, planes: slice) -> tuple[np.ndarray, np.ndarray]:
        radius = self.size / 2
        out = np.zeros((planes.stop - planes.start, *self.shape[1:]), dtype=np.float32)
        wanted = reach(planes.start, planes.stop, self.shape[0], self.operators, radius, self.padding)
        for source in self.slabs:
            if np.isin(np.arange(source.start, source.stop), wanted).any():
                numbers = np.arange(source.start, source.stop)
                held = self._with_mates(group, source)
                gather(held, numbers, out, planes.start, self.operators, radius, self.padding)
        self.project.write(self._slab(self._name("complete"), group, planes), out[None])
        return shell_sums(out, planes.start)

    def _lines(self, made: Sequence[tuple[int, tuple[int, ...], Division]], planes: slice) -> None:
        held = {group: self._completed(group, planes) for group in {g for _, groups, _ in made for g in groups}}
        for into, groups, divide in made:
            total = held[groups[0]]
            for group in groups[1:]:
                total = total + held[group]
            lines = central_lines(torch.from_numpy(divide(total, planes.start)), self.size, 1, self.shape[0]).numpy()
            region = self._region(self._name("lines"), into, planes, self.size, self.shape[2])
            self.project.write(region, np.ascontiguousarray(lines)[None])

    def _map(self, into: int, columns: slice) -> None:
        m, width = self.shape[0], self.shape[2]
        read = self._region(self._name("lines"), into, slice(0, m), columns, width)
        lines = central_lines(torch.from_numpy(self.project.read(read)[0]), self.size, 0, m)
        values = central_lines(lines, self.size, 2, m)
        profile = gridding_line(self.size, self.padding, interpolation=self.interpolation)
        values /= (profile[:, None, None] * profile[columns][None, :, None] * profile[None, None, :]).float()
        written = self._region(self._name("maps"), into, slice(0, self.size), columns, self.size)
        self.project.write(written, values.numpy()[None])


def mean_by_shell(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """Mean weight by shell from what its slabs give."""
    total, count = (np.sum([part[i] for part in parts], axis=0) for i in (0, 1))
    return torch.from_numpy(total / count)
