"""Anisotropic magnification: an image's frequency, times a matrix of its optics group, is that of the specimen.

The convention is RELION's (Zivanov, Nakane & Scheres 2020): slices, CTF and aberrations are all taken at ``M k``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cryoseg_dist.schema.optics import NOT_MAGNIFIED, Optics


def is_magnified(groups: Sequence[Optics]) -> bool:
    """Whether some group has a matrix other than the identity."""
    return any(group.magnification != NOT_MAGNIFIED for group in groups)


def matrices(groups: Sequence[Optics]) -> Tensor:
    """Matrix of each group, float64, shape (groups, 2, 2), of frequencies (x, y)."""
    return torch.tensor([group.magnification for group in groups], dtype=torch.float64).unflatten(1, (2, 2))


def stretch(groups: Sequence[Optics]) -> float:
    """How much farther out the specimen's frequencies may lie than those of the images; at least 1."""
    if not is_magnified(groups):
        # Exactly one: on the rim of some boxes lie pixels that rounding would leave out.
        return 1.0
    return max(1.0, float(torch.linalg.matrix_norm(matrices(groups), ord=2).max()))


def of_form(factors: Tensor, matrix: Tensor) -> Tensor:
    """Factors (n, 3) of ``k^2``, ``x^2 - y^2`` and ``2 x y`` at ``M k`` as factors of those at ``k``, ``M`` (n, 2, 2)."""
    even, odd, mixed = factors.unbind(1)
    form = torch.stack((even + odd, mixed, mixed, even - odd), dim=1).unflatten(1, (2, 2))
    form = matrix.mT @ form @ matrix
    first, last = form[:, 0, 0], form[:, 1, 1]
    return torch.stack((0.5 * (first + last), 0.5 * (first - last), form[:, 0, 1]), dim=1)
