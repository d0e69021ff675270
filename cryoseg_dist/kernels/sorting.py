"""Simple statistics that tell junk from particles."""

import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import shell_mean, to_fourier
from cryoseg_dist.kernels.mask import distance_from_centre

FEATURES = ("mean", "deviation", "skewness", "kurtosis", "extreme", "low_power")


def particle_statistics(images: Tensor, radius_px: float) -> Tensor:
    """Features of normalised windows.

    Parameters
    ----------
    images : Tensor, float32, shape (n, size, size)
        Background of mean 0 and deviation 1.
    radius_px : float
        Particle radius.

    Returns
    -------
    Tensor, float32, shape (n, 6)
        Mean and deviation inside the particle, skewness, excess kurtosis and largest deviation of the whole window, and the
        logarithm of the power in the lowest shells.
    """
    size = images.shape[-1]
    inside = (distance_from_centre(size, 2) <= radius_px).flatten()
    flat = images.flatten(1)
    core = flat[:, inside]
    centred = flat - flat.mean(dim=1, keepdim=True)
    deviation = centred.std(dim=1).clamp(min=1e-6)
    standard = centred / deviation[:, None]
    power = shell_mean(to_fourier(images).abs().square(), size)[:, 1:4].mean(dim=1)
    return torch.stack(
        (
            core.mean(dim=1),
            core.std(dim=1),
            standard.pow(3).mean(dim=1),
            standard.pow(4).mean(dim=1) - 3.0,
            standard.abs().amax(dim=1),
            power.clamp(min=1e-6).log(),
        ),
        dim=1,
    )


def outlier_scores(statistics: Tensor) -> Tensor:
    """Largest robust deviation of each row from the median over all columns.

    Deviations are in units of 1.4826 times the median absolute deviation of the column.

    Parameters
    ----------
    statistics : Tensor, shape (n, features)

    Returns
    -------
    Tensor, shape (n,)
    """
    distance = statistics - statistics.median(dim=0).values
    spread = 1.4826 * distance.abs().median(dim=0).values
    usable = spread > 0
    if not bool(usable.any()):
        return torch.zeros(statistics.shape[0])
    return (distance[:, usable].abs() / spread[usable]).amax(dim=1)
