"""Kernels that spread a sample in Fourier space over the voxels around it, and what each does to real space."""

from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

# Lines of the table of a kernel between two voxels.
FINE = 1024
# Shape of the Kaiser-Bessel kernel. Narrower than what suits sums alone (Beatty et al. 2005): here sums are divided by the
# weights that were spread with the same kernel, and the wider it is, the more that blurs.
BETA = 20.0


class Interpolation(StrEnum):
    """How a sample is spread over voxels."""

    TRILINEAR = "trilinear"
    """Over two voxels an axis."""
    KAISER_BESSEL = "kaiser_bessel"
    """Over four voxels an axis: nearly nothing of a neighbouring copy of the map comes through."""

    @property
    def taps(self) -> int:
        """Voxels along an axis."""
        return 2 if self is Interpolation.TRILINEAR else 4


def kaiser_bessel(distance: np.ndarray) -> np.ndarray:
    """The kernel at a distance in voxels: ``I0(beta sqrt(1 - (d / 2)^2)) - 1`` up to a factor, so that it ends at two without a step."""
    inside = np.clip(1.0 - (distance / 2.0) ** 2, 0.0, None)
    return (np.i0(BETA * np.sqrt(inside)) - 1.0) / (np.i0(BETA) - 1.0)


def window_table(interpolation: Interpolation) -> np.ndarray:
    """Weights of the voxels around a sample by its fraction of a voxel, float32, (lines, taps).

    Lines are ``1 / FINE`` apart, one more than needed; the trilinear kernel needs none.
    """
    if interpolation is Interpolation.TRILINEAR:
        return np.zeros((2, 4), dtype=np.float32)
    fraction = np.arange(FINE + 2) / FINE
    return kaiser_bessel(fraction[:, None] + 1.0 - np.arange(4)).astype(np.float32)


def gridding_profile(
    size: int,
    padding: int,
    device: torch.device | str = "cpu",
    interpolation: Interpolation = Interpolation.TRILINEAR,
) -> Tensor:
    """What a kernel in a padded transform multiplies real space with: its separable transform, shape (size, size, size)."""
    s = gridding_line(size, padding, device, interpolation)
    return (s[:, None, None] * s[None, :, None] * s[None, None, :]).to(torch.float32)


def gridding_line(
    size: int,
    padding: int,
    device: torch.device | str = "cpu",
    interpolation: Interpolation = Interpolation.TRILINEAR,
) -> Tensor:
    """One axis of :func:`gridding_profile`, float64, shape (size,).

    ``sinc(x)^2`` of the trilinear kernel, ``sinh(s) / s - sinc(4 x)`` with ``s = sqrt(beta^2 - (4 pi x)^2)`` of the Kaiser-Bessel one,
    ``x = r / (padding n)``. It is one at the centre.
    """
    x = (torch.arange(size, device=device, dtype=torch.float64) - size // 2) / (padding * size)
    if interpolation is Interpolation.TRILINEAR:
        return torch.sinc(x).square()
    under = (BETA**2 - (4.0 * torch.pi * x) ** 2).to(torch.complex128).sqrt()
    return ((torch.sinh(under) / under).real - torch.sinc(4.0 * x)) / (np.sinh(BETA) / BETA - 1.0)
