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
    """Centres of mass of a map within a disc around given pixels."""
    half = math.ceil(radius_px)
    offset = torch.arange(-half, half + 1)
    dy, dx = torch.meshgrid(offset, offset, indexing="ij")
    inside = (dy * dy + dx * dx <= radius_px * radius_px).flatten()
    dy, dx = dy.flatten()[inside], dx.flatten()[inside]
    padded = torch.nn.functional.pad(values, (half,) * 4)
    weight = padded[rows[:, None] + dy + half, columns[:, None] + dx + half]
    total = weight.sum(dim=1).clamp(min=1e-6)
    return rows + (weight * dy).sum(dim=1) / total, columns + (weight * dx).sum(dim=1) / total


def automatic_threshold(scores: Tensor, lowest: float, highest: float) -> float:
    """Threshold that best splits scores into two groups (Otsu 1979), kept within bounds."""
    if scores.numel() < 2:
        return lowest
    ordered = torch.sort(scores.to(torch.float64)).values
    n = ordered.numel()
    total = ordered.cumsum(0)
    count = torch.arange(1, n, dtype=torch.float64)
    low_mean = total[:-1] / count
    high_mean = (total[-1] - total[:-1]) / (n - count)
    between = count * (n - count) * (high_mean - low_mean).square()
    split = int(between.argmax())
    return float((0.5 * (ordered[split] + ordered[split + 1])).clamp(lowest, highest))
