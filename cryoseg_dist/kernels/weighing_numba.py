"""Weighting of spectra on a processor: one pass over the pixels of an image, row after row."""

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import pixel_rows

# Images that are transformed at once: few, for the cache.
TRANSFORMED = 32


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _weigh(
    spectra: np.ndarray,
    size: int,
    transfer: np.ndarray,
    rows: np.ndarray,
    centre: np.ndarray,
    inverse_noise: np.ndarray,
    data: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Real and imaginary parts lie side by side, in the flat image of ``spectra`` as in ``centre`` and ``data``."""
    one, two = np.uint64(1), np.uint64(2)
    for i in range(spectra.shape[0]):
        spectrum, ctf, out, square = spectra[i], transfer[i], data[i], weights[i]
        for r in range(rows.shape[0]):
            source = np.uint64((rows[r, 0] % size) * (size // 2 + 1) + rows[r, 1])
            begin = np.uint64(rows[r, 2])
            for j in range(np.uint64(rows[r, 3])):
                p, s = begin + j, source + j
                c = ctf[p]
                share = c * inverse_noise[p]
                re, im = centre[two * p] * share, centre[two * p + one] * share
                x, y = spectrum[two * s], spectrum[two * s + one]
                out[two * p], out[two * p + one] = x * re - y * im, x * im + y * re
                square[p] = c * share


def weigh_numba(
    images: Tensor, microscope: Microscope, columns: Tensor, inverse_noise: Tensor, ky: Tensor, kx: Tensor
) -> tuple[Tensor, Tensor]:
    """Transform images and weight them; as :func:`~cryoseg_dist.kernels.weighing.weigh`."""
    size, (n, n_pixels) = images.shape[-1], (len(images), len(ky))
    data, weights = torch.empty((n, n_pixels), dtype=torch.complex64), torch.empty((n, n_pixels))
    rows = pixel_rows(ky, kx)
    # The phase origin is sample n // 2: a factor, rather than images that are rolled.
    angle = (2.0 * torch.pi / size) * ((ky + kx) * (size // 2) % size).double()
    centre = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
    for first in range(0, n, TRANSFORMED):
        some = slice(first, first + TRANSFORMED)
        spectra = torch.fft.rfft2(images[some].to(torch.float32))
        _weigh(
            torch.view_as_real(spectra).numpy().reshape(len(spectra), -1),
            size,
            microscope.ctf(columns[some]).numpy(),
            rows,
            torch.view_as_real(centre).numpy().reshape(-1),
            inverse_noise.numpy(),
            torch.view_as_real(data[some]).numpy().reshape(len(spectra), -1),
            weights[some].numpy(),
        )
        if microscope.odd is not None:
            data[some] = microscope.in_phase(data[some], columns[some])
    return data, weights
