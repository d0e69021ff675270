"""Orientations of class averages by common lines, and a first map of them; for particles without symmetry.

Two projections of one map share a line through the origin of Fourier space. All rays of all pairs of averages are
correlated; the best line of each pair votes on the angles between planes, hands are made the same for all pairs, and
synchronisation gives orientations (``kernels.synchronization``). From these, and from random orientations as a control,
each average is moved to where it agrees best with all others (``kernels.line_consensus``). The start that agrees best is
taken. Projections cannot tell the hand: the map, and all that is refined from it, may be the mirror image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.accumulator import empty_accumulator, enforce_friedel
from cryoseg_dist.kernels.common_lines import (
    CommonLines,
    best_lines,
    centre_scores,
    line_shifts,
    lines_of,
    pairs_of,
    score_lines,
)
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import resize_spectrum, to_fourier, to_real
from cryoseg_dist.kernels.insertion import insert
from cryoseg_dist.kernels.line_consensus import consensus, improve, pair_statistics
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.polar import polar_rays, weighted_rays
from cryoseg_dist.kernels.sharpen import low_pass_shell
from cryoseg_dist.kernels.slices import disc_pixels, take_pixels
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from cryoseg_dist.kernels.synchronization import (
    align_orientations,
    solve_origins,
    synchronise_hands,
    synchronise_rotations,
    vote,
)
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.stages.reconstruct import relative_regularisation

# Fewer averages than these say too little of one another.
LEAST_AVERAGES = 10
# Rays on the full circle, and how far a pair's best line may lie from what orientations say, in degrees.
RAYS, NEAR = 180, 10.0
# Starts whose orientations differ by less than this (median, degrees) found the same map.
SAME = 15.0
# An average that agrees less than this share of the median is left out of the map.
LEAST_AGREEMENT = 0.6
# Shares of pairs whose best line fits, and a lead over other solutions, that a solution is trusted at. In 116 simulated sets
# of 10 to 40 images (SNR 1 to 0.03) no wrong solution passed: one fitted 0.29 of the lines, with a lead of 1.03.
MANY_LINES, SOME_LINES, CLEAR = 0.33, 0.2, 1.1
# Sweeps over all orientations from the synchronised start and from a random one.
SWEEPS, RANDOM_SWEEPS = 2, 6


class CommonLinesSettings(Settings):
    """Orientations of class averages by common lines."""

    max_averages: int = Field(default=100, ge=LEAST_AVERAGES, le=200)
    """Class averages that are used, the largest first; memory and time grow with the square (100: 0.7 GB, 200: 1.6 GB)."""
    min_share: float = Field(default=0.5, ge=0)
    """Smallest class that is used, as a share of the mean number of particles a class."""
    resolution: float | None = Field(default=None, gt=0)
    """Finest detail in A that lines are compared at; a fourteenth of the diameter when not given."""
    offset_range: float | None = Field(default=None, gt=0)
    """How far an average may be off its centre in A; a twelfth of the diameter when not given."""
    starts: int = Field(default=4, ge=1, le=64)
    """Random starts beside the synchronised one: a control, and a way out where the votes fail."""
    seed: int = 0
    """Seed of the random starts."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """How far the orientations can be trusted.

    Attributes
    ----------
    consensus : float
        Mean correlation along the common lines of all pairs, in standard deviations of a pair's correlations; 0 for random
        orientations. That of the mirror image is the same.
    decoy : float
        The same of the best solution that is another one, of all starts; 0 where all starts found the same.
    reached : int
        Starts that ended in the solution, of ``starts``.
    starts : int
    line_share : float
        Share of pairs whose single best line lies within ``NEAR`` degrees of where the orientations put it in both images;
        0.006 for random orientations, up to 0.3 for wrong ones of ten or so images after the search.
    """

    consensus: float
    decoy: float
    reached: int
    starts: int
    line_share: float

    @property
    def trusted(self) -> bool:
        """Whether the solution fits many lines, or some and stands out from all others."""
        clear = self.decoy == 0.0 or self.consensus >= CLEAR * self.decoy
        return self.line_share >= MANY_LINES or (self.line_share >= SOME_LINES and clear)


@dataclass(frozen=True, slots=True)
class OrientedAverages:
    """Orientations of class averages, up to a rotation of all and the hand.

    Attributes
    ----------
    index : ndarray, int64, shape (m,)
        Which of the given averages were used.
    rotations : Tensor, float64, shape (m, 3, 3)
    origins : Tensor, float64, shape (m, 2)
        A; added to the averages to centre them.
    agreement : ndarray, float64, shape (m,)
        Consensus of each with all others.
    kept : ndarray of bool, shape (m,)
        Those that agree; the others stay out of the map.
    confidence : Confidence
    """

    index: np.ndarray
    rotations: Tensor
    origins: Tensor
    agreement: np.ndarray
    kept: np.ndarray
    confidence: Confidence


def usable(counts: np.ndarray, settings: CommonLinesSettings) -> np.ndarray:
    """Indices of the averages that are used, ascending.

    Raises
    ------
    BadInputError
        There are too few.
    """
    held = counts[counts > 0]
    least = max(1.0, settings.min_share * float(held.mean())) if len(held) else 1.0
    order = np.argsort(-counts, kind="stable")[: settings.max_averages]
    out = np.sort(order[counts[order] >= least])
    if len(out) < LEAST_AVERAGES:
        raise BadInputError(
            "common lines",
            f"at least {LEAST_AVERAGES} good class averages",
            f"{len(out)}",
            "Raise classify.n_classes, or take start.method = stochastic.",
        )
    return out


def _line_share(lines: CommonLines, rotations: Tensor) -> float:
    i, j = pairs_of(len(rotations))
    wanted = lines_of(rotations)
    apart = torch.stack((lines.angle[i, j] - wanted[i, j], lines.angle[j, i] - wanted[j, i]))
    turned = torch.stack((apart, apart + 180.0))
    error = ((turned + 180.0) % 360.0 - 180.0).abs().amax(dim=1).amin(dim=0)
    return float((error < NEAR).double().mean())


def orient(
    averages: np.ndarray, counts: np.ndarray, pixel_size: float, diameter: float, settings: CommonLinesSettings
) -> OrientedAverages:
    """Orientations and origins of class averages.

    Parameters
    ----------
    averages : ndarray, float32, shape (k, n, n)
        Corrected for the CTF, protein white on a background of mean 0.
    counts : ndarray, int64, shape (k,)
        Particles of each.
    pixel_size, diameter : float
        A.
    settings : CommonLinesSettings

    Raises
    ------
    BadInputError
        Too few averages.
    """
    index = usable(counts, settings)
    images = torch.from_numpy(averages[index].astype(np.float32))
    size = images.shape[-1]
    disc = soft_sphere(size, min(0.5 * diameter / pixel_size, 0.5 * size - 4), 4.0, 2)
    shells = int(min((size - 1) // 2, max(6.0, size * pixel_size / (settings.resolution or diameter / 14.0))))
    # Coarse pixels are enough for the rays, and shifts of one of them are fine enough.
    small = min(size, 2 * round(1.3 * shells))
    coarse = size * pixel_size / small
    images = to_real(resize_spectrum(to_fourier(images * disc), size, small), small)
    rays = polar_rays(images, RAYS, min(shells, (small - 1) // 2))
    radii = torch.arange(1, rays.shape[-1] + 1)
    # White rays have the sharpest peaks; fine details of averages are the least certain.
    power = rays.abs().square().mean(dim=(0, 1)).sqrt().clamp(min=1e-20)
    rays = weighted_rays(rays, torch.exp(-0.5 * (radii / (0.45 * shells)).square()) / power)
    reach = max(1, round((settings.offset_range or diameter / 12.0) / coarse))
    raw = score_lines(rays, torch.arange(-reach, reach + 1), small)
    lines, scores = best_lines(raw), centre_scores(raw)
    del raw
    statistics = pair_statistics(scores)

    solutions = [
        improve(scores, synchronise_rotations(synchronise_hands(vote(lines))), statistics, global_sweeps=SWEEPS)
    ]
    for start in range(settings.starts):
        generator = torch.Generator().manual_seed(settings.seed * 1009 + start)
        drawn = random_rotations(len(index), generator)
        solutions.append(improve(scores, drawn, statistics, global_sweeps=RANDOM_SWEEPS, seed=start))
    agreements = [consensus(scores, solution, statistics).numpy() for solution in solutions]
    means = [float(agreement.mean()) for agreement in agreements]
    best = int(np.argmax(means))
    rotations, agreement = solutions[best], agreements[best]
    same = [
        float(angular_distance(align_orientations(solution, rotations)[0], rotations).median()) < SAME
        for solution in solutions
    ]
    decoys = [mean for mean, alike in zip(means, same, strict=True) if not alike]
    confidence = Confidence(
        means[best], max(decoys, default=0.0), sum(same), len(solutions), _line_share(lines, rotations)
    )
    kept = agreement >= LEAST_AGREEMENT * np.median(agreement)
    angle = lines_of(rotations)
    shift, weight = line_shifts(rays, angle, torch.arange(-reach, reach + 0.1, 0.5), small)
    certain = torch.from_numpy(kept.astype(np.float64))
    origins = solve_origins(shift, angle, weight * (0.1 + certain[:, None] * certain[None])) * coarse
    return OrientedAverages(index, rotations, origins, agreement, kept, confidence)


def first_map(
    averages: np.ndarray,
    counts: np.ndarray,
    found: OrientedAverages,
    pixel_size: float,
    diameter: float,
    settings: CommonLinesSettings,
) -> Tensor:
    """The map of the oriented averages that agree, low-passed, flat outside the particle; shape (n, n, n).

    Each average counts as often as it has particles.
    """
    size = averages.shape[-1]
    radius = min(0.5 * diameter / pixel_size, 0.5 * size - 4)
    shells = min((size - 1) / 2, size * pixel_size / (settings.resolution or diameter / 14.0))
    ky, kx = disc_pixels(size, shells + 2.0)
    some = found.index[found.kept]
    images = torch.from_numpy(averages[some].astype(np.float32)) * soft_sphere(size, radius, 4.0, 2)
    spectra = take_pixels(to_fourier(images), ky, kx)
    weights = torch.from_numpy(counts[some].astype(np.float32))[:, None].expand(spectra.shape).contiguous()
    keep = torch.from_numpy(found.kept)
    total = empty_accumulator(size)
    origins_px = (found.origins[keep] / pixel_size).float()
    insert(total, spectra * weights, weights, found.rotations[keep].float(), origins_px, ky, kx, size=size)
    total = enforce_friedel(total)
    added = relative_regularisation(total, size, 2, torch.full((size // 2 + 1,), 0.1))
    volume = finish(total, size, regularisation=added)
    smooth = to_real(low_pass_shell(to_fourier(volume, 3), shells, 2.0), size, 3)
    return smooth * soft_sphere(size, radius, 4.0)
