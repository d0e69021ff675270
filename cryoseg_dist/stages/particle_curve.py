"""Resolution against the number of particles: whether more data would help."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.fsc import corrected_fsc, crossing, fsc_of_maps, randomise_phases

# Largest subsets that the line is drawn through: at low resolution the molecule's form bends the curve.
_FITTED = 4
# Gain in resolution by twice as many particles below which they are not worth taking.
_WORTH = 0.02
_NEAR_NYQUIST = 1.05


@dataclass(frozen=True, slots=True)
class ParticleCurve:
    """Resolution of subsets of particles and its course.

    Attributes
    ----------
    counts : tuple of int
        Particles of both half sets, ascending.
    resolutions : tuple of float
        A, corrected FSC at 0.143.
    slope, intercept : float
        Of the line ``1 / d^2 = slope ln(count) + intercept``.
    b_factor : float
        ``2 / slope``, A^2 (Rosenthal & Henderson 2003); infinite where resolution does not rise.
    words : str
        Whether more particles would help.
    """

    counts: tuple[int, ...]
    resolutions: tuple[float, ...]
    slope: float
    intercept: float
    b_factor: float
    words: str

    def expected(self, count: float) -> float:
        """Resolution in A that the line gives for a number of particles; infinite where it gives none."""
        value = self.slope * math.log(count) + self.intercept
        return value**-0.5 if value > 0 else math.inf


def nested_subsets(half: np.ndarray, n_sizes: int = 5, fewest: int = 50, seed: int = 0) -> list[np.ndarray]:
    """Rows of subsets that double in size, each within the next, the last holding all.

    Parameters
    ----------
    half : ndarray, int, shape (n,)
        Half set of each particle; every subset takes the same share of both.
    n_sizes : int
        Subsets at most.
    fewest : int
        Particles of the smallest at least.
    seed : int
        Of their choice.

    Returns
    -------
    list of ndarray
        Ascending row numbers.

    Raises
    ------
    BadInputError
        Too few particles for two subsets.
    """
    n = len(half)
    sizes = [n >> i for i in range(n_sizes) if i == 0 or n >> i >= fewest][::-1]
    if len(sizes) < 2:
        raise BadInputError("particles", f"at least {2 * fewest} for a curve", str(n), "Take more, or leave it out.")
    generator = np.random.default_rng(seed)
    # Rank of each particle within its half set, as a share: a subset is what lies below its own share.
    share = np.empty(n)
    for h in np.unique(half):
        members = np.flatnonzero(half == h)
        share[generator.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.argsort(share, kind="stable")
    return [np.sort(order[:size]) for size in sizes]


def masked_resolution(
    half1: Tensor, half2: Tensor, mask: Tensor, pixel_size: float, *, randomise_below: float = 0.8, seed: int = 0
) -> float:
    """Resolution in A at which the corrected FSC within a mask falls below 0.143."""
    n = half1.shape[-1]
    start = int(crossing(fsc_of_maps(half1, half2), randomise_below)) + 1
    generator = torch.Generator().manual_seed(seed)
    masked = fsc_of_maps(half1 * mask, half2 * mask)
    random = [randomise_phases(h, start, generator) * mask for h in (half1, half2)]
    return n * pixel_size / crossing(corrected_fsc(masked, fsc_of_maps(*random), start), 0.143)


def particle_curve(
    subsets: list[np.ndarray],
    half_maps: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    mask: Tensor,
    pixel_size: float,
) -> ParticleCurve:
    """Reconstruct subsets and draw the line through their resolutions.

    Parameters
    ----------
    subsets : list of ndarray
        From :func:`nested_subsets`.
    half_maps : Callable
        Gives the half maps of some rows.
    mask : Tensor, shape (n, n, n)
        Of the map of all particles, for every subset.
    pixel_size : float
        A.

    Notes
    -----
    Angles are those that all particles together gave, so small subsets do better than they would on their own: the line
    tells what further particles of the same kind add, not what a smaller data set would have given.
    """
    counts = tuple(len(s) for s in subsets)
    resolutions = tuple(masked_resolution(*half_maps(s), mask, pixel_size) for s in subsets)
    return fitted(counts, resolutions, pixel_size)


def fitted(counts: tuple[int, ...], resolutions: tuple[float, ...], pixel_size: float) -> ParticleCurve:
    """The line through the resolutions of the four largest subsets, and what it says.

    Subsets at the limit of the grid say nothing of the line and are left out of it where two others remain.
    """
    limit = 2.0 * pixel_size
    used = [i for i, d in enumerate(resolutions) if d > _NEAR_NYQUIST * limit][-_FITTED:]
    if len(used) < 2:
        used = list(range(len(counts)))[-_FITTED:]
    x = np.log(np.array(counts, dtype=float)[used])
    y = np.array(resolutions, dtype=float)[used] ** -2.0
    slope, intercept = (float(v) for v in np.polyfit(x, y, 1))
    b_factor = 2.0 / slope if slope > 0 else math.inf
    draft = ParticleCurve(counts, resolutions, slope, intercept, b_factor, "")
    return ParticleCurve(counts, resolutions, slope, intercept, b_factor, more_data_words(draft, limit))


def more_data_words(curve: ParticleCurve, limit: float) -> str:
    """Whether more particles would help, in plain words.

    Parameters
    ----------
    curve : ParticleCurve
    limit : float
        Finest resolution that the grid holds, A.
    """
    count, now = curve.counts[-1], curve.resolutions[-1]
    if now <= _NEAR_NYQUIST * limit:
        return (
            f"{count:,} particles reach the limit of the pixel size ({limit:.2f} Å): more of them need a smaller pixel."
        )
    # From where the map is, not from where the line runs.
    gain = now**-2.0 + curve.slope * math.log(2.0)
    further = gain + curve.slope * math.log(2.0)
    if curve.slope <= 0 or gain**-0.5 > (1.0 - _WORTH) * now:
        return (
            f"More particles alone would hardly help: resolution rises from {curve.resolutions[0]:.1f} Å with "
            f"{curve.counts[0]:,} to {now:.1f} Å with {count:,} and has all but levelled off. Better images, angles or classes "
            "are needed."
        )
    double, fourfold = max(gain**-0.5, limit), max(further**-0.5, limit)
    return (
        f"More particles would help: {count:,} give {now:.1f} Å, twice as many should give about {double:.1f} Å and four "
        f"times as many {fourfold:.1f} Å (B-factor of the data {curve.b_factor:.0f} Å²)."
    )
