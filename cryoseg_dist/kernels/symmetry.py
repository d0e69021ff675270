"""Point groups in RELION's setting.

C<n> and D<n> have their main axis on z, D<n> a 2-fold on x. T has a 3-fold on z, O has its 4-folds on the axes, I (I2) has
2-folds on the axes in Crowther's setting, I1 the other one.
"""

import math
import re
from functools import lru_cache

import torch
from torch import Tensor

from cryoseg_dist.errors import SettingsError

_GOLDEN = (1.0 + math.sqrt(5.0)) / 2.0


def axis_rotation(axis: tuple[float, float, float], angle_deg: float) -> Tensor:
    """Rotation matrix about an axis (Rodrigues), float64, shape (3, 3)."""
    a = torch.tensor(axis, dtype=torch.float64)
    a = a / a.norm()
    angle = math.radians(angle_deg)
    cross = torch.tensor([[0.0, -a[2], a[1]], [a[2], 0.0, -a[0]], [-a[1], a[0], 0.0]], dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    return identity + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross


def _generators(group: str) -> list[Tensor]:
    name = group.strip().upper()
    cyclic = re.fullmatch(r"([CD])([1-9][0-9]{0,2})", name)
    x, z = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    if cyclic:
        main = axis_rotation(z, 360.0 / int(cyclic[2]))
        return [main] if cyclic[1] == "C" else [main, axis_rotation(x, 180.0)]
    if name == "T":
        return [axis_rotation(z, 120.0), axis_rotation((0.0, math.sqrt(2.0), 1.0), 180.0)]
    if name == "O":
        return [axis_rotation(z, 90.0), axis_rotation((1.0, 1.0, 1.0), 120.0)]
    if name in ("I", "I2"):
        return [axis_rotation(z, 180.0), axis_rotation((1.0, 0.0, _GOLDEN), 72.0)]
    if name == "I1":
        return [axis_rotation(z, 180.0), axis_rotation((0.0, 1.0, _GOLDEN), 72.0)]
    raise SettingsError([f"symmetry: expected C<n>, D<n>, T, O, I, I1 or I2, got {group!r}. C1 means no symmetry."])


@lru_cache(maxsize=32)
def _closed(group: str) -> Tensor:
    generators = _generators(group)
    elements = torch.eye(3, dtype=torch.float64)[None]
    frontier = elements
    while frontier.shape[0]:
        products = torch.cat([frontier @ g for g in generators])
        fresh = []
        for candidate in products:
            if (elements - candidate).abs().amax((1, 2)).min() > 1e-6:
                elements = torch.cat((elements, candidate[None]))
                fresh.append(candidate)
        frontier = torch.stack(fresh) if fresh else elements[:0]
    return elements


def operators(group: str) -> Tensor:
    """Rotations of a point group, the identity first.

    Parameters
    ----------
    group : str
        ``C<n>``, ``D<n>``, ``T``, ``O``, ``I`` (= ``I2``) or ``I1``.

    Returns
    -------
    Tensor, float64, shape (s, 3, 3)
        ``A`` and ``A @ S`` are the same view of a map with this symmetry.

    Raises
    ------
    SettingsError
        Unknown group.
    """
    return _closed(group.strip().upper()).clone()


def in_asymmetric_unit(directions: Tensor, group: str) -> Tensor:
    """Which viewing directions lie in one asymmetric unit of the group.

    The unit is the Voronoi cell of a fixed general direction among its images; ties fall to exactly one side.

    Parameters
    ----------
    directions : Tensor, shape (n, 3)
        Unit vectors in ``xyz``.

    Returns
    -------
    Tensor, bool, shape (n,)
    """
    ops = operators(group)
    if ops.shape[0] == 1:
        return torch.ones(directions.shape[0], dtype=torch.bool)
    # No axis of any group passes near this direction.
    seed = torch.tensor([0.2867, 0.1713, 0.9426], dtype=torch.float64)
    seed = seed / seed.norm()
    closeness = directions.to(torch.float64) @ (ops @ seed).T
    return closeness[:, 0] >= closeness[:, 1:].amax(dim=1)


def to_asymmetric_unit(rotations: Tensor, group: str) -> Tensor:
    """Replace each orientation by its equivalent whose view lies in the asymmetric unit; shape (n, 3, 3)."""
    ops = operators(group).to(rotations.dtype)
    seed = torch.tensor([0.2867, 0.1713, 0.9426], dtype=rotations.dtype)
    best = torch.einsum("nj,sjk,k->ns", rotations[:, 2], ops, seed).argmax(dim=1)
    return rotations @ ops[best]


def is_cubic(group: str) -> bool:
    """Whether a point group is tetrahedral, octahedral or icosahedral: its particles are nearly round."""
    return group.strip().upper()[0] in "TOI"
