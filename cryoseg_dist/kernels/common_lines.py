"""Common lines: where the central slices of two projections meet.

With orientation matrices ``A_i`` the slices of images ``i`` and ``j`` share the line along ``A_i[2] x A_j[2]``. In image ``i``
it lies at ``angle[i, j]`` from the x axis, in image ``j`` at ``angle[j, i]``, and ``A_i A_j^T`` turns the one direction
into the other. Images moved by ``t_i`` and ``t_j`` (px) differ along it by the shift ``e_i . t_i - e_j . t_j``.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

# Scores are kept as 16-bit integers: one is 32767.
ONE = 32767
# Images whose rays are matched with those of one image at once.
BLOCK = 8


@dataclass(frozen=True, slots=True)
class LineScores:
    """Correlations of all rays of all pairs of images.

    Attributes
    ----------
    n_images : int
    values : ndarray, int16, shape (n (n - 1) / 2, h, 2 h)
        Best correlation over the shifts, times ``ONE``, of ray ``a`` of image ``i`` (first half of the circle) and ray ``b``
        of image ``j > i``. Pairs in the order of :func:`pair_number`.
    """

    n_images: int
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class CommonLines:
    """The best common line of each pair of images.

    Attributes
    ----------
    angle : Tensor, float64, shape (n, n)
        Degrees; ``angle[i, j]`` is that of the line with image ``j`` in image ``i``.
    score : Tensor, float64, shape (n, n)
        Correlation, symmetric, zero on the diagonal.
    """

    angle: Tensor
    score: Tensor


def pairs_of(n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Images ``i < j`` of all pairs, in the order of their numbers."""
    return np.triu_indices(n_images, 1)


@numba.njit(nogil=True, cache=True)
def pair_number(i: int, j: int, n_images: int) -> int:
    """Number of the pair ``i < j``."""
    return i * n_images - i * (i + 1) // 2 + j - i - 1


@numba.njit(nogil=True, cache=True, fastmath=True)
def _best_shift(even: np.ndarray, odd: np.ndarray, out: np.ndarray) -> None:
    """Largest sum (ray b) and difference (its opposite) over shifts; (s, h, j, h) twice to (j, h, 2 h)."""
    n_shifts, half, n_images = even.shape[0], even.shape[1], even.shape[2]
    plus, minus = np.empty(half, np.float32), np.empty(half, np.float32)
    for j in range(n_images):
        for a in range(half):
            for b in range(half):
                plus[b] = np.float32(-1.0)
                minus[b] = np.float32(-1.0)
            for s in range(n_shifts):
                for b in range(half):
                    x, y = even[s, a, j, b], odd[s, a, j, b]
                    plus[b] = max(plus[b], x + y)
                    minus[b] = max(minus[b], x - y)
            for b in range(half):
                out[j, a, b] = np.int16(min(plus[b], np.float32(1.0)) * ONE)
                out[j, a, half + b] = np.int16(min(minus[b], np.float32(1.0)) * ONE)


