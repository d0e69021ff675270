"""Rotations in RELION's convention.

An orientation is the matrix ``A = Rz(psi) Ry(tilt) Rz(rot)`` of passive rotations. Its rows, as vectors in
``xyz`` of the volume, are the image's x axis, its y axis and the viewing direction: a central slice samples the
volume's transform at ``kx * A[0] + ky * A[1]``.
"""

import torch
from torch import Tensor


def euler_to_matrix(rot: Tensor, tilt: Tensor, psi: Tensor) -> Tensor:
    """Orientation matrices from ZYZ Euler angles in degrees.

    Parameters
    ----------
    rot, tilt, psi : Tensor, shape (...,)

    Returns
    -------
    Tensor, shape (..., 3, 3)
    """
    a, b, g = (torch.deg2rad(v) for v in (rot, tilt, psi))
    ca, cb, cg = a.cos(), b.cos(), g.cos()
    sa, sb, sg = a.sin(), b.sin(), g.sin()
    rows = (
        torch.stack((cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb), -1),
        torch.stack((-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb), -1),
        torch.stack((sb * ca, sb * sa, cb), -1),
    )
    return torch.stack(rows, -2)


def matrix_to_euler(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ZYZ Euler angles ``rot, tilt, psi`` in degrees, ``tilt`` in [0, 180]; ``rot`` is 0 at the poles."""
    m = matrices
    sb = torch.hypot(m[..., 2, 0], m[..., 2, 1])
    pole = sb < 1e-6
    rot = torch.atan2(m[..., 2, 1], m[..., 2, 0])
    psi = torch.atan2(m[..., 1, 2], -m[..., 0, 2])
    tilt = torch.atan2(sb, m[..., 2, 2])
    up = m[..., 2, 2] > 0
    at_pole = torch.where(up, torch.atan2(-m[..., 1, 0], m[..., 0, 0]), torch.atan2(m[..., 1, 0], -m[..., 0, 0]))
    rot = torch.where(pole, torch.zeros_like(rot), rot)
    psi = torch.where(pole, at_pole, psi)
    return torch.rad2deg(rot), torch.rad2deg(tilt), torch.rad2deg(psi)


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """Rotation matrices from quaternions ``(w, x, y, z)`` of any length; shape (..., 4) to (..., 3, 3)."""
    w, x, y, z = (quaternions / quaternions.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)), -1),
        torch.stack((2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)), -1),
        torch.stack((2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)), -1),
    )
    return torch.stack(rows, -2)


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """Rotations drawn uniformly from SO(3), float64, shape (n, 3, 3)."""
    return quaternion_to_matrix(torch.randn((n, 4), generator=generator, dtype=torch.float64))


def angular_distance(a: Tensor, b: Tensor) -> Tensor:
    """Angle in degrees of the rotation that takes ``a`` to ``b``; broadcasts over (..., 3, 3)."""
    # The chord keeps its precision at small angles, where the trace loses it.
    chord = (a - b).square().sum((-1, -2)).sqrt()
    return torch.rad2deg(2.0 * torch.asin((chord / 8.0**0.5).clamp(max=1.0)))


def angular_distance_modulo(a: Tensor, b: Tensor, operators: Tensor) -> Tensor:
    """Smallest angle in degrees between ``a`` and ``b`` modulo a point group.

    Parameters
    ----------
    a, b : Tensor, shape (n, 3, 3)
    operators : Tensor, shape (s, 3, 3)
        Group operators ``S``; ``A`` and ``A S`` give the same projection.
    """
    return angular_distance(a[:, None], b[:, None] @ operators.to(b.dtype)).min(dim=1).values
