"""Where particles are seen from."""

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.kernels.symmetry import operators

_MOST = 200_000  # axes that are enough for figures and numbers


def view_axes(orientations: np.ndarray, symmetry: str | None, seed: int = 0) -> Tensor:
    """Unit view axes of particles with all their symmetry-related copies.

    Parameters
    ----------
    orientations : ndarray, shape (p, at least 2)
        Rot and tilt in degrees.
    symmetry : str, optional
    seed : int
        Of the choice of particles, where there are very many.

    Returns
    -------
    Tensor, float32, shape (n, 3)
        xyz.
    """
    angles = torch.as_tensor(np.asarray(orientations, dtype=np.float64)[:, :2].copy())
    group = operators(symmetry or "C1").to(torch.float64)
    most = max(1, _MOST // group.shape[0])
    if angles.shape[0] > most:
        angles = angles[torch.randperm(angles.shape[0], generator=torch.Generator().manual_seed(seed))[:most]]
    matrices = euler_to_matrix(angles[:, 0], angles[:, 1], torch.zeros_like(angles[:, 0])).to(torch.float64)
    return torch.einsum("nj,gjk->ngk", matrices[:, 2], group).reshape(-1, 3).to(torch.float32)
