"""The map of an accumulator."""

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.slices import gridding_profile


def finish(
    accumulator: Tensor,
    size: int,
    *,
    padding: int = 2,
    regularisation: Tensor | None = None,
    shrinkage: Tensor | None = None,
    max_shell: float | None = None,
) -> Tensor:
    """The map of an accumulator: divide by the weights, transform back, correct for the interpolation.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)
        With Friedel mates (and symmetry).
    size : int
        Extent of the map.
    padding : int
    regularisation : Tensor, shape (size // 2 + 1,), optional
        Added to the weights by shell: the inverse prior power ``1 / tau^2`` where weights are CTF squared over the noise power.
    shrinkage : Tensor, shape (size // 2 + 1,), optional
        Draws the weights ``w`` of a shell towards their mean, ``(w + s mean) / (1 + s)``.
    max_shell : float, optional
        Frequencies beyond this radius are zero; the inscribed sphere when not given.

    Returns
    -------
    Tensor, float32, shape (size, size, size)

    Notes
    -----
    Weights below a thousandth of their shell's mean are raised to it (Scheres 2012), so that empty voxels stay finite.
    """
    limit = padding * ((size - 1) // 2 if max_shell is None else max_shell)
    mean = shell_weights(accumulator).to(torch.float32)
    added, scale = torch.zeros_like(mean), torch.ones_like(mean)
    unpadded = torch.round(torch.arange(len(mean)) / padding).long().clamp(max=size // 2)
    if regularisation is not None:
        added += regularisation.cpu().to(torch.float32)[unpadded]
    if shrinkage is not None:
        drawn = shrinkage.cpu().to(torch.float32)[unpadded]
        added, scale = added + drawn * mean, 1.0 / (1.0 + drawn)
    source = accumulator.cpu().contiguous()
    spectrum = torch.empty(source.shape[:3], dtype=torch.complex64)
    _divide(source.numpy(), (mean / 1000.0).numpy(), added.numpy(), scale.numpy(), limit, spectrum.numpy())
    return central_cube(spectrum.to(accumulator.device), size) / gridding_profile(size, padding, accumulator.device)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sum_shells(accumulator: np.ndarray, total: np.ndarray, count: np.ndarray) -> None:
    m, width = accumulator.shape[0], accumulator.shape[2]
    for iz in range(m):
        z = iz if 2 * iz < m else iz - m
        for iy in range(m):
            y = iy if 2 * iy < m else iy - m
            for x in range(width):
                shell = int(np.sqrt(np.float32(x * x + y * y + z * z)) + np.float32(0.5))
                if shell >= total.shape[0]:
                    break
                # Friedel mates count where they are not stored.
                times = 1.0 if x == 0 or 2 * x == m else 2.0
                total[shell] += times * accumulator[iz, iy, x, 2]
                count[shell] += times


def shell_weights(accumulator: Tensor) -> Tensor:
    """Mean weight by shell of the padded grid.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)

    Returns
    -------
    Tensor, float64, shape (m // 2 + 1,)
        On the processor.
    """
    n_shells = accumulator.shape[0] // 2 + 1
    total, count = np.zeros(n_shells), np.zeros(n_shells)
    _sum_shells(accumulator.cpu().contiguous().numpy(), total, count)
    return torch.from_numpy(total / count)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _divide(
    accumulator: np.ndarray, least: np.ndarray, added: np.ndarray, scale: np.ndarray, limit: float, out: np.ndarray
) -> None:
    m, width = accumulator.shape[0], accumulator.shape[2]
    for iz in range(m):
        z = iz if 2 * iz < m else iz - m
        for iy in range(m):
            y = iy if 2 * iy < m else iy - m
            for x in range(width):
                shell = int(np.sqrt(np.float32(x * x + y * y + z * z)) + np.float32(0.5))
                out[iz, iy, x] = 0.0
                if shell > limit or shell >= least.shape[0]:
                    continue
                weight = max((accumulator[iz, iy, x, 2] + added[shell]) * scale[shell], least[shell])
                if weight > 0.0:
                    out[iz, iy, x] = complex(accumulator[iz, iy, x, 0] / weight, accumulator[iz, iy, x, 1] / weight)


def central_cube(spectrum: Tensor, size: int) -> Tensor:
    """Inverse transform of a centred half spectrum, axis by axis, each cropped before the next."""
    m, before = spectrum.shape[0], size // 2
    for axis in (0, 1):
        lines = torch.fft.ifft(spectrum, dim=axis)
        spectrum = torch.cat((lines.narrow(axis, m - before, before), lines.narrow(axis, 0, size - before)), dim=axis)
    lines = torch.fft.irfft(spectrum, n=m, dim=2)
    return torch.cat((lines[..., m - before :], lines[..., : size - before]), dim=2)
