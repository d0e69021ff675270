"""Amplitude restoration of a finished map."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import radius, shells
from cryoseg_dist.kernels.fsc import products_by_shell

# Logarithms of amplitudes at or below this are those of shells without power.
LOWEST_LOGARITHM = -350.0
# High over low resolution of a Guinier fit, at most.
WIDEST_RATIO = 0.8


@dataclass(frozen=True, slots=True)
class Guinier:
    """A Guinier plot and its straight line.

    Attributes
    ----------
    inverse_square : Tensor
        ``1 / d^2`` of each shell, 1/A^2.
    log_amplitude : Tensor
        Natural logarithm of the shell's root mean square amplitude.
    b_factor : float
        A^2; negative for a map that fades with resolution, as RELION reports it.
    intercept : float
    """

    inverse_square: Tensor
    log_amplitude: Tensor
    b_factor: float
    intercept: float


def log_amplitude(spectrum: Tensor) -> Tensor:
    """Natural logarithm of each shell's root mean square amplitude, float64, shape (n // 2 + 1,), on the processor."""
    values = spectrum.cpu().contiguous().numpy()
    _, power, _, count = products_by_shell(values, values)
    return 0.5 * torch.log(torch.from_numpy(power / count).clamp(min=torch.finfo(torch.float64).tiny))


def guinier(spectrum: Tensor, pixel_size: float, low_resolution: float, high_resolution: float) -> Guinier | None:
    """Fit ``ln F`` against ``1 / d^2``: the slope is ``B / 4`` (Rosenthal & Henderson 2003).

    Parameters
    ----------
    spectrum : Tensor, complex, shape (n, n, n // 2 + 1)
        Already weighted by its FSC.
    pixel_size, low_resolution, high_resolution : float
        A; the line is fitted between the two resolutions.

    Returns
    -------
    Guinier or None
        None when fewer than three shells lie between the limits, or the limits lie so near to each other that the slope is that
        of the molecule's own features.
    """
    n = spectrum.shape[0]
    y = log_amplitude(spectrum)
    k = torch.arange(n // 2 + 1, dtype=torch.float64) / (n * pixel_size)
    inside = (k >= 1.0 / low_resolution) & (k <= 1.0 / high_resolution) & (y > LOWEST_LOGARITHM)
    if int(inside.sum()) < 3 or high_resolution > WIDEST_RATIO * low_resolution:
        return None
    x = k.square()
    xs, ys = x[inside], y[inside]
    slope = float(((xs - xs.mean()) * (ys - ys.mean())).sum() / (xs - xs.mean()).square().sum())
    return Guinier(x, y, 4.0 * slope, float(ys.mean()) - slope * float(xs.mean()))


def apply_b_factor(spectrum: Tensor, pixel_size: float, b_factor: float) -> Tensor:
    """Multiply by ``exp(-B k^2 / 4)``; a negative ``b_factor`` (A^2) sharpens."""
    n = spectrum.shape[0]
    k = radius((n, n, n), spectrum.device) / pixel_size
    return spectrum * torch.exp(-0.25 * b_factor * k * k)


def weight_by_fsc(spectrum: Tensor, curve: Tensor) -> Tensor:
    """Weight shells by ``sqrt(2 FSC / (1 + FSC))``, zero from the first shell without signal on.

    The figure-of-merit weight of a map made of two halves (Rosenthal & Henderson 2003).
    """
    n = spectrum.shape[0]
    c = curve.clamp(min=0.0)
    weight = torch.sqrt(2.0 * c / (1.0 + c))
    gone = torch.nonzero(curve[1:] < 1e-4).flatten()
    if gone.numel():
        weight[int(gone[0]) + 1 :] = 0.0
    index = shells(n, 3, spectrum.device)
    full = torch.cat((weight, weight.new_zeros(int(index.max()) + 1 - weight.numel())))
    return spectrum * full.to(spectrum.device, torch.float32)[index]


def low_pass_shell(spectrum: Tensor, cutoff_shell: float, edge_shells: float = 2.0) -> Tensor:
    """Raised-cosine low pass, centred on a (fractional) shell."""
    n = spectrum.shape[0]
    r = radius((n, n, n), spectrum.device) * n
    start = cutoff_shell - 0.5 * edge_shells
    t = ((r - start) / edge_shells).clamp(0.0, 1.0)
    return spectrum * (0.5 + 0.5 * torch.cos(math.pi * t))
