"""Accumulators summed over a point group."""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(nogil=True, cache=True, fastmath=True)
def _symmetrise(
    source: np.ndarray, held: np.ndarray, out: np.ndarray, first: int, ops: np.ndarray, max_radius: float
) -> None:
    """Add to planes ``first`` on what they gather from the planes of a source; ``held`` says where those lie, -1 for absent."""
    m = source.shape[1]
    half = m // 2
    limit = half - 1
    r2 = max_radius * max_radius
    for iz in range(out.shape[0]):
        z = first + iz if first + iz < half else first + iz - m
        for iy in range(m):
            y = iy if iy < half else iy - m
            for x in range(half):
                if x * x + y * y + z * z > r2:
                    continue
                for s in range(ops.shape[0]):
                    u = ops[s, 0, 0] * x + ops[s, 0, 1] * y + ops[s, 0, 2] * z
                    v = ops[s, 1, 0] * x + ops[s, 1, 1] * y + ops[s, 1, 2] * z
                    w = ops[s, 2, 0] * x + ops[s, 2, 1] * y + ops[s, 2, 2] * z
                    sign = np.float32(1.0)
                    if u < 0.0:
                        u, v, w = -u, -v, -w
                        sign = np.float32(-1.0)
                    u0, v0, w0 = int(np.floor(u)), int(np.floor(v)), int(np.floor(w))
                    if u0 > limit or abs(v0) > limit or abs(w0) > limit:
                        continue
                    du, dv, dw = np.float32(u - u0), np.float32(v - v0), np.float32(w - w0)
                    one = np.float32(1.0)
                    for jz in range(2):
                        wz = dw if jz else one - dw
                        if wz == 0.0:
                            continue
                        zz = held[(w0 + jz) % m]
                        if zz < 0:
                            continue
                        for jy in range(2):
                            wzy = wz * (dv if jy else one - dv)
                            if wzy == 0.0:
                                continue
                            yy = (v0 + jy) % m
                            for jx in range(2):
                                f = wzy * (du if jx else one - du)
                                cell = source[zz, yy, u0 + jx]
                                out[iz, iy, x, 0] += f * cell[0]
                                out[iz, iy, x, 1] += sign * f * cell[1]
                                out[iz, iy, x, 2] += f * cell[2]


def symmetrise(accumulator: Tensor, operators: Tensor, max_shell: float, padding: int = 2) -> Tensor:
    """Sum an accumulator over a point group.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)
        After :func:`enforce_friedel`.
    operators : Tensor, shape (s, 3, 3)
    max_shell : float
        Radius in unpadded Fourier pixels beyond which the result is zero.

    Returns
    -------
    Tensor, float32, of the same shape
    """
    if operators.shape[0] == 1:
        return accumulator
    source = accumulator.cpu().contiguous()
    out = torch.zeros_like(source)
    planes, threads = np.arange(len(source)), torch.get_num_threads()
    # Planes of low frequency take longest: each thread gets some of every kind.
    parts = np.array_split(planes, 8 * threads)

    def fill(part: np.ndarray) -> None:
        if len(part):
            here = out.numpy()[part[0] : part[-1] + 1]
            gather(source.numpy(), planes, here, int(part[0]), operators, max_shell, padding)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, parts))
    return out.to(accumulator.device)


def gather(
    source: np.ndarray,
    planes: np.ndarray,
    out: np.ndarray,
    first: int,
    operators: Tensor,
    max_shell: float,
    padding: int = 2,
) -> None:
    """Add to some planes of a symmetrised accumulator what comes from some planes of the source, in place.

    Parameters
    ----------
    source : ndarray, float32, shape (k, m, m // 2 + 1, 3)
    planes : ndarray, int, shape (k,)
        Their numbers.
    out : ndarray, float32, shape (j, m, m // 2 + 1, 3)
        Planes ``first`` on.
    first : int
    operators, max_shell, padding
        As in :func:`symmetrise`.
    """
    held = np.full(source.shape[1], -1, dtype=np.int64)
    held[planes] = np.arange(len(planes))
    _symmetrise(source, held, out, first, _rounded(operators), max_shell * padding + 2.0)


def reach(first: int, last: int, extent: int, operators: Tensor, max_shell: float, padding: int = 2) -> np.ndarray:
    """Numbers of the source's planes that planes ``first`` to ``last - 1`` of a symmetrised accumulator gather from.

    Parameters
    ----------
    first, last, extent : int
        Of ``extent`` planes.
    operators, max_shell, padding
        As in :func:`symmetrise`.
    """
    radius = min(max_shell * padding + 2.0, extent / 2)
    numbers = np.arange(first, last)
    z = np.where(2 * numbers < extent, numbers, numbers - extent)
    z = z[np.abs(z) <= radius].astype(np.float64)
    if not len(z):
        return np.empty(0, dtype=np.int64)
    wanted = np.zeros(extent, dtype=bool)
    for tilted, cosine in ((float(np.hypot(o[2, 0], o[2, 1])), float(o[2, 2])) for o in _rounded(operators)):
        aside = tilted * np.sqrt(np.maximum(radius * radius - z * z, 0.0))
        low, high = np.floor((cosine * z - aside).min()), np.floor((cosine * z + aside).max()) + 1
        for sign in (1, -1):
            ends = sorted((sign * low, sign * high))
            # A mate below x = 0 is rounded the other way.
            wanted[np.arange(int(ends[0]) - 1, int(ends[1]) + 2) % extent] = True
    return np.flatnonzero(wanted)


def _rounded(operators: Tensor) -> np.ndarray:
    """Rounding keeps operators that map the grid onto itself exact."""
    return (torch.round(operators.to(torch.float64) * 1e12) / 1e12).numpy()
