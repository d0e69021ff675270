"""2D classification: new averages from the sums, and which of them show the particle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cryoseg_dist.kernels.fourier import radius, shell_mean, to_fourier, to_real
from cryoseg_dist.kernels.mask import cosine_edge, distance_from_centre, soft_sphere
from cryoseg_dist.kernels.planes import complete_planes, finish_planes, plane_weights
from cryoseg_dist.stages.classify import PADDING, ClassifySettings

# Signal-to-noise ratio that no shell's estimate falls below: it keeps the filter finite.
LEAST_RATIO = 1e-3


@dataclass(frozen=True)
class Averages:
    """Class averages of one iteration.

    Attributes
    ----------
    images : Tensor, float32, shape (K, n, n)
    references : Tensor, float32, shape (K, n, n)
        The same, flat outside the particle's disc.
    ratio : Tensor, float32, shape (K, n // 2 + 1)
        Spectral signal-to-noise ratio.
    """

    images: Tensor
    references: Tensor
    ratio: Tensor


def average(
    total: Tensor, size: int, pixel_size: float, diameter: float, settings: ClassifySettings, max_shell: float | None
) -> Averages:
    """Averages of an accumulator, Wiener-filtered by their own signal-to-noise ratio.

    The noise variance of a component of an unfiltered average is one over its weight; what its spectrum holds above that is signal.

    Parameters
    ----------
    total : Tensor, float32, shape (K, m, m // 2 + 1, 3)
    max_shell : float, optional
        Softly cut beyond it.
    """
    whole = complete_planes(total)
    weight = plane_weights(whole, PADDING)
    disc = soft_sphere(size, min(0.5 * diameter / pixel_size, 0.5 * size - 4), 4.0, 2)
    raw = finish_planes(whole, size, padding=PADDING) * disc
    # The disc takes its share of the noise.
    power = shell_mean(to_fourier(raw).abs().square(), size) / disc.square().mean()
    ratio = (0.5 * power * weight - 1.0).clamp(min=LEAST_RATIO)
    regularisation = weight / (settings.tau_fudge * ratio)
    images = finish_planes(whole, size, padding=PADDING, regularisation=regularisation)
    if max_shell is not None:
        low_pass = cosine_edge(radius((size, size)) * size - max_shell, 2.0)
        images = to_real(to_fourier(images) * low_pass, size)
    return Averages(images, images * disc, ratio)


def refill(images: Tensor, counts: np.ndarray, iteration: int, settings: ClassifySettings) -> Tensor:
    """Give empty classes a new start: the largest class, tinted with another."""
    empty = np.flatnonzero(counts < max(2.0, 0.02 * counts.mean()))
    if len(empty) == 0 or len(empty) == len(counts):
        return images
    rng = np.random.default_rng([settings.seed, iteration, 1])
    held = np.setdiff1d(np.arange(len(counts)), empty)
    held = held[np.argsort(-counts[held], kind="stable")]
    out = images.clone()
    for i, target in enumerate(empty):
        other = int(rng.choice(held))
        out[int(target)] = 0.7 * images[int(held[i % len(held)])] + 0.3 * images[other]
    return out


def measured_noise(records: Sequence[Mapping[str, Any]], old: np.ndarray) -> np.ndarray:
    """Noise variance of a component by shell; shells without pixels keep theirs."""
    total = np.sum([r["noise"] for r in records], axis=0)
    count = np.sum([r["count"] for r in records], axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), old).astype(np.float32)


def resolutions(ratio: np.ndarray, size: int, pixel_size: float, diameter: float) -> np.ndarray:
    """Where each class's signal-to-noise ratio first falls below 1, in A; ``inf`` where it never rises above.

    Waves longer than half the particle do not count: background gradients live there.
    """
    skipped = min(int(2.0 * size * pixel_size / diameter), ratio.shape[1] - 2)
    below = ratio[:, skipped + 1 :] < 1.0
    first = np.where(below.any(axis=1), below.argmax(axis=1), below.shape[1])
    return np.where(first > 0, size * pixel_size / (skipped + first), np.inf)


def contrasts(images: np.ndarray, pixel_size: float, diameter: float) -> np.ndarray:
    """Power density of what is brighter than the background, inside the particle's disc over the ring around it.

    Protein is white; the dark rim that defocus gives a particle speaks for it.
    """
    size = images.shape[-1]
    distance = distance_from_centre(size, 2).numpy()
    border = min(0.5 * diameter / pixel_size, 0.5 * size - 4)
    inner, ring = distance <= border, (distance > border) & (distance <= max(1.25 * border, border + 2))
    bright = np.square(np.maximum(images, 0.0))
    return np.asarray(bright[:, inner].mean(axis=1) / np.maximum(bright[:, ring].mean(axis=1), 1e-12))


def select(
    images: np.ndarray,
    ratio: np.ndarray,
    counts: np.ndarray,
    pixel_size: float,
    diameter: float,
    settings: ClassifySettings,
) -> np.ndarray:
    """Which classes are good: resolved, not too small, with their power inside the particle's disc.

    Parameters
    ----------
    images : ndarray, shape (K, n, n)
    ratio : ndarray, shape (K, n // 2 + 1)
    counts : ndarray, shape (K,)

    Returns
    -------
    ndarray of bool, shape (K,)
        At least one, and never so few that more than ``max_rejected`` of the particles go: the best resolved of the
        others come back until it holds.
    """
    if settings.keep is not None:
        return np.isin(np.arange(1, len(counts) + 1), settings.keep)
    # A small class is judged by what it would be with the mean number of particles.
    scale = np.maximum(counts.mean() / np.maximum(counts, 1), 1.0)
    sharp = resolutions(ratio * scale[:, None], images.shape[-1], pixel_size, diameter)
    filled = counts >= max(2.0, settings.min_share * counts.sum() / len(counts))
    best = sharp[filled].min() if filled.any() else sharp.min()
    good = filled & (sharp <= settings.max_relative_resolution * best) & np.isfinite(sharp)
    good &= contrasts(images, pixel_size, diameter) >= settings.min_contrast
    order = np.lexsort((-counts, sharp))
    for i in order:
        if good.any() and counts[~good].sum() <= settings.max_rejected * counts.sum():
            break
        good[i] |= counts[i] > 0
    return good
