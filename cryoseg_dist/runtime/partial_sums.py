"""The partial sums that a run keeps: one of each fold, cut into slabs of planes, with its weights by shell."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.finishing import shell_sums
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store.project import Project

# Bytes of a shard, which is what a task takes at once.
SLAB_BYTES = 32 << 20
SUM_DIMS = ("z", "y", "x", "part")


def slab_planes(shape: Sequence[int]) -> int:
    """Planes of a slab of an accumulator of that shape."""
    return max(1, min(SLAB_BYTES // (4 * int(np.prod(shape[1:]))), -(-shape[0] // 8)))


def cuts(extent: int, width: int) -> list[slice]:
    """Stretches of at most ``width``."""
    return [slice(low, min(low + width, extent)) for low in range(0, extent, width)]


def slab_region(array: str, index: int, planes: slice, *others: int) -> Region:
    """Planes of an array's item, the further axes whole."""
    return Region(array, (index, planes.start, *(0,) * len(others)), (index + 1, planes.stop, *others))


@dataclass(frozen=True)
class PartialSums:
    """Partial sums in the store, float32 accumulators of ``shape``, of which the plane x = 0 holds its Friedel mates.

    Attributes
    ----------
    project : Project
    run : str
        Run id under which they are kept.
    shape : tuple of int
        ``(m, m, m // 2 + 1, 3)``.
    """

    project: Project
    run: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The array of the sums, (fold, z, y, x, part)."""
        return f"{self.run}/folds"

    @property
    def weights(self) -> str:
        """The array of what a fold has of weight, and of voxels, by shell, (fold, 2, m // 2 + 1)."""
        return f"{self.run}/fold_weights"

    @property
    def slabs(self) -> list[slice]:
        """Planes of each slab."""
        return cuts(self.shape[0], slab_planes(self.shape))

    def create(self, n_folds: int) -> None:
        """Make the arrays."""
        shard = (1, slab_planes(self.shape), *self.shape[1:])
        doc = "Partial sums: real part, imaginary part, weight"
        dims = ("fold", *SUM_DIMS)
        self.project.create(ArraySpec(self.name, (n_folds, *self.shape), dims, "float32", shard, shard, doc=doc))
        shells = (1, 2, self.shape[0] // 2 + 1)
        doc = "Weight and voxels by shell"
        spec = ArraySpec(
            self.weights, (n_folds, *shells[1:]), ("fold", "part", "shell"), "float64", shells, shells, doc=doc
        )
        self.project.create(spec)

    def write(self, place: int, total: np.ndarray) -> None:
        """Keep the sum of a fold, shard by shard."""
        for some in self.slabs:
            self.project.write(slab_region(self.name, place, some, *self.shape[1:]), total[some][None])
        self.project.write(self._weights_of(place), np.array(shell_sums(total, 0))[None])

    def regions(self, place: int) -> tuple[Region, Region]:
        """What :meth:`write` writes of a fold."""
        return slab_region(self.name, place, slice(0, self.shape[0]), *self.shape[1:]), self._weights_of(place)

    def _weights_of(self, place: int) -> Region:
        return Region(self.weights, (place, 0, 0), (place + 1, 2, self.shape[0] // 2 + 1))

    def read(self, place: int, planes: slice) -> np.ndarray:
        """Some planes of a fold's sum."""
        return self.project.read(slab_region(self.name, place, planes, *self.shape[1:]))[0]

    def added(self, places: Iterable[int], planes: slice) -> np.ndarray:
        """The same of the sum of some folds, added in their order and in double precision."""
        total = np.zeros((planes.stop - planes.start, *self.shape[1:]), dtype=np.float64)
        for place in places:
            total += self.read(place, planes)
        return total.astype(np.float32)

    def mean_weight(self, places: Sequence[int]) -> Tensor:
        """Mean weight by shell of the sum of some folds, float64, (m // 2 + 1,)."""
        read = [self.project.read(self._weights_of(place))[0] for place in places]
        return torch.from_numpy(np.sum([weight for weight, _ in read], axis=0) / read[0][1])

    def remove(self) -> None:
        """Remove them."""
        self.project.remove(self.name)
        self.project.remove(self.weights)
