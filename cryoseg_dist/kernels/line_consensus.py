"""Orientations that agree best with the correlations of all rays of all pairs of images.

Voting uses the best line of each pair alone. Given orientations for all other images, each orientation of one image names a
ray pair with every other: the sum of their correlations is a score to search over, far more robust than single maxima.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.common_lines import LineScores, pair_number
from cryoseg_dist.kernels.orientation_grid import angular_step, neighbours, orientation_grid, psi_angles
from cryoseg_dist.kernels.so3 import angular_distance


def pair_statistics(scores: LineScores) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each pair's correlations, float32, shapes (p,)."""
    mean = np.empty(len(scores.values), dtype=np.float32)
    deviation = np.empty_like(mean)
    for p, table in enumerate(scores.values):
        values = table.astype(np.float32)
        mean[p], deviation[p] = values.mean(), values.std()
    return mean, np.maximum(deviation, 1e-3)


@numba.njit(nogil=True, inline="always")
def _turn(y: float, x: float) -> float:
    """Direction of (x, y) in turns, -0.5 to 0.5, within a hundredth of a degree.

    A polynomial for the arc tangent of 0 to 1 (Abramowitz & Stegun 1964, 4.4.49), far faster than the library's.
    """
    ax, ay = abs(x), abs(y)
    large = max(ax, ay)
    if large == 0.0:
        return 0.0
    t = min(ax, ay) / large
    t2 = t * t
    turn = t * (0.9998660 + t2 * (-0.3302995 + t2 * (0.1801410 + t2 * (-0.0851330 + t2 * 0.0208351)))) / (2.0 * np.pi)
    if ay > ax:
        turn = 0.25 - turn
    if x < 0.0:
        turn = 0.5 - turn
    return -turn if y < 0.0 else turn


@numba.njit(nogil=True, inline="always")
def _interpolated(table: np.ndarray, mine: float, other: float, first: bool) -> float:
    """Bilinear score of the directions ``mine`` and ``other`` in turns; rows are ``mine`` where it is the first image."""
    half, full = table.shape
    row, column = (mine, other) if first else (other, mine)
    a, b = (row - np.floor(row)) * full, (column - np.floor(column)) * full
    ia, ib = int(a), int(b)
    da, db = a - ia, b - ib
    total = 0.0
    for k in range(2):
        ra, low = ia + k, ib
        # Ray a + half is the opposite of ray a, its partner's too. No division: it would take most of the time.
        if ra >= full:
            ra -= full
        if ra >= half:
            ra -= half
            low += half
        if low >= full:
            low -= full
        high = low + 1 if low + 1 < full else 0
        total += (da if k else 1.0 - da) * ((1.0 - db) * table[ra, low] + db * table[ra, high])
    return total


@numba.njit(nogil=True, cache=True, fastmath=True)
def _add_scores(
    values: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    rotations: np.ndarray,
    image: int,
    candidates: np.ndarray,
    out: np.ndarray,
) -> None:
    n = rotations.shape[0]
    for j in range(n):
        if j == image:
            continue
        first = image < j
        p = pair_number(image, j, n) if first else pair_number(j, image, n)
        table = values[p]
        s = rotations[j]
        scale = 1.0 / deviation[p]
        for c in range(candidates.shape[0]):
            r = candidates[c]
            # The line r[2] x s[2] in the axes of either image; where slices are parallel, all lines are common.
            x = -(r[1, 0] * s[2, 0] + r[1, 1] * s[2, 1] + r[1, 2] * s[2, 2])
            y = r[0, 0] * s[2, 0] + r[0, 1] * s[2, 1] + r[0, 2] * s[2, 2]
            u = r[2, 0] * s[1, 0] + r[2, 1] * s[1, 1] + r[2, 2] * s[1, 2]
            v = -(r[2, 0] * s[0, 0] + r[2, 1] * s[0, 1] + r[2, 2] * s[0, 2])
            if abs(x) + abs(y) < 1e-9:
                x, y = 1.0, 0.0
                u = r[0, 0] * s[0, 0] + r[0, 1] * s[0, 1] + r[0, 2] * s[0, 2]
                v = r[0, 0] * s[1, 0] + r[0, 1] * s[1, 1] + r[0, 2] * s[1, 2]
            mine, other = _turn(y, x), _turn(v, u)
            out[c] += (_interpolated(table, mine, other, first) - mean[p]) * scale


