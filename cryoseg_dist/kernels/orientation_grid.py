"""Grids over orientations: HEALPix viewing directions times in-plane rotations (Gorski et al. 2005)."""

import math

import torch
from torch import Tensor

from cryoseg_dist.kernels.so3 import euler_to_matrix, quaternion_to_matrix
from cryoseg_dist.kernels.symmetry import in_asymmetric_unit, operators


def angular_step(order: int) -> float:
    """In-plane step, in degrees, that goes with a HEALPix order: 60, 30, 15, 7.5 ... for 0, 1, 2, 3."""
    return 60.0 / 2**order


def rim_displacement(step: float, diameter: float) -> float:
    """How far a rotation by ``step`` degrees moves the rim of a particle of this diameter."""
    return math.radians(step) * 0.5 * diameter


def healpix_directions(order: int) -> Tensor:
    """Centres of the ``12 * 4**order`` equal-area pixels, ring order.

    Returns
    -------
    Tensor, float64, shape (n, 2)
        ``rot`` and ``tilt`` in degrees.
    """
    nside = 2**order
    p = torch.arange(12 * nside**2, dtype=torch.float64)
    n_cap = 2 * nside * (nside - 1)
    north, south = p < n_cap, p >= 12 * nside**2 - n_cap
    z, phi = torch.empty_like(p), torch.empty_like(p)

    def cap(index: Tensor) -> tuple[Tensor, Tensor]:
        ring = torch.floor(0.5 * (1.0 + torch.sqrt(1.0 + 2.0 * index)))
        ring = torch.where(2 * ring * (ring - 1) > index, ring - 1, ring)
        ring = torch.where(2 * ring * (ring + 1) <= index, ring + 1, ring)
        j = index - 2 * ring * (ring - 1)
        return 1.0 - ring**2 / (3.0 * nside**2), (j + 0.5) * math.pi / (2.0 * ring)

    z[north], phi[north] = cap(p[north])
    flipped_z, flipped_phi = cap(12 * nside**2 - 1 - p[south])
    z[south], phi[south] = -flipped_z, 2.0 * math.pi - flipped_phi
    belt = ~(north | south)
    q = p[belt] - n_cap
    ring = torch.floor(q / (4 * nside)) + nside
    j = torch.remainder(q, 4 * nside)
    offset = torch.where(torch.remainder(ring - nside, 2) == 0, 0.5, 0.0)
    z[belt] = (2.0 * nside - ring) * 2.0 / (3.0 * nside)
    phi[belt] = (j + offset) * math.pi / (2.0 * nside)
    return torch.stack((torch.rad2deg(phi), torch.rad2deg(torch.acos(z.clamp(-1.0, 1.0)))), -1)


def psi_angles(order: int) -> Tensor:
    """In-plane angles in degrees, shape (6 * 2**order,)."""
    step = angular_step(order)
    return torch.arange(round(360.0 / step), dtype=torch.float64) * step


def orientation_grid(order: int, group: str = "C1", perturbation: Tensor | None = None) -> Tensor:
    """Orientations covering SO(3) modulo a point group, in-plane angle fastest.

    Parameters
    ----------
    order : int
        HEALPix order; the step is ``60 / 2**order`` degrees.
    group : str
        Only viewing directions in its asymmetric unit are returned.
    perturbation : Tensor, shape (3, 3), optional
        A small rotation applied to the whole grid, so that no iteration samples the same orientations.

    Returns
    -------
    Tensor, float64, shape (n_directions * n_psi, 3, 3)
    """
    angles = healpix_directions(order)
    zero = torch.zeros_like(angles[:, 0])
    views = euler_to_matrix(angles[:, 0], angles[:, 1], zero)
    views = views[in_asymmetric_unit(views[:, 2], group)]
    psi = psi_angles(order)
    spin = euler_to_matrix(torch.zeros_like(psi), torch.zeros_like(psi), psi)
    grid = torch.einsum("pij,vjk->vpik", spin, views).reshape(-1, 3, 3)
    return grid if perturbation is None else grid @ perturbation.to(grid.dtype)


def n_orientations(order: int, group: str) -> int:
    """About how many orientations a grid has: directions times in-plane angles over the group's order."""
    return 12 * 4**order * 6 * 2**order // operators(group).shape[0]


def random_perturbation(order: int, generator: torch.Generator) -> Tensor:
    """A rotation about a random axis by up to half a grid step, float64, shape (3, 3)."""
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    axis = axis / axis.norm()
    angle = math.radians(0.5 * angular_step(order)) * float(torch.rand((), generator=generator))
    half = torch.tensor(0.5 * angle, dtype=torch.float64)
    return quaternion_to_matrix(torch.cat((half.cos()[None], half.sin() * axis)))


def neighbours(step: float, radius: float) -> Tensor:
    """Small rotations on a cubic lattice of rotation vectors, the identity among them.

    Parameters
    ----------
    step : float
        Lattice spacing in degrees.
    radius : float
        Longest rotation vector in degrees.

    Returns
    -------
    Tensor, float64, shape (n, 3, 3)
    """
    n = math.floor(radius / step + 1e-9)
    axis = torch.arange(-n, n + 1, dtype=torch.float64) * step
    vectors = torch.cartesian_prod(axis, axis, axis)
    vectors = vectors[vectors.norm(dim=1) <= radius + 1e-9]
    return rotation_vectors_to_matrix(vectors)


def subdivide(step: float) -> Tensor:
    """The eight rotations by a quarter step along each axis that split a cell of a grid; shape (8, 3, 3)."""
    quarter = torch.tensor([-0.25 * step, 0.25 * step], dtype=torch.float64)
    return rotation_vectors_to_matrix(torch.cartesian_prod(quarter, quarter, quarter))


def rotation_vectors_to_matrix(vectors: Tensor) -> Tensor:
    """Rotations from axis-angle vectors in degrees; (..., 3) to (..., 3, 3)."""
    angle = torch.deg2rad(vectors.norm(dim=-1, keepdim=True))
    axis = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return quaternion_to_matrix(torch.cat(((0.5 * angle).cos(), (0.5 * angle).sin() * axis), -1))
