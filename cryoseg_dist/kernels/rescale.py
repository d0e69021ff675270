"""Change of pixel size of rectangular images by cropping or padding their transforms."""

import torch
from torch import Tensor

FAST_FACTORS = (2, 3, 5)


def rescaled_shape(shape: tuple[int, int], pixel_size: float, target: float) -> tuple[int, int]:
    """Extent (y, x) at a new pixel size, rounded to even numbers."""
    factor = pixel_size / target
    y, x = (max(2, 2 * round(0.5 * n * factor)) for n in shape)
    return y, x


def fourier_rescale(image: Tensor, new_shape: tuple[int, int]) -> Tensor:
    """Resample images to another extent; grey values stay.

    Parameters
    ----------
    image : Tensor, real, shape (..., y, x)
    new_shape : tuple of int
        New extent (y, x). The pixel size along each axis becomes ``old * n / new``: equal along both axes to
        within half a pixel over the image.

    Returns
    -------
    Tensor, shape (..., new y, new x)
    """
    height, width = image.shape[-2:]
    new_height, new_width = new_shape
    spectrum = torch.fft.rfft2(image)
    keep_y, keep_x = (min(height, new_height) - 1) // 2, (min(width, new_width) - 1) // 2
    out = spectrum.new_zeros((*spectrum.shape[:-2], new_height, new_width // 2 + 1))
    out[..., : keep_y + 1, : keep_x + 1] = spectrum[..., : keep_y + 1, : keep_x + 1]
    if keep_y:
        out[..., -keep_y:, : keep_x + 1] = spectrum[..., -keep_y:, : keep_x + 1]
    scale = (new_height * new_width) / (height * width)
    return torch.fft.irfft2(out * scale, s=new_shape)


def fast_size(n: int) -> int:
    """Smallest even size of at least ``n`` with factors 2, 3 and 5 alone."""
    size = n + n % 2
    while True:
        rest = size
        for factor in FAST_FACTORS:
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 2
