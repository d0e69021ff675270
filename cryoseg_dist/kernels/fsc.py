"""Fourier shell correlation and what follows from it."""

import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import hermitian_weights, shells, to_fourier, to_real


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
    n = a.shape[-2]
    index = shells(n, 3, a.device)
    keep = index <= n // 2
    flat = index[keep]
    weights = hermitian_weights(n, a.device).to(torch.float64).expand(index.shape)[keep]

    def total(values: Tensor) -> Tensor:
        out = torch.zeros((*values.shape[:-3], n // 2 + 1), dtype=torch.float64, device=a.device)
        return out.index_add_(-1, flat, values[..., keep].to(torch.float64) * weights)

    cross = total((a * b.conj()).real)
    power = total(a.abs().square()) * total(b.abs().square())
    return torch.where(power > 0, cross / power.sqrt().clamp(min=torch.finfo(torch.float64).tiny), 0.0)


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
    spectrum = to_fourier(volume, 3)
    # The transform of real white noise has random phases with the symmetry of a real volume.
    noise = to_fourier(torch.randn(volume.shape, generator=generator, dtype=volume.dtype), 3)
    noise = noise.to(volume.device)
    random = spectrum.abs() * noise / noise.abs().clamp(min=torch.finfo(volume.dtype).tiny)
    return to_real(torch.where(shells(n, 3, volume.device) >= from_shell, random, spectrum), n, 3)


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