def score_lines(rays: Tensor, shifts_px: Tensor, size: int) -> LineScores:
    """Correlate all rays of all pairs of images, as matrix products.

    Parameters
    ----------
    rays : Tensor, complex64, shape (n, h, r)
        Of unit length, on half a circle (:func:`polar.weighted_rays`).
    shifts_px : Tensor, shape (s,)
        Shifts along the line that are tried.
    size : int
        Extent of the images in pixels.
    """
    n, half, n_radii = rays.shape
    values = np.empty((n * (n - 1) // 2, half, 2 * half), dtype=np.int16)
    ramp = shifts_px[:, None].float() * torch.arange(1, n_radii + 1) * (2.0 * math.pi / size)
    phase = torch.polar(torch.ones_like(ramp), ramp)
    real, imag = rays.real.contiguous(), rays.imag.contiguous()
    for i in range(n - 1):
        moved = (rays[i] * phase[:, None]).reshape(-1, n_radii)
        for first in range(i + 1, n, BLOCK):
            last = min(first + BLOCK, n)
            shape = (len(phase), half, last - first, half)
            even = moved.real @ real[first:last].reshape(-1, n_radii).T
            odd = moved.imag @ imag[first:last].reshape(-1, n_radii).T
            p = pair_number(i, first, n)
            _best_shift(even.reshape(shape).numpy(), odd.reshape(shape).numpy(), values[p : p + last - first])
    return LineScores(n, values)


@numba.njit(nogil=True, cache=True)
def _ray_means(values: np.ndarray, n: int) -> np.ndarray:
    """Mean score of each ray (whole circle) of each image over all rays of all others, (n, 2 h)."""
    half, full = values.shape[1], values.shape[2]
    out = np.zeros((n, full))
    for i in range(n):
        for j in range(i + 1, n):
            table = values[pair_number(i, j, n)]
            for a in range(half):
                for b in range(full):
                    value = table[a, b] / ((n - 1) * full)
                    # Each entry stands for its opposite too.
                    out[i, a] += value
                    out[i, a + half] += value
                    out[j, b] += value
                    out[j, (b + half) % full] += value
    return out


@numba.njit(nogil=True, cache=True)
def _centre(values: np.ndarray, means: np.ndarray, out: np.ndarray) -> None:
    n, full = means.shape
    half = full // 2
    overall = means.mean()
    for i in range(n):
        for j in range(i + 1, n):
            p = pair_number(i, j, n)
            for a in range(half):
                for b in range(full):
                    value = values[p, a, b] - means[i, a] - means[j, b] + overall
                    out[p, a, b] = np.int16(max(-ONE, min(ONE, value)))


def centre_scores(scores: LineScores) -> LineScores:
    """Scores less what each ray scores with all rays of all other images.

    Smooth rays, which are alike in every image, correlate with anything. Left in, they make orientations that put them on
    one axis agree better than the true ones.
    """
    out = np.empty_like(scores.values)
    _centre(scores.values, _ray_means(scores.values, scores.n_images), out)
    return LineScores(scores.n_images, out)


def best_lines(scores: LineScores) -> CommonLines:
    """The highest score of each pair, its angles refined by parabolas."""
    n, (n_pairs, half, full) = scores.n_images, scores.values.shape
    flat = scores.values.reshape(n_pairs, -1).argmax(axis=1)
    a, b = flat // full, flat % full
    p = np.arange(n_pairs)
    peak = scores.values[p, a, b].astype(np.float64)

    def at(da: int, db: int) -> np.ndarray:
        # Ray a + h is the opposite of ray a: so is its partner.
        row, column = a + da, b + db
        column = np.where((row < 0) | (row >= half), column + half, column)
        return scores.values[p, row % half, column % full].astype(np.float64)

    def offset(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        curvature = low - 2.0 * peak + high
        return np.where(curvature < 0, 0.5 * (low - high) / np.minimum(curvature, -1e-9), 0.0)

    step = 360.0 / full
    i, j = pairs_of(n)
    angle = torch.zeros((n, n), dtype=torch.float64)
    score = torch.zeros((n, n), dtype=torch.float64)
    angle[i, j] = torch.from_numpy((a + offset(at(-1, 0), at(1, 0))) * step)
    angle[j, i] = torch.from_numpy((b + offset(at(0, -1), at(0, 1))) * step)
    score[i, j] = score[j, i] = torch.from_numpy(peak / ONE)
    return CommonLines(angle, score)


def lines_of(rotations: Tensor) -> Tensor:
    """Angles in degrees of the common lines of known orientations; (n, 3, 3) to (n, n), zero on the diagonal."""
    views = rotations[:, 2]
    line = torch.linalg.cross(views[:, None].expand(-1, len(views), -1), views[None].expand(len(views), -1, -1))
    # The line of j and i points the other way: take that of i < j for both.
    upper = torch.triu(torch.ones(len(views), len(views), dtype=torch.bool), 1)
    line = torch.where(upper[..., None], line, -line)
    local = torch.einsum("iab,ijb->ija", rotations, line)
    return torch.rad2deg(torch.atan2(local[..., 1], local[..., 0])).fill_diagonal_(0.0)


def line_shifts(rays: Tensor, angle: Tensor, shifts_px: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Shift along given common lines, and the correlation there.

    Parameters
    ----------
    rays : Tensor, complex64, shape (n, h, r)
        As for :func:`score_lines`.
    angle : Tensor, shape (n, n)
        Degrees.
    shifts_px : Tensor, shape (s,)
        Evenly spaced.
    size : int

    Returns
    -------
    shift, score : Tensor, float64, shape (n, n)
        ``shift[i, j]`` for ``i < j``, refined by a parabola; the mirror entry has the other sign.
    """
    n, half, n_radii = rays.shape
    whole = torch.cat((rays, rays.conj()), dim=1)
    ray = torch.round(angle * (half / 180.0)).long() % (2 * half)
    i, j = (torch.from_numpy(v) for v in pairs_of(n))
    product = whole[i, ray[i, j]].conj() * whole[j, ray[j, i]]
    ramp = shifts_px[:, None].float() * torch.arange(1, n_radii + 1) * (2.0 * math.pi / size)
    values = product.real @ ramp.cos().T + product.imag @ ramp.sin().T
    best = values.argmax(dim=1)
    p = torch.arange(len(best))
    inner = best.clamp(1, len(shifts_px) - 2) if len(shifts_px) > 2 else best
    move = torch.zeros(len(best), dtype=torch.float64)
    if len(shifts_px) > 2:
        low, mid, high = (values[p, inner + d].double() for d in (-1, 0, 1))
        curvature = low - 2.0 * mid + high
        move = torch.where(curvature < 0, 0.5 * (low - high) / curvature.clamp(max=-1e-9), move).clamp(-1.0, 1.0)
    step = float(shifts_px[1] - shifts_px[0]) if len(shifts_px) > 1 else 0.0
    found = shifts_px.double()[inner] + step * move
    shift = torch.zeros((n, n), dtype=torch.float64)
    score = torch.zeros((n, n), dtype=torch.float64)
    shift[i, j], shift[j, i] = found, -found
    score[i, j] = score[j, i] = values[p, best].double()
    return shift, score
