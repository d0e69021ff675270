"""Weighting of spectra on a processor: one pass over the pixels of an image, row after row."""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import pixel_rows

# Images that are transformed at once: few, for the cache.
TRANSFORMED = 32


@numba.njit(nogil=True, cache=True, inline="always")
def _sine(half_turns: np.float32) -> np.float32:
    """Sine of an angle in half turns, to 1e-7: the series about the nearest whole one.

    Where a loop calls the library's, the compiler finds no vectors.
    """
    whole = np.floor(half_turns + np.float32(0.5))
    u = half_turns - whole
    odd = whole - np.float32(2.0) * np.floor(np.float32(0.5) * whole)
    s = u * u
    series = np.float32(-(math.pi**11) / 39916800.0)
    series = series * s + np.float32(math.pi**9 / 362880.0)
    series = series * s + np.float32(-(math.pi**7) / 5040.0)
    series = series * s + np.float32(math.pi**5 / 120.0)
    series = series * s + np.float32(-(math.pi**3) / 6.0)
    series = series * s + np.float32(math.pi)
    return u * series * (np.float32(1.0) - np.float32(2.0) * odd)


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _weigh(
    spectra: np.ndarray,
    size: int,
    factors: np.ndarray,
    group: np.ndarray,
    even: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    centre: np.ndarray,
    inverse_noise: np.ndarray,
    data: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Real and imaginary parts lie side by side, in the flat image of ``spectra`` as in ``centre`` and ``data``.

    ``factors`` (images, 5) and ``even`` (groups, pixels; nothing where there are none) are in half turns.
    """
    one, two, has_even = np.uint64(1), np.uint64(2), even.shape[1] > 0
    for i in range(spectra.shape[0]):
        spectrum, out, square = spectra[i], data[i], weights[i]
        f0, f1, f2, f3, f4 = factors[i, 0], factors[i, 1], factors[i, 2], factors[i, 3], factors[i, 4]
        offset = even[group[i]]
        for r in range(rows.shape[0]):
            source = np.uint64((rows[r, 0] % size) * (size // 2 + 1) + rows[r, 1])
            begin, first, n = np.uint64(rows[r, 2]), np.uint64(rows[r, 1]), np.uint64(rows[r, 3])
            y = np.float32(rows[r, 0])
            # The transfer functions of the row first: weights hold them until they are squared.
            for j in range(n):
                x = columns[first + j]
                k2 = x * x + y * y
                square[begin + j] = (
                    f0 * k2 + f1 * (x * x - y * y) + f2 * (np.float32(2.0) * x * y) + f3 + f4 * (k2 * k2)
                )
            if has_even:
                for j in range(n):
                    square[begin + j] -= offset[begin + j]
            for j in range(n):
                p, s = begin + j, source + j
                c = _sine(square[p])
                share = c * inverse_noise[p]
                re, im = centre[two * p] * share, centre[two * p + one] * share
                a, b = spectrum[two * s], spectrum[two * s + one]
                out[two * p], out[two * p + one] = a * re - b * im, a * im + b * re
                square[p] = c * share


def weighed(n_images: int, n_pixels: int) -> tuple[Tensor, Tensor]:
    """Room for what weighting makes of images."""
    return torch.empty((n_images, n_pixels), dtype=torch.complex64), torch.empty((n_images, n_pixels))


def weigh_numba(
    images: Tensor,
    microscope: Microscope,
    columns: Tensor,
    inverse_noise: Tensor,
    ky: Tensor,
    kx: Tensor,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Transform images and weight them; as :func:`~cryoseg_dist.kernels.weighing.weigh`."""
    size, n = images.shape[-1], len(images)
    data, weights = weighed(n, len(ky)) if out is None else (out[0][:n], out[1][:n])
    rows = pixel_rows(ky, kx)
    # The phase origin is sample n // 2: a factor, rather than images that are rolled.
    angle = (2.0 * torch.pi / size) * ((ky + kx) * (size // 2) % size).double()
    centre = torch.view_as_real(torch.polar(torch.ones_like(angle), angle).to(torch.complex64)).numpy().reshape(-1)
    scale = 1.0 / (size * microscope.groups[0].pixel_size)
    powers = torch.tensor((scale**2, scale**2, scale**2, 1.0, scale**4), dtype=torch.float64) / math.pi
    factors = (microscope.phase_factors(columns).double() * powers).float().numpy()
    even = torch.empty((len(microscope.groups), 0)) if microscope.even is None else microscope.even / math.pi
    group, axis = microscope.group(columns).numpy(), torch.arange(size // 2 + 1, dtype=torch.float32).numpy()
    for first in range(0, n, TRANSFORMED):
        some = slice(first, first + TRANSFORMED)
        spectra = torch.fft.rfft2(images[some].to(torch.float32))
        _weigh(
            torch.view_as_real(spectra).numpy().reshape(len(spectra), -1),
            size,
            factors[some],
            group[some],
            even.numpy(),
            rows,
            axis,
            centre,
            inverse_noise.numpy(),
            torch.view_as_real(data[some]).numpy().reshape(len(spectra), -1),
            weights[some].numpy(),
        )
        if microscope.odd is not None:
            data[some] = microscope.in_phase(data[some], columns[some])
        microscope.dampen(weights[some], columns[some], data[some])
    return data, weights
