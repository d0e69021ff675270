"""Orientations that agree best with the correlations of all rays of all pairs of images.

Voting uses the best line of each pair alone. Given orientations for all other images, each orientation of one image names a
ray pair with every other: the sum of their correlations is a score to search over, far more robust than single maxima.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.common_lines import LineScores, pair_number
from cryoseg_dist.kernels.orientation_grid import angular_step, neighbours, orientation_grid


def pair_statistics(scores: LineScores) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each pair's correlations, float32, shapes (p,)."""
    mean = np.empty(len(scores.values), dtype=np.float32)
    deviation = np.empty_like(mean)
    for p, table in enumerate(scores.values):
        values = table.astype(np.float32)
        mean[p], deviation[p] = values.mean(), values.std()
    return mean, np.maximum(deviation, 1e-3)


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
    half, full = values.shape[1], values.shape[2]
    to_ray = full / (2.0 * np.pi)
    for j in range(n):
        if j == image:
            continue
        first = image < j
        p = pair_number(image, j, n) if first else pair_number(j, image, n)
        table = values[p]
        view = rotations[j, 2]
        scale = 1.0 / deviation[p]
        for c in range(candidates.shape[0]):
            r = candidates[c]
            x = r[2, 1] * view[2] - r[2, 2] * view[1]
            y = r[2, 2] * view[0] - r[2, 0] * view[2]
            z = r[2, 0] * view[1] - r[2, 1] * view[0]
            if x * x + y * y + z * z < 1e-8:
                # All lines of parallel slices are common: any will do.
                x, y, z = r[0, 0], r[0, 1], r[0, 2]
            mine = np.arctan2(r[1, 0] * x + r[1, 1] * y + r[1, 2] * z, r[0, 0] * x + r[0, 1] * y + r[0, 2] * z)
            s = rotations[j]
            other = np.arctan2(s[1, 0] * x + s[1, 1] * y + s[1, 2] * z, s[0, 0] * x + s[0, 1] * y + s[0, 2] * z)
            row, column = (mine, other) if first else (other, mine)
            a, b = row * to_ray, column * to_ray
            low_a, low_b = np.floor(a), np.floor(b)
            da, db = a - low_a, b - low_b
            total = 0.0
            for corner_a in range(2):
                ia = (int(low_a) + corner_a) % full
                turned = ia >= half
                if turned:
                    ia -= half
                for corner_b in range(2):
                    ib = int(low_b) + corner_b + (half if turned else 0)
                    weight = (da if corner_a else 1.0 - da) * (db if corner_b else 1.0 - db)
                    total += weight * table[ia, ib % full]
            out[c] += (total - mean[p]) * scale


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
        Sweeps over all images with a search of all orientations, then with a local one that narrows.
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

    def best(image: int, candidates: Tensor) -> Tensor:
        found = _scores(scores, out, image, candidates, statistics)
        return candidates[int(found.argmax())]

    for sweep in range(global_sweeps + local_sweeps):
        for i in rng.permutation(scores.n_images):
            if sweep < global_sweeps:
                # The present orientation stays unless another is better.
                start = best(i, torch.cat((out[i : i + 1], grid)))
                width = 0.5 * step
            else:
                start, width = out[i], 0.5 * step / 2 ** (sweep - global_sweeps)
            for narrower in (width, 0.5 * width, 0.25 * width):
                start = best(i, neighbours(narrower, 1.8 * narrower) @ start)
            out[i] = start
    return out
