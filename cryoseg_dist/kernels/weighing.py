"""Images to what insertion takes: transforms times CTF, and CTF squared, over the noise."""

import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import take_pixels
from cryoseg_dist.kernels.triton_support import has_triton

# Images transformed at once on a processor: few, for its cache.
TRANSFORMED = 32


def weigh(
    images: Tensor, microscope: Microscope, columns: Tensor, inverse_noise: Tensor, ky: Tensor, kx: Tensor
) -> tuple[Tensor, Tensor]:
    """Transform images and weight them for insertion.

    Parameters
    ----------
    images : Tensor, shape (b, size, size)
        Of any float type, on the device that does the work.
    microscope : Microscope
        At the same pixels.
    columns : Tensor, shape (b, 4 or 5)
        Those of ``microscope``.
    inverse_noise : Tensor, float32, shape (p,)
    ky, kx : Tensor, int64, shape (p,)

    Returns
    -------
    data : Tensor, complex64, shape (b, p)
        With the phases of odd aberrations undone.
    weights : Tensor, float32, shape (b, p)
    """
    if has_triton(images.device):
        from cryoseg_dist.kernels.weighing_triton import weigh_triton

        spectra = torch.fft.rfft2(images.to(torch.float32))
        return weigh_triton(spectra, microscope, columns, inverse_noise, ky, kx, images.shape[-1])
    data = torch.empty((len(images), len(ky)), dtype=torch.complex64, device=images.device)
    weights = torch.empty((len(images), len(ky)), device=images.device)
    for first in range(0, len(images), TRANSFORMED):
        rows = slice(first, first + TRANSFORMED)
        x = take_pixels(to_fourier(images[rows].to(torch.float32)), ky, kx)
        c, x = microscope.ctf(columns[rows]), microscope.in_phase(x, columns[rows])
        torch.mul(x, c * inverse_noise, out=data[rows])
        torch.mul(c, c * inverse_noise, out=weights[rows])
    return data, weights
