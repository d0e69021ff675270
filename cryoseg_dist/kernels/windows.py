"""Particle windows: cut, normalised, resampled."""

from functools import lru_cache

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
    top, left = y - size // 2, x - size // 2
    out = torch.empty((len(x), size, size), dtype=micrograph.dtype, device=micrograph.device)
    height, width = micrograph.shape
    inside = (top >= 0) & (left >= 0) & (top + size <= height) & (left + size <= width)
    if bool(inside.any()):
        every = micrograph.unfold(0, size, 1).unfold(1, size, 1)
        out[inside] = every[top[inside], left[inside]]
    beyond = ~inside
    if bool(beyond.any()):
        offset = torch.arange(size, device=micrograph.device)
        rows = (top[beyond, None] + offset).clamp(0, height - 1)
        columns = (left[beyond, None] + offset).clamp(0, width - 1)
        out[beyond] = micrograph[rows[:, :, None], columns[:, None, :]]
    return out


def remove_dust(images: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """Replace pixels beyond ``limit`` standard deviations by noise of the image's mean and deviation."""
    mean = images.mean(dim=(1, 2), keepdim=True)
    centred = images - mean
    flat = centred.flatten(1)
    deviation = (torch.linalg.vecdot(flat, flat) / max(1, flat.shape[1] - 1)).sqrt()
    out = images.clone()
    for i in torch.nonzero(flat.abs().amax(dim=1) > limit * deviation).flatten().tolist():
        outlier = centred[i].abs() > limit * deviation[i]
        noise = torch.randn(int(outlier.sum()), generator=generator, dtype=images.dtype)
        out[i][outlier] = mean[i, 0, 0] + deviation[i] * noise.to(images.device)
    return out


@lru_cache(maxsize=8)
def _background_fit(size: int, radius_px: float) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares plane of the background of a flattened image.

    Returns
    -------
    plane : Tensor, float32, shape (3, size * size)
        1, x, y.
    solve : Tensor, float32, shape (3, size * size)
        Takes an image to the plane's coefficients; zero inside the radius.
    outside : Tensor, float32, shape (size * size,)
        1 in the background, 0 inside the radius.
    """
    outside = (distance_from_centre(size, 2) > radius_px).flatten().to(torch.float64)
    axis = (torch.arange(size, dtype=torch.float64) - size // 2) / size
    plane = torch.stack((torch.ones(size * size, dtype=torch.float64), axis.repeat(size), axis.repeat_interleave(size)))
    weighted = plane * outside
    solve = torch.linalg.pinv(weighted @ plane.T) @ weighted
    return plane.float(), solve.float(), outside.float()


def normalise_background(images: Tensor, radius_px: float) -> Tensor:
    """Remove the ramp of the background, then set its mean to 0 and its standard deviation to 1.

    Parameters
    ----------
    images : Tensor, float32, shape (n, size, size)
    radius_px : float
        The background is what lies outside this radius.

    Returns
    -------
    Tensor, float32, shape (n, size, size)
        An image without contrast in its background comes back as zeros.
    """
    plane, solve, outside = (t.to(images.device) for t in _background_fit(images.shape[-1], radius_px))
    # Without the mean, sums over large grey values keep their precision.
    flat = images.flatten(1) - images.mean(dim=(1, 2))[:, None]
    flat = torch.addmm(flat, flat @ solve.T, plane, alpha=-1.0)
    variance = (flat.square() @ outside) / (outside.sum() - 1.0)
    scale = torch.where(variance > 0, variance.clamp(min=1e-24).rsqrt(), 0.0)
    return (flat * scale[:, None]).reshape(images.shape)
