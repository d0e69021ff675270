"""How well the images tell orientations apart, from the map and the noise alone."""

import math

import torch
from torch import Tensor

from cryoseg_dist.kernels.orientation_grid import rotation_vectors_to_matrix
from cryoseg_dist.kernels.slices import project_pixels

# A wrong pose is told from the right one when it is a hundred times less likely, as in RELION.
LOG_ODDS = math.log(100.0)
# Degrees tried: a quarter, each next the square root of two times the last, to 32.
TRIED = 0.25 * 2.0 ** (0.5 * torch.arange(15, dtype=torch.float64))


def angular_accuracy(volume: Tensor, rotations: Tensor, weight: Tensor, ky: Tensor, kx: Tensor) -> Tensor:
    """Smallest rotation that makes an image expectedly a hundred times less likely (Scheres 2012, J. Struct. Biol. 180, 519).

    Turning the reference by ``R'`` lowers the log-likelihood of an image of it by ``<W, |P_R - P_R'|^2> / 2`` on average, ``W`` as
    of ``matching.Observations``.

    Parameters
    ----------
    volume : Tensor, complex64
        From ``slices.prepare_volume``.
    rotations : Tensor, shape (b, 3, 3)
    weight : Tensor, float32, shape (b, p)
    ky, kx : Tensor, int64, shape (p,)

    Returns
    -------
    Tensor, float32, shape (b,)
        Degrees, the mean over turns about the axes of the map; 32 where no turn is told.
    """
    vectors = (torch.eye(3, dtype=torch.float64)[:, None] * TRIED[:, None]).flatten(0, 1)
    turns = rotation_vectors_to_matrix(vectors).to(rotations)
    tried = TRIED.to(rotations)
    out = []
    for rotation, w in zip(rotations, weight, strict=True):
        here, *turned = project_pixels(volume, torch.cat((rotation[None], rotation @ turns)), ky, kx)
        change = torch.stack(turned) - here
        lost = 0.5 * (change.real.square() + change.imag.square()) @ w
        lost = lost.unflatten(0, (3, -1)).clamp(min=1e-12)
        out.append(_first_reaching(lost, tried).mean())
    return torch.stack(out)


def _first_reaching(lost: Tensor, tried: Tensor) -> Tensor:
    """Angle at which each row of ``lost`` (a, t) first reaches the odds; between two angles it is a power of the angle."""
    reached = lost >= LOG_ODDS
    first = torch.where(reached.any(dim=1), reached.int().argmax(dim=1), len(tried) - 1)
    before = (first - 1).clamp(min=0)
    rows = torch.arange(len(lost), device=lost.device)
    low, high = lost[rows, before].log(), lost[rows, first].log()
    share = ((math.log(LOG_ODDS) - low) / (high - low).clamp(min=1e-6)).clamp(0.0, 1.0)
    # Below the smallest angle the loss grows with its square.
    below = (LOG_ODDS / lost[:, 0]).sqrt().clamp(max=1.0)
    between = tried[before] * (tried[first] / tried[before]) ** share
    return torch.where(first == 0, tried[0] * below, between)
