"""The contrast transfer function.

The sign is that of contrast-inverted (protein white) images: positive at low frequency. Underfocus is positive.
"""

import math
from typing import overload

import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import frequencies


@overload
def wavelength(voltage: float) -> float: ...
@overload
def wavelength(voltage: Tensor) -> Tensor: ...
def wavelength(voltage: float | Tensor) -> float | Tensor:
    """Relativistic electron wavelength in A.

    Parameters
    ----------
    voltage : float or Tensor
        Acceleration voltage in kV.

    Notes
    -----
    ``12.2643 / sqrt(V (1 + 0.978466e-6 V))`` with V in volts (Rohou & Grigorieff 2015).
    """
    volts = voltage * 1e3
    return 12.2643247 / (volts * (1.0 + 0.978466e-6 * volts)) ** 0.5


def aberration_phase(
    frequency: Tensor,
    azimuth: Tensor,
    defocus_u: Tensor,
    defocus_v: Tensor,
    defocus_angle: Tensor,
    phase_shift: Tensor,
    *,
    voltage: float,
    spherical_aberration: float,
    amplitude_contrast: float,
) -> Tensor:
    """Phase ``chi`` in radians; the transfer function is ``sin(chi)``.

    ``chi = pi lambda k^2 df(azimuth) - pi/2 lambda^3 Cs k^4 + phase_shift + asin(A)`` with
    ``df = (U + V + (U - V) cos 2(azimuth - angle)) / 2`` (Rohou & Grigorieff 2015).

    Parameters
    ----------
    frequency, azimuth : Tensor
        Spatial frequency in 1/A and its angle from x in radians; broadcast with the rest.
    defocus_u, defocus_v : Tensor
        Defocus in A, underfocus positive.
    defocus_angle, phase_shift : Tensor
        Degrees.
    voltage : float
        kV.
    spherical_aberration : float
        mm.
    amplitude_contrast : float
        Fraction.
    """
    lam = wavelength(voltage)
    k2 = frequency * frequency
    angle = torch.deg2rad(defocus_angle)
    defocus = 0.5 * (defocus_u + defocus_v + (defocus_u - defocus_v) * torch.cos(2.0 * (azimuth - angle)))
    quartic = 0.5 * math.pi * lam**3 * spherical_aberration * 1e7
    return math.pi * lam * k2 * defocus - quartic * k2 * k2 + torch.deg2rad(phase_shift) + math.asin(amplitude_contrast)


def ctf(
    size: int,
    pixel_size: float,
    defocus_u: Tensor,
    defocus_v: Tensor,
    defocus_angle: Tensor,
    phase_shift: Tensor | None = None,
    b_factor: Tensor | None = None,
    *,
    voltage: float,
    spherical_aberration: float,
    amplitude_contrast: float,
) -> Tensor:
    """Transfer functions on half spectra of square images.

    Parameters
    ----------
    size : int
        Image extent in pixels.
    pixel_size : float
        A.
    defocus_u, defocus_v, defocus_angle : Tensor, shape (n,)
        A, A, degrees.
    phase_shift, b_factor : Tensor, shape (n,), optional
        Degrees; A^2, applied as ``exp(-B k^2 / 4)``.

    Returns
    -------
    Tensor, float32, shape (n, size, size // 2 + 1)
    """
    fy, fx = frequencies((size, size), defocus_u.device)
    k = torch.sqrt(fx * fx + fy * fy) / pixel_size
    azimuth = torch.atan2(fy, fx)

    def column(values: Tensor) -> Tensor:
        return values.to(torch.float32)[:, None, None]

    phase = torch.zeros_like(defocus_u) if phase_shift is None else phase_shift
    chi = aberration_phase(
        k,
        azimuth,
        column(defocus_u),
        column(defocus_v),
        column(defocus_angle),
        column(phase),
        voltage=voltage,
        spherical_aberration=spherical_aberration,
        amplitude_contrast=amplitude_contrast,
    )
    out = torch.sin(chi)
    if b_factor is not None:
        out = out * torch.exp(-0.25 * column(b_factor) * k * k)
    return out


def ctf_pixels(
    ky: Tensor, kx: Tensor, size: int, pixel_size: float, factors: Tensor, offset: Tensor | None = None
) -> Tensor:
    """Transfer functions at some Fourier pixels only; the values of :func:`ctf` there.

    Parameters
    ----------
    ky, kx : Tensor, int64, shape (p,)
        Signed indices.
    size : int
        Image extent in pixels.
    pixel_size : float
        A.
    factors : Tensor, shape (n, 5)
        From :func:`phase_factors`.
    offset : Tensor, shape (n, p), optional
        Radians to take from the phases.

    Returns
    -------
    Tensor, float32, shape (n, p)

    Notes
    -----
    ``k^2 cos 2(azimuth - angle)`` is a quadratic form of the indices, so all phases are one matrix product.
    """
    scale = 1.0 / (size * pixel_size)
    y, x = ky.to(torch.float32) * scale, kx.to(torch.float32) * scale
    k2 = x * x + y * y
    basis = torch.stack((k2, x * x - y * y, 2.0 * x * y, torch.ones_like(k2), k2 * k2))
    chi = factors @ basis
    return torch.sin(chi if offset is None else chi - offset)


def phase_factors(
    defocus_u: Tensor,
    defocus_v: Tensor,
    defocus_angle: Tensor,
    phase_shift: Tensor,
    *,
    voltage: float | Tensor,
    spherical_aberration: float | Tensor,
    amplitude_contrast: float | Tensor,
) -> Tensor:
    """What :func:`aberration_phase` multiplies ``k^2``, ``x^2 - y^2``, ``2 x y``, 1 and ``k^4`` with, frequencies in 1/A.

    Parameters
    ----------
    defocus_u, defocus_v, defocus_angle, phase_shift : Tensor, shape (n,)
        A, A, degrees, degrees.
    voltage, spherical_aberration, amplitude_contrast : float or Tensor, shape (n,)
        kV, mm, fraction; of all images or of each.

    Returns
    -------
    Tensor, float32, shape (n, 5)
    """
    u, v, angle, phase = (t.to(torch.float32) for t in (defocus_u, defocus_v, defocus_angle, phase_shift))
    kilovolts, cs, contrast = (
        torch.as_tensor(t, dtype=torch.float64).expand(u.shape)
        for t in (voltage, spherical_aberration, amplitude_contrast)
    )
    lam = wavelength(kilovolts)
    half = (0.5 * math.pi * lam).to(u)
    double = 2.0 * torch.deg2rad(angle)
    return torch.stack(
        (
            half * (u + v),
            half * (u - v) * torch.cos(double),
            half * (u - v) * torch.sin(double),
            torch.deg2rad(phase) + torch.asin(contrast).to(u),
            (-0.5 * math.pi * lam**3 * cs * 1e7).to(u),
        ),
        dim=1,
    )
