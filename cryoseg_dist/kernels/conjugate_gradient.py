"""Regularised least-squares maps by conjugate gradients on the normal equations.

The data term of a reconstruction from central slices is a convolution of the map with a kernel that depends on the
views, CTF and noise alone: the transform of the summed weights, which makes the system a Toeplitz one. Dividing voxel by
voxel lets each stand alone. Here the system is solved for a map that lives within a support, so that what a slice measured counts
in the gaps beside it as far as the support's size allows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoseg_dist.kernels.finishing import central_cube, shell_weights
from cryoseg_dist.kernels.fourier import shells
from cryoseg_dist.kernels.interpolation import gridding_profile

# Weights of the preconditioner below this share of their shell's mean are raised to it.
_LEAST_SHARE = 1e-3
# Noise to signal ratio beyond which the prior gets no stronger: the support mixes neighbouring shells, and a shell that was damped
# much would, its amplitude restored, hold what leaked into it from those damped less.
_STRONGEST = 1.0


@dataclass(frozen=True, slots=True)
class Solution:
    """A map and how it was reached.

    Attributes
    ----------
    volume : Tensor, float32, shape (n, n, n)
    iterations : int
    errors : tuple of float
        Energy of the error that is left, relative to that of the map's noise, before the first iteration and after each.
    """

    volume: Tensor
    iterations: int
    errors: tuple[float, ...]


class NormalEquations:
    """The convolution by which a map enters the weighted back-projection of its own slices.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)
        After ``enforce_friedel`` and ``symmetrise``, ``m = padding size``.
    size : int
        Extent of the map.
    padding : int
        At least 2: the kernel reaches over twice the box.

    Attributes
    ----------
    right_hand_side : Tensor, float32, shape (n, n, n)
        Back-projected data, corrected for the interpolation.
    mean_weight : Tensor, float32, shape (n // 2 + 1,)
        Mean weight by shell.
    """

    def __init__(self, accumulator: Tensor, size: int, padding: int) -> None:
        if padding < 2:
            raise ValueError(f"padding: expected 2 or more, got {padding}.")
        self.size = size
        self.profile = gridding_profile(size, padding)
        means = shell_weights(accumulator).to(torch.float32)
        self.mean_weight = means[(torch.arange(size // 2 + 1) * padding).clamp(max=len(means) - 1)]
        data = torch.complex(accumulator[..., 0], accumulator[..., 1])
        self.right_hand_side = central_cube(data, size)
        # Displacements within the box reach twice its extent.
        weights = accumulator[..., 2].to(torch.complex64)
        kernel = central_cube(weights, 2 * size)
        self._kernel = torch.fft.rfftn(torch.fft.ifftshift(kernel)).real.clamp(min=0.0)
        self._circulant = self._nearest_circulant(torch.fft.ifftshift(kernel))

    def _nearest_circulant(self, kernel: Tensor) -> Tensor:
        """Spectrum of the periodic convolution nearest to this one (T. Chan 1988)."""
        n = self.size
        away = torch.minimum(torch.arange(2 * n), 2 * n - torch.arange(2 * n)).to(torch.float32)
        taper = 1.0 - away / n
        tapered = kernel * taper[:, None, None] * taper[:, None] * taper
        return torch.fft.rfftn(tapered.reshape(2, n, 2, n, 2, n).sum(dim=(0, 2, 4))).real

    def apply(self, volume: Tensor) -> Tensor:
        """The map convolved with the kernel, within the box; shape (n, n, n)."""
        n = self.size
        spectrum = torch.fft.rfftn(volume, s=(2 * n,) * 3)
        return torch.fft.irfftn(spectrum * self._kernel, s=(2 * n,) * 3)[:n, :n, :n]

    def preconditioner(self, added: Tensor) -> Tensor:
        """Inverse spectrum of the nearest circulant with ``added`` to its shells; half spectrum of the box."""
        n = self.size
        index = shells(n, 3).clamp(max=n // 2)
        return 1.0 / (torch.maximum(self._circulant, _LEAST_SHARE * self.mean_weight[index]) + added[index])


def solve(
    equations: NormalEquations,
    ratio: Tensor,
    support: Tensor,
    *,
    max_iterations: int = 30,
    tolerance: float = 0.01,
    max_shell: float | None = None,
) -> Solution:
    """The most likely map that lives within a support, under a Gaussian prior.

    Minimises ``x A x - 2 x b + u L u`` over ``x = M u``: ``A`` and ``b`` the normal equations, ``M`` the support, ``L`` the inverse
    prior power by shell.

    Parameters
    ----------
    equations : NormalEquations
    ratio : Tensor, shape (n // 2 + 1,)
        Noise to signal ratio of the map by shell, from which the prior follows (Scheres 2012).
    support : Tensor, float32, shape (n, n, n)
        From 0 to 1.
    max_iterations : int
    tolerance : float
        Share of the noise's energy at which the error that is left does not matter any more: the iteration stops.
    max_shell : float, optional
        Frequencies beyond this radius are left out.

    Returns
    -------
    Solution
        A voxel of a shell's mean weight keeps its amplitude: filtering by shell is left to sharpening.

    Notes
    -----
    The stopping rule is a discrepancy principle: with a preconditioner ``P`` near to the system, ``r P r`` of the residual ``r`` is the energy
    of the error, and that of the right-hand side is noise in the share that ``ratio`` says. Nothing of the other half set is
    asked for beyond the FSC that the prior needs.
    """
    n = equations.size
    ratio = ratio.to(torch.float32).clamp(max=_STRONGEST)
    index = shells(n, 3)
    limit = (n - 1) // 2 if max_shell is None else min(max_shell, (n - 1) // 2)
    band = index <= limit
    index = index.clamp(max=n // 2)
    added = ratio * equations.mean_weight
    prior, inverse = added[index], equations.preconditioner(added) * band

    def filtered(volume: Tensor, spectrum: Tensor) -> Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(volume) * spectrum, s=(n,) * 3)

    def system(u: Tensor) -> Tensor:
        return support * equations.apply(support * u) + filtered(u, prior)

    residual = support * equations.right_hand_side
    noise = _dot(residual, filtered(residual, inverse * (ratio / (1.0 + ratio))[index]))
    u = torch.zeros_like(residual)
    z = filtered(residual, inverse)
    direction, energy = z, _dot(residual, z)
    errors = [energy / noise if noise > 0 else 0.0]
    while len(errors) <= max_iterations and errors[-1] > tolerance:
        through = system(direction)
        curvature = _dot(direction, through)
        if not curvature > 0:
            break
        step = energy / curvature
        u = u + step * direction
        residual = residual - step * through
        z = filtered(residual, inverse)
        before, energy = energy, _dot(residual, z)
        direction = z + (energy / before) * direction
        errors.append(energy / noise)
    volume = filtered(support * u, (1.0 + ratio)[index] * band) / equations.profile
    return Solution(volume, len(errors) - 1, tuple(errors))


def _dot(a: Tensor, b: Tensor) -> float:
    value = float(torch.sum(a * b, dtype=torch.float64))
    return value if math.isfinite(value) else 0.0