@numba.njit(nogil=True, cache=True, fastmath=True)
def _add_grid_scores(
    values: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    rotations: np.ndarray,
    image: int,
    views: np.ndarray,
    out: np.ndarray,
) -> None:
    """As `_add_scores`, for views times evenly spaced in-plane turns, (v, psi): the line turns with the image."""
    n, n_psi = rotations.shape[0], out.shape[1]
    for j in range(n):
        if j == image:
            continue
        first = image < j
        p = pair_number(image, j, n) if first else pair_number(j, image, n)
        table = values[p]
        s = rotations[j]
        scale = 1.0 / deviation[p]
        for c in range(views.shape[0]):
            r = views[c]
            x = -(r[1, 0] * s[2, 0] + r[1, 1] * s[2, 1] + r[1, 2] * s[2, 2])
            y = r[0, 0] * s[2, 0] + r[0, 1] * s[2, 1] + r[0, 2] * s[2, 2]
            u = r[2, 0] * s[1, 0] + r[2, 1] * s[1, 1] + r[2, 2] * s[1, 2]
            v = -(r[2, 0] * s[0, 0] + r[2, 1] * s[0, 1] + r[2, 2] * s[0, 2])
            mine, other = _turn(y, x), _turn(v, u)
            for q in range(n_psi):
                out[c, q] += (_interpolated(table, mine - q / n_psi, other, first) - mean[p]) * scale


def consensus(scores: LineScores, rotations: Tensor, statistics: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """Mean standardised correlation along each image's common lines with all others, shape (n,)."""
    n = scores.n_images
    out = torch.empty(n, dtype=torch.float64)
    for i in range(n):
        out[i] = float(_scores(scores, rotations, i, rotations[i : i + 1], statistics)[0]) / max(n - 1, 1)
    return out


def _scores(
    scores: LineScores, rotations: Tensor, image: int, candidates: Tensor, statistics: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    out = np.zeros(len(candidates))
    held, tried = rotations.double().contiguous().numpy(), candidates.double().contiguous().numpy()
    _add_scores(scores.values, *statistics, held, image, tried, out)
    return out


def improve(
    scores: LineScores,
    rotations: Tensor,
    statistics: tuple[np.ndarray, np.ndarray],
    *,
    order: int = 2,
    global_sweeps: int = 2,
    local_sweeps: int = 4,
    seed: int = 0,
) -> Tensor:
    """Move one image after the other to the orientation that agrees best with all others.

    Parameters
    ----------
    scores : LineScores
    rotations : Tensor, float64, shape (n, 3, 3)
        Start.
    statistics : tuple of ndarray
        Of :func:`pair_statistics`.
    order : int
        HEALPix order of the global search; its best orientation is refined to an eighth of the step.
    global_sweeps, local_sweeps : int
        Sweeps over all images with a search of all orientations (until no image jumps), then with a local one that narrows.
    seed : int
        Of the order of the images.

    Returns
    -------
    Tensor, float64, shape (n, 3, 3)
    """
    out = rotations.double().clone()
    rng = np.random.default_rng(seed)
    grid = orientation_grid(order)
    step = angular_step(order)
    n_psi = len(psi_angles(order))
    views = grid[::n_psi].contiguous()

    def best(image: int, candidates: Tensor) -> Tensor:
        found = _scores(scores, out, image, candidates, statistics)
        return candidates[int(found.argmax())]

    def best_anywhere(image: int) -> Tensor:
        found = np.zeros((len(views), n_psi))
        held = out.contiguous().numpy()
        _add_grid_scores(scores.values, *statistics, held, image, views.numpy(), found)
        # The present orientation stays unless another is better.
        return best(image, torch.stack((out[image], grid[int(found.argmax())])))

    def refined(image: int, start: Tensor, width: float) -> Tensor:
        for narrower in (width, 0.5 * width, 0.25 * width):
            start = best(image, neighbours(narrower, 1.8 * narrower) @ start)
        return start

    for _ in range(global_sweeps):
        before = out.clone()
        for i in rng.permutation(scores.n_images):
            out[i] = refined(i, best_anywhere(i), 0.5 * step)
        if float(angular_distance(out, before).max()) < 0.5 * step:
            break
    for sweep in range(local_sweeps):
        for i in rng.permutation(scores.n_images):
            out[i] = refined(i, out[i], 0.5 * step / 2**sweep)
    return out
