"""Resolution against the number of particles, from particles with angles."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.schema.work import Read, Unit
from cryoseg_dist.stages.particle_curve import ParticleCurve, nested_subsets, particle_curve
from cryoseg_dist.stages.reconstruct import FoldStage, complete, maps_of_sums, pose_table

# Images of a fold read at once.
PART_IMAGES = 256


def run_particle_curve(
    accumulate: Accumulation,
    particles: Particles,
    half: np.ndarray,
    mask: Tensor,
    *,
    symmetry: str,
    n_sizes: int = 5,
    padding: int = 2,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _text: None,
) -> ParticleCurve:
    """Reconstruct nested subsets, each particle inserted once, and measure the resolution of each.

    Parameters
    ----------
    accumulate : Accumulation
    particles : Particles
        Their table holds angles and origins.
    half : ndarray, int, shape (n,)
        Half set, 0 or 1, of each.
    mask : Tensor, shape (size, size, size)
    symmetry : str
    n_sizes : int
        Subsets at most, each twice the one before.
    padding : int
    seed : int
        Of the choice of subsets.
    tell : Callable
        Told of each subset.

    Raises
    ------
    BadInputError
        Too few particles.
    """
    subsets = nested_subsets(half, n_sizes, seed=seed)
    pixel, size = particles.optics.pixel_size, particles.size
    t = particles.table
    poses = pose_table(t["rot"], t["tilt"], t["psi"], t["origin_x"], t["origin_y"], pixel)
    stage = FoldStage(particles.microscope, size, padding)
    totals = [np.zeros(stage.partial_shape, np.float32) for _ in range(2)]
    held = np.empty(0, dtype=np.int64)

    def half_maps(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        nonlocal held
        tell(f"{len(rows)} of {len(particles)} particles")
        groups = {}
        for h in (0, 1):
            # What the smaller subset holds is summed already.
            fresh = np.setdiff1d(rows[half[rows] == h], held, assume_unique=True)
            groups[f"half{h + 1}"] = folds(particles, poses, fresh, h, 2 * accumulate.workers)
        sums = accumulate.sums(stage, groups)
        for h in (0, 1):
            totals[h] += sums[f"half{h + 1}"]
        held = rows
        one, two = maps_of_sums([complete(total, symmetry, size, padding) for total in totals], size, padding)
        return one, two

    return particle_curve(subsets, half_maps, mask, pixel)


def folds(particles: Particles, poses: np.ndarray, rows: np.ndarray, half: int, count: int) -> list[Unit]:
    """Some particles of a half set in a few folds, each read in parts."""
    units = []
    for number, members in enumerate(np.array_split(rows, max(1, min(count, len(rows) // PART_IMAGES)))):
        reads: dict[str, Read] = {}
        parts: list[dict[str, Any]] = []
        for first in range(0, len(members), PART_IMAGES):
            some = members[first : first + PART_IMAGES]
            reads[f"images/{len(parts)}"], which = particles.read_of(some)
            part = {"ctf": particles.transfer(some), "poses": poses[some]}
            parts.append(part if which is None else part | {"rows": which})
        units.append(Unit(f"curve/{half}/{len(rows)}/{number}", reads, {}, {"half": half, "parts": parts}))
    return units
