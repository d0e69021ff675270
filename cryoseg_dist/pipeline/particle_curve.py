"""Resolution against the number of particles, from particles with angles."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from cryoseg_dist.pipeline.particle_folds import PART_IMAGES, fold_of
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.stages.particle_curve import ParticleCurve, nested_subsets, particle_curve
from cryoseg_dist.stages.reconstruct import FoldStage, complete, maps_of_sums, pose_table


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
    """Some particles of a half set in a few folds."""
    stretches = np.array_split(rows, max(1, min(count, len(rows) // PART_IMAGES)))
    return [
        fold_of(f"curve/{half}/{len(rows)}/{i}", particles, some, poses[some], half) for i, some in enumerate(stretches)
    ]
