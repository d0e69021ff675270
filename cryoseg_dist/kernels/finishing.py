"""The map of an accumulator."""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.interpolation import Interpolation, gridding_profile


@dataclass(frozen=True)
class Division:
    """Division by the weights: what to add to them and to scale them with, and the least of them, by padded shell."""

    least: np.ndarray
    added: np.ndarray
    scale: np.ndarray
    limit: float

    def __call__(self, slab: np.ndarray, first: int) -> np.ndarray:
        """The spectrum, complex64, (k, m, m // 2 + 1), of planes ``first`` on of an accumulator."""
        out = np.empty(slab.shape[:3], dtype=np.complex64)
        _divide(slab, first, self.least, self.added, self.scale, self.limit, out)
        return out


def division(
    mean: Tensor,
    size: int,
    *,
    padding: int = 2,
    regularisation: Tensor | None = None,
    shrinkage: Tensor | None = None,
    max_shell: float | None = None,
) -> Division:
    """How to divide an accumulator whose mean weight by padded shell is known; the rest as in :func:`finish`."""
    mean = mean.to(torch.float32)
    added, scale = torch.zeros_like(mean), torch.ones_like(mean)
    unpadded = torch.round(torch.arange(len(mean)) / padding).long().clamp(max=size // 2)
    if regularisation is not None:
        added += regularisation.cpu().to(torch.float32)[unpadded]
    if shrinkage is not None:
        drawn = shrinkage.cpu().to(torch.float32)[unpadded]
        added, scale = added + drawn * mean, 1.0 / (1.0 + drawn)
    limit = padding * ((size - 1) // 2 if max_shell is None else max_shell)
    return Division((mean / 1000.0).numpy(), added.numpy(), scale.numpy(), limit)


def finish(
    accumulator: Tensor,
    size: int,
    *,
    padding: int = 2,
    regularisation: Tensor | None = None,
    shrinkage: Tensor | None = None,
    max_shell: float | None = None,
    interpolation: Interpolation = Interpolation.TRILINEAR,
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
    interpolation : Interpolation
        That the slices were inserted with.

    Returns
    -------
    Tensor, float32, shape (size, size, size)

    Notes
    -----
    Weights below a thousandth of their shell's mean are raised to it (Scheres 2012), so that empty voxels stay finite.
    """
    by_shell = division(
        shell_weights(accumulator),
        size,
        padding=padding,
        regularisation=regularisation,
        shrinkage=shrinkage,
        max_shell=max_shell,
    )
    spectrum = torch.from_numpy(by_shell(accumulator.cpu().contiguous().numpy(), 0))
    profile = gridding_profile(size, padding, accumulator.device, interpolation)
    return central_cube(spectrum.to(accumulator.device), size) / profile


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sum_shells(accumulator: np.ndarray, first: int, total: np.ndarray, count: np.ndarray) -> None:
    m, width = accumulator.shape[1], accumulator.shape[2]
    for iz in range(accumulator.shape[0]):
        z = first + iz if 2 * (first + iz) < m else first + iz - m
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
    total, count = shell_sums(accumulator.cpu().contiguous().numpy(), 0)
    return torch.from_numpy(total / count)


def shell_sums(slab: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the weights, and number of voxels, by shell, of some planes of an accumulator.

    Parameters
    ----------
    slab : ndarray, float32, shape (k, m, m // 2 + 1, 3)
    first : int
        Number of the first plane.

    Returns
    -------
    total, count : ndarray, float64, shape (m // 2 + 1,)
    """
    n_shells = slab.shape[1] // 2 + 1
    total, count = np.zeros(n_shells), np.zeros(n_shells)
    _sum_shells(slab, first, total, count)
    return total, count


@numba.njit(nogil=True, cache=True, fastmath=True)
def _divide(
    accumulator: np.ndarray,
    first: int,
    least: np.ndarray,
    added: np.ndarray,
    scale: np.ndarray,
    limit: float,
    out: np.ndarray,
) -> None:
    m, width = accumulator.shape[1], accumulator.shape[2]
    for iz in range(accumulator.shape[0]):
        z = first + iz if 2 * (first + iz) < m else first + iz - m
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


def central_lines(spectrum: Tensor, size: int, axis: int, extent: int) -> Tensor:
    """Inverse transform along one axis, of ``extent`` samples, of a half spectrum (z, y, x), of which the centre is kept.

    The last axis, from complex to real, comes last: the half spectrum of a slab is no Hermitian one.
    """
    before = size // 2
    lines = torch.fft.irfft(spectrum, n=extent, dim=2) if axis == 2 else torch.fft.ifft(spectrum, dim=axis)
    return torch.cat((lines.narrow(axis, extent - before, before), lines.narrow(axis, 0, size - before)), dim=axis)


def central_cube(spectrum: Tensor, size: int) -> Tensor:
    """Inverse transform of a centred half spectrum, axis by axis, each cropped before the next."""
    extent = spectrum.shape[0]
    for axis in range(3):
        spectrum = central_lines(spectrum, size, axis, extent)
    return spectrum
