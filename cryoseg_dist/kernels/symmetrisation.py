"""Accumulators summed over a point group."""

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(nogil=True, cache=True, fastmath=True)
def _symmetrise(source: np.ndarray, out: np.ndarray, ops: np.ndarray, max_radius: float) -> None:
    m = source.shape[0]
    half = m // 2
    limit = half - 1
    r2 = max_radius * max_radius
    for iz in range(m):
        z = iz if iz < half else iz - m
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
                        zz = (w0 + jz) % m
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
    # Rounding keeps operators that map the grid onto itself exact.
    ops = torch.round(operators.to(torch.float64) * 1e12) / 1e12
    _symmetrise(source.numpy(), out.numpy(), ops.numpy(), max_shell * padding + 2.0)
    return out.to(accumulator.device)
