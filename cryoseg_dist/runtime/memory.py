"""The memory plan: what scoring, summing and finishing maps need, reckoned before the first unit runs.

Plain arithmetic on the box, so that what does not fit is refused with its figures rather than found out by the kernel.
The model counts arrays that live together; a process needs ``PROCESS`` beside them.
"""

import math
from dataclasses import dataclass

from cryoseg_dist.errors import SettingsError
from cryoseg_dist.formats.memory import free_bytes
from cryoseg_dist.kernels.insertion_numba import PIXEL_BYTES, poses_at_once
from cryoseg_dist.runtime.partial_sums import SLAB_BYTES

GIB = 2**30
# A Python process with its libraries loaded.
PROCESS = GIB // 2
# What may be planned with, of what is free.
SHARE = 0.9


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one machine.

    Attributes
    ----------
    scoring : int
        Of all workers that match particles.
    summing : int
        Of the driver with its threads that sum Fourier space.
    finishing : int
        Of the driver while it makes maps of the sums.
    threads : int
        Folds that are summed at once.
    available : int
    """

    scoring: int
    summing: int
    finishing: int
    threads: int
    available: int

    @property
    def peak(self) -> int:
        """Scoring workers keep their state while the driver sums and finishes."""
        return self.scoring + max(self.summing, self.finishing)


def padded_bytes(size: int, padding: int, bytes_a_voxel: int) -> int:
    """Of a padded half spectrum."""
    m = size * padding
    return m * m * (m // 2 + 1) * bytes_a_voxel


def scoring_bytes(
    size: int, *, maps: int, orientations: int, pixels: int, shifts: int, batch: int, chunk: int, kept: int
) -> int:
    """What a worker holds that matches particles with maps.

    Parameters
    ----------
    size : int
        Box in pixels.
    maps : int
        Half maps or starts.
    orientations, pixels : int
        Slices of the first pass, and Fourier pixels of each.
    shifts : int
        Of the first pass.
    batch, chunk : int
        Particles and slices of one matrix product.
    kept : int
        Bytes of slices of the second pass kept for each map.
    """
    volumes = maps * padded_bytes(size, 2, 8)
    slices = maps * orientations * pixels * 8
    # Moved images, the scores of one product and its sorted copy, slices as real numbers.
    product = batch * shifts * (pixels * 16 + 3 * min(chunk, orientations) * 4) + min(chunk, orientations) * pixels * 16
    images = batch * size * size * 24
    return PROCESS + volumes + slices + maps * kept + product + images


def summing_bytes(size: int, padding: int, *, threads: int, split_every: int, groups: int) -> int:
    """What the driver holds while folds run: a sum and a batch of pixels a thread, sums that wait to be merged, the totals."""
    batches = threads * _batch_bytes(size, padding)
    return PROCESS + batches + (threads + split_every + groups) * padded_bytes(size, padding, 12)


def finishing_bytes(size: int, padding: int, *, groups: int) -> int:
    """What the driver holds while it divides, transforms and crops: sums before and after symmetry, all of them together, a spectrum
    with two copies, maps.
    """
    return (
        PROCESS
        + (2 * groups + 1) * padded_bytes(size, padding, 12)
        + 3 * padded_bytes(size, padding, 8)
        + 6 * 4 * size**3
    )


def folding_bytes(size: int, padding: int, *, threads: int) -> int:
    """What the driver holds while folds go to the store: a sum and a batch of pixels a thread, then what is encoded of the sum."""
    beside = max(_batch_bytes(size, padding), 2 * _slab_bytes(size, padding))
    return PROCESS + threads * (padded_bytes(size, padding, 12) + beside)


def slab_finishing_bytes(size: int, padding: int, *, threads: int) -> int:
    """What the driver holds while maps are made slab by slab: some copies of a slab a thread, then two half maps and what their FSC
    takes. No term holds a padded volume.
    """
    return PROCESS + max(threads * 5 * _slab_bytes(size, padding), 9 * 4 * size**3)


def _batch_bytes(size: int, padding: int) -> int:
    # A disc of half the Fourier pixels, some of whose rows begin one sooner.
    n_pixels = math.ceil(math.pi / 8 * size**2) + size
    return PIXEL_BYTES * n_pixels * poses_at_once(size * padding, n_pixels)


def _slab_bytes(size: int, padding: int) -> int:
    m = size * padding
    return max(SLAB_BYTES, m * (m // 2 + 1) * 12)


def plan_slabs(size: int, padding: int, *, threads: int, available: int) -> MemoryPlan:
    """A reconstruction that keeps its partial sums in the store: as many threads as fit, at most those wanted.

    Raises
    ------
    SettingsError
        It does not fit even with one thread; the figures say what is missing.
    """
    for n in range(max(1, threads), 0, -1):
        folding, finishing = (f(size, padding, threads=n) for f in (folding_bytes, slab_finishing_bytes))
        plan = MemoryPlan(0, folding, finishing, n, available)
        if plan.peak <= available:
            return plan
    raise SettingsError(
        [
            f"memory: expected at most {available / GIB:.1f} GiB, got {plan.peak / GIB:.1f} for a box of {size} px: sums "
            f"{folding / GIB:.1f} with one thread; finishing {finishing / GIB:.1f}. Take reconstruct.padding = 1, or larger pixels."
        ]
    )


def available_bytes() -> int:
    """What may be planned with of the free memory of this machine or container."""
    return int(SHARE * free_bytes())


def plan_memory(
    size: int,
    padding: int,
    *,
    workers: int,
    worker_bytes: int,
    threads: int,
    split_every: int,
    groups: int,
    available: int,
) -> MemoryPlan:
    """As many threads as fit, at most those wanted.

    Parameters
    ----------
    size, padding : int
        Box in pixels, and its oversampling.
    workers, worker_bytes : int
        Workers on this machine that match particles, and what each holds.
    threads : int
        Folds summed at once, at most.
    split_every, groups : int
        Partial sums merged at once, and sums made together.
    available : int
        Bytes.

    Raises
    ------
    SettingsError
        It does not fit even with one thread; the figures say what is missing.
    """
    scoring, finishing = workers * worker_bytes, finishing_bytes(size, padding, groups=groups)
    for n in range(max(1, threads), 0, -1):
        summing = summing_bytes(size, padding, threads=n, split_every=split_every, groups=groups)
        plan = MemoryPlan(scoring, summing, finishing, n, available)
        if plan.peak <= available:
            return plan
    raise SettingsError(
        [
            f"memory: expected at most {available / GIB:.1f} GiB, got {plan.peak / GIB:.1f} for a box of {size} px: "
            f"{workers} workers that score, {worker_bytes / GIB:.1f} each; sums {summing / GIB:.1f} with one thread; finishing "
            f"{finishing / GIB:.1f}. Take fewer workers (engine.workers), reconstruct.padding = 1, or larger pixels "
            "(extract.pixel_size)."
        ]
    )
