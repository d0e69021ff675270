"""Particle windows: cut, normalised, resampled."""

import torch
from torch import Tensor

from cryoseg_dist.kernels.mask import distance_from_centre

FAST_FACTORS = (2, 3, 5)


def fast_even_size(n: float) -> int:
    """Smallest even size of at least ``n`` whose factors are 2, 3 and 5."""
    size = 2 * -(-int(-(-n // 1)) // 2)
    while True:
        rest = size
        for factor in FAST_FACTORS:
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 2


def cut_windows(micrograph: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Cut square windows whose centre ``size // 2`` lies on a pixel; border pixels repeat beyond the micrograph.

    Parameters
    ----------
    micrograph : Tensor, shape (rows, columns)
    x, y : Tensor, int64, shape (n,)
        Column and row of the centres.
    size : int

    Returns
    -------
    Tensor, shape (n, size, size)
    """
    offset = torch.arange(size) - size // 2
    rows = (y[:, None] + offset).clamp(0, micrograph.shape[0] - 1)
    columns = (x[:, None] + offset).clamp(0, micrograph.shape[1] - 1)
    return micrograph[rows[:, :, None], columns[:, None, :]]


def remove_dust(images: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """Replace pixels beyond ``limit`` standard deviations by noise of the image's mean and deviation."""
    mean = images.mean(dim=(1, 2), keepdim=True)
    deviation = images.std(dim=(1, 2), keepdim=True)
    outlier = (images - mean).abs() > limit * deviation
    if not bool(outlier.any()):
        return images.clone()
    return torch.where(outlier, mean + deviation * torch.randn(images.shape, generator=generator), images)


def normalise_background(images: Tensor, radius_px: float) -> Tensor:
    """Remove the ramp of the background, then set its mean to 0 and its standard deviation to 1.

    Parameters
    ----------
    images : Tensor, shape (n, size, size)
    radius_px : float
        The background is what lies outside this radius.

    Returns
    -------
    Tensor, shape (n, size, size)
        An image without contrast in its background comes back as zeros.
    """
    size = images.shape[-1]
    outside = (distance_from_centre(size, 2) > radius_px).flatten()
    axis = torch.arange(size, dtype=torch.float32) - size // 2
    plane = torch.stack((torch.ones(size * size), axis.repeat(size), axis.repeat_interleave(size)), dim=1)
    background = images.flatten(1)[:, outside]
    solve = torch.linalg.pinv(plane[outside])
    flat = images.flatten(1) - (background @ solve.T) @ plane.T
    deviation = flat[:, outside].std(dim=1, keepdim=True)
    scaled = torch.where(deviation > 0, flat / deviation.clamp(min=1e-12), 0.0)
    return scaled.reshape(images.shape)
