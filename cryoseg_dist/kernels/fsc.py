"""Fourier shell correlation and what follows from it."""

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier, to_real


def fsc(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of two transforms by shell (Harauz & van Heel 1986).

    Parameters
    ----------
    a, b : Tensor, complex, shape (..., n, n, n // 2 + 1)
        Half spectra of cubes with the same origin.

    Returns
    -------
    Tensor, float64, shape (..., n // 2 + 1)
        One at shell 0 when both means agree in sign; 0 where a map has no power.
    """
    n, lead = a.shape[-2], a.shape[:-3]
    shape = (-1, *a.shape[-3:])
    pairs = zip(a.cpu().reshape(shape).numpy(), b.cpu().reshape(shape).numpy(), strict=True)
    sums = torch.from_numpy(np.stack([products_by_shell(x, y) for x, y in pairs])).to(a.device)
    cross, power = sums[:, 0], sums[:, 1] * sums[:, 2]
    curves = torch.where(power > 0, cross / power.sqrt().clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return curves.reshape(*lead, n // 2 + 1)


def fsc_of_maps(a: Tensor, b: Tensor) -> Tensor:
    """:func:`fsc` of two maps, shape (n, n, n)."""
    return fsc(to_fourier(a, 3, centred=False), to_fourier(b, 3, centred=False))


@numba.njit(nogil=True, cache=True, fastmath=True)
def products_by_shell(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums by shell of ``Re(a b*)``, ``|a|^2``, ``|b|^2`` and one, Friedel mates counted, float64, (4, n // 2 + 1).

    Parameters
    ----------
    a, b : ndarray, complex, shape (n, n, n // 2 + 1)
    """
    n, width = a.shape[0], a.shape[2]
    out = np.zeros((4, n // 2 + 1))
    for iz in range(n):
        z = iz if 2 * iz < n else iz - n
        for iy in range(n):
            y = iy if 2 * iy < n else iy - n
            for x in range(width):
                shell = int(np.sqrt(np.float32(x * x + y * y + z * z)) + np.float32(0.5))
                if shell > n // 2:
                    break
                times = 1.0 if x == 0 or 2 * x == n else 2.0
                p, q = a[iz, iy, x], b[iz, iy, x]
                out[0, shell] += times * (p.real * q.real + p.imag * q.imag)
                out[1, shell] += times * (p.real * p.real + p.imag * p.imag)
                out[2, shell] += times * (q.real * q.real + q.imag * q.imag)
                out[3, shell] += times
    return out


def crossing(curve: Tensor, threshold: float) -> float:
    """First shell, interpolated, where ``curve`` falls below ``threshold``; the last shell if it never does.

    Shell 0 is ignored.
    """
    below = torch.nonzero(curve[1:] < threshold).flatten()
    if below.numel() == 0:
        return float(curve.numel() - 1)
    i = int(below[0]) + 1
    if i == 1:
        return 1.0
    high, low = float(curve[i - 1]), float(curve[i])
    return i - 1 + (high - threshold) / (high - low)


def resolution(curve: Tensor, size: int, pixel_size: float, threshold: float = 0.143) -> float:
    """Resolution in A at which an FSC curve of a cube of ``size`` px first falls below ``threshold``."""
    return size * pixel_size / crossing(curve, threshold)


def randomise_phases(volume: Tensor, from_shell: int, generator: torch.Generator) -> Tensor:
    """Keep the amplitudes of a volume but randomise its phases from a shell on (Chen et al. 2013).

    Parameters
    ----------
    volume : Tensor, shape (n, n, n)
    from_shell : int
        First shell whose phases are randomised.
    generator : torch.Generator

    Returns
    -------
    Tensor, shape (n, n, n)
    """
    n = volume.shape[-1]
    spectrum = to_fourier(volume.cpu().to(torch.float32), 3, centred=False)
    # The transform of real white noise has random phases with the symmetry of a real volume.
    noise = to_fourier(torch.randn(volume.shape, generator=generator), 3, centred=False)
    _take_phases(spectrum.numpy(), noise.numpy(), from_shell)
    return to_real(spectrum, n, 3, centred=False).to(volume.device)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _take_phases(spectrum: np.ndarray, noise: np.ndarray, from_shell: int) -> None:
    """Give a spectrum the phases of another from a shell on, in place."""
    n = spectrum.shape[0]
    for iz in range(n):
        z = iz if 2 * iz < n else iz - n
        for iy in range(n):
            y = iy if 2 * iy < n else iy - n
            for x in range(spectrum.shape[2]):
                if int(np.sqrt(np.float32(x * x + y * y + z * z)) + np.float32(0.5)) >= from_shell:
                    held, phase = spectrum[iz, iy, x], noise[iz, iy, x]
                    size = phase.real * phase.real + phase.imag * phase.imag
                    power = held.real * held.real + held.imag * held.imag
                    share = np.sqrt(power / size) if size > 0 else np.float32(0.0)
                    spectrum[iz, iy, x] = phase * share


def corrected_fsc(masked: Tensor, randomised: Tensor, from_shell: int) -> Tensor:
    """FSC freed of what the mask adds: ``(masked - randomised) / (1 - randomised)`` (Chen et al. 2013).

    The correction starts two shells beyond the first randomised shell; below it the masked curve stands.
    """
    out = masked.clone()
    start = min(from_shell + 2, masked.numel())
    tail_m, tail_r = masked[start:], randomised[start:]
    # A map that agrees with its own randomised self carries no signal of its own there.
    true = torch.where(tail_r < 1.0, (tail_m - tail_r) / (1.0 - tail_r).clamp(min=1e-6), 0.0)
    out[start:] = torch.minimum(true, tail_m.clamp(min=0.0))
    return out
