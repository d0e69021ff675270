"""Aberrations beyond defocus, astigmatism and spherical aberration: beam tilt and Zernike polynomials.

Odd (antisymmetric) terms shift phases of the image, even (symmetric) ones add to the phase of the transfer function.
Both follow RELION's conventions (Zivanov, Nakane & Scheres 2020): coefficients in radians, polynomials in spatial
frequency in 1/A, not normalised.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cryoseg_dist.kernels.ctf import wavelength


def odd_order(index: int) -> tuple[int, int]:
    """Degree ``n`` and azimuthal order ``m`` of an odd coefficient by its place: (1, -1), (1, 1), (3, -3), ..."""
    k = (math.isqrt(1 + 4 * index) - 1) // 2
    n = 2 * k + 1
    return n, 2 * (index - k * (k + 1)) - n


def even_order(index: int) -> tuple[int, int]:
    """Degree ``n`` and azimuthal order ``m`` of an even coefficient by its place: (0, 0), (2, -2), (2, 0), ..."""
    k = math.isqrt(index)
    return 2 * k, 2 * (index - k * k) - 2 * k


def zernike(n: int, m: int, y: Tensor, x: Tensor) -> Tensor:
    """Zernike polynomial ``R_n^|m|(r)`` times ``cos(m phi)``, or ``sin(-m phi)`` for negative ``m``.

    Parameters
    ----------
    n, m : int
        ``|m| <= n`` of the same parity.
    y, x : Tensor
        Coordinates; ``phi`` counts from x to y.
    """
    order = abs(m)
    square = x * x + y * y
    # r^|m| exp(i |m| phi) is a power of x + iy, so no angle is taken and the origin is no special case.
    around = torch.complex(x, y) ** order if order else torch.ones_like(torch.complex(x, y))
    radial = torch.zeros_like(square)
    for k in range((n - order) // 2 + 1):
        factor = (-1) ** k * math.factorial(n - k)
        factor //= math.factorial(k) * math.factorial((n + order) // 2 - k) * math.factorial((n - order) // 2 - k)
        radial = radial + factor * square ** ((n - order) // 2 - k)
    return radial * (around.real if m >= 0 else around.imag)


def antisymmetric_phase(
    y: Tensor,
    x: Tensor,
    beam_tilt: tuple[float, float],
    coefficients: Sequence[float],
    *,
    voltage: float,
    spherical_aberration: float,
) -> Tensor:
    """Phase in radians that odd aberrations add to an image's spectrum.

    Parameters
    ----------
    y, x : Tensor
        Spatial frequency in 1/A.
    beam_tilt : tuple of float
        x and y, mrad; ``2 pi Cs lambda^2 k^2 (k . tilt)``. Added to the polynomials. (RELION puts a tilt in the place of the
        third-degree terms of first order; its own files hold zeros there.)
    coefficients : sequence of float
        Of the odd Zernike polynomials, in RELION's order.
    voltage, spherical_aberration : float
        kV, mm.
    """
    scale = 2.0 * math.pi * spherical_aberration * 1e7 * wavelength(voltage) ** 2 * 1e-3
    out = -scale * (x * x + y * y) * (beam_tilt[0] * x + beam_tilt[1] * y)
    for index, value in enumerate(coefficients):
        if value:
            out = out + value * zernike(*odd_order(index), y, x)
    return out


def symmetric_phase(y: Tensor, x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Phase in radians that even aberrations take from that of the transfer function.

    Parameters
    ----------
    y, x : Tensor
        Spatial frequency in 1/A.
    coefficients : sequence of float
        Of the even Zernike polynomials, in RELION's order.
    """
    out = torch.zeros_like(x * y)
    for index, value in enumerate(coefficients):
        if value:
            out = out + value * zernike(*even_order(index), y, x)
    return out
