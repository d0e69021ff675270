"""Images to what insertion takes: transforms times CTF, and CTF squared, over the noise."""

import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import take_pixels
from cryoseg_dist.kernels.triton_support import has_triton
from cryoseg_dist.kernels.weighing_numba import weigh_numba


def weigh(
    images: Tensor,
    microscope: Microscope,
    columns: Tensor,
    inverse_noise: Tensor,
    ky: Tensor,
    kx: Tensor,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Transform images and weight them for insertion.

    Parameters
    ----------
    images : Tensor, shape (b, size, size)
        Of any float type, on the device that does the work.
    microscope : Microscope
        At the same pixels.
    columns : Tensor, shape (b, 4, 5 or 7)
        Those of ``microscope``.
    inverse_noise : Tensor, float32, shape (p,)
    ky, kx : Tensor, int64, shape (p,)
    out : tuple of Tensor, optional
        On the processor: where to put the results, for ``b`` images or more; see
        :func:`~cryoseg_dist.kernels.weighing_numba.weighed`.

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
    if images.device.type == "cpu":
        return weigh_numba(images, microscope, columns, inverse_noise, ky, kx, out)
    return weigh_torch(images, microscope, columns, inverse_noise, ky, kx)


def weigh_torch(
    images: Tensor, microscope: Microscope, columns: Tensor, inverse_noise: Tensor, ky: Tensor, kx: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with tensor operations: portable, the reference of faster kernels."""
    x, c = take_pixels(to_fourier(images.to(torch.float32)), ky, kx), microscope.ctf(columns)
    return microscope.in_phase(x, columns) * (c * inverse_noise), c * (c * inverse_noise)
