"""Particle centres from class probabilities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoseg_dist.kernels.mask import soft_sphere


@dataclass(frozen=True, slots=True)
class Peaks:
    """Centres found in a map.

    Attributes
    ----------
    x, y : Tensor, shape (n,)
        Sub-pixel positions in pixels of the map.
    score : Tensor, shape (n,)
        Mean particle probability over the particle's core, in [0, 1]; best first.
    """

    x: Tensor
    y: Tensor
    score: Tensor


def disc_mean(values: Tensor, radius_px: float) -> Tensor:
    """Mean of a map (y, x) over a disc around each pixel, mirrored beyond the border."""
    half = math.ceil(radius_px)
    kernel = soft_sphere(2 * half + 1, radius_px - 0.5, 1.0, ndim=2)
    kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(values[None, None], (half,) * 4, mode="reflect")
    return torch.nn.functional.conv2d(padded, kernel[None, None])[0, 0]


def find_peaks(probability: Tensor, core_radius_px: float, min_distance_px: float, lowest_score: float) -> Peaks:
    """Local maxima of the mean probability over a particle's core, none closer than a distance.

    Parameters
    ----------
    probability : Tensor, float32, shape (y, x)
        Probability of the particle class, whose label is the particle's core.
    core_radius_px : float
        Radius of that label.
    min_distance_px : float
        Of two maxima closer than this, the lower goes.
    lowest_score : float
        Maxima below are left out.

    Returns
    -------
    Peaks
    """
    score = disc_mean(probability, core_radius_px)
    window = 2 * max(1, int(0.5 * min_distance_px)) + 1
    highest = torch.nn.functional.max_pool2d(score[None, None], window, stride=1, padding=window // 2)[0, 0]
    rows, columns = torch.nonzero((score == highest) & (score >= lowest_score), as_tuple=True)
    values = score[rows, columns]
    order = torch.argsort(values, descending=True, stable=True)
    rows, columns, values = rows[order], columns[order], values[order]
    keep = suppress_close(rows.float(), columns.float(), min_distance_px)
    rows, columns, values = rows[keep], columns[keep], values[keep]
    y, x = centroids(probability, rows, columns, core_radius_px)
    return Peaks(x, y, values)


def suppress_close(y: Tensor, x: Tensor, min_distance: float) -> Tensor:
    """Indices of points, best first, that have no better one closer than a distance."""
    cells: dict[tuple[int, int], list[int]] = {}
    kept = []
    for i, (yi, xi) in enumerate(zip(y.tolist(), x.tolist(), strict=True)):
        cy, cx = int(yi // min_distance), int(xi // min_distance)
        rivals = (j for dy in (-1, 0, 1) for dx in (-1, 0, 1) for j in cells.get((cy + dy, cx + dx), ()))
        if all(math.hypot(float(y[j]) - yi, float(x[j]) - xi) >= min_distance for j in rivals):
            cells.setdefault((cy, cx), []).append(i)
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def centroids(values: Tensor, rows: Tensor, columns: Tensor, radius_px: float) -> tuple[Tensor, Tensor]:
    """Centres of mass (y, x) of a map within a soft disc around given pixels, which follows the mass once."""
    half = math.ceil(radius_px) + 2
    offset = torch.arange(-half, half + 1, device=values.device)
    dy, dx = torch.meshgrid(offset, offset, indexing="ij")
    dy, dx = dy.flatten().to(values.dtype), dx.flatten().to(values.dtype)
    padded = torch.nn.functional.pad(values, (half,) * 4)
    y_index = rows[:, None] + dy.long() + half
    weight = padded[y_index, columns[:, None] + dx.long() + half]
    y, x = torch.zeros_like(rows, dtype=values.dtype), torch.zeros_like(columns, dtype=values.dtype)
    for _ in range(2):
        # A rim of one pixel, so that a core is not cut on the side it is off by.
        window = (radius_px + 1.0 - torch.hypot(dy - y[:, None], dx - x[:, None])).clamp(0.0, 1.0)
        mass = weight * window
        total = mass.sum(dim=1).clamp(min=1e-6)
        y, x = (mass * dy).sum(dim=1) / total, (mass * dx).sum(dim=1) / total
    return rows + y, columns + x


def automatic_threshold(scores: Tensor, lowest: float, highest: float) -> float:
    """Score threshold with the best expected F1 over a whole set of micrographs.

    A score estimates the probability that a peak is a particle. Keeping the ``n`` best then has the expected F1
    ``2 sum_kept s / (n + sum s)``, which has one maximum (Lipton, Elkan & Naryanaswamy 2014). Unlike a split into
    two groups it leaves a set without false peaks whole.

    Parameters
    ----------
    scores : Tensor, shape (n,)
        Scores of all candidates, in [0, 1].
    lowest, highest : float
        Bounds of the answer; ``lowest`` is the answer without candidates.
    """
    if scores.numel() == 0:
        return lowest
    ordered = torch.sort(scores.to(torch.float64), descending=True).values
    right = ordered.cumsum(0)
    kept = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    best = int((right / (kept + right[-1])).argmax())
    return float(ordered[best].clamp(lowest, highest))
