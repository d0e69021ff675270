"""Random molecules of many shapes, and their views."""

import numpy as np
import torch
from scipy import ndimage

from cryoseg_dist.kernels.fourier import shift, to_real
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.training.sample import PARTICLE_PX

BOX = 24
_AXIS = np.arange(BOX) - BOX // 2
_Z, _Y, _X = np.meshgrid(_AXIS, _AXIS, _AXIS, indexing="ij")
_R = np.sqrt(_X**2 + _Y**2 + _Z**2)


def _balls(centres: np.ndarray, sigmas: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Sum of Gaussians at centres (n, 3) as (x, y, z), in voxels from the box centre."""
    x, y, z = (np.exp(-((_AXIS - centres[:, i, None]) ** 2) / (2.0 * sigmas[:, None] ** 2)) for i in range(3))
    planes = (z * heights[:, None])[:, :, None] * y[:, None, :]
    return (planes.reshape(len(centres), -1).T @ x).reshape(BOX, BOX, BOX)


def _symmetric_balls(rng: np.random.Generator, group: str, n: int, radius: float) -> np.ndarray:
    directions = rng.normal(0, 1, (n, 3))
    directions *= (rng.uniform(0.1, 0.85, n) * radius / np.linalg.norm(directions, axis=1))[:, None]
    copies = operators(group).numpy()
    centres = np.einsum("sij,nj->nsi", copies, directions).reshape(-1, 3)
    sigmas = np.repeat(rng.uniform(1.0, 2.8, n), len(copies))
    return _balls(centres, sigmas, np.ones(len(centres)))


def _shell(rng: np.random.Generator, radius: float) -> np.ndarray:
    inner = rng.uniform(0.4, 0.8) * radius
    density = np.clip(radius + 0.5 - _R, 0, 1) * np.clip(_R - inner + 0.5, 0, 1)
    density = density + rng.choice((0.0, 0.15, 0.4)) * (inner >= _R)
    directions = rng.normal(0, 1, (12, 3))
    directions *= 0.85 * radius / np.linalg.norm(directions, axis=1, keepdims=True)
    holes = _balls(directions, rng.uniform(1.0, 2.0, 12), rng.uniform(0, 0.6) * rng.random(12))
    return density - holes


def _barrel(rng: np.random.Generator, radius: float) -> np.ndarray:
    outer, inner = rng.uniform(0.5, 0.8) * radius, rng.uniform(0.1, 0.4) * radius
    rho = np.sqrt(_X**2 + _Y**2)
    density = ((rho < outer) & (rho > inner) & (np.abs(_Z) < radius * rng.uniform(0.3, 0.95))).astype(float)
    return density * (1.0 + rng.uniform(0, 0.6) * np.cos(2 * np.pi * _Z / rng.uniform(4, 8)))


def _chain(rng: np.random.Generator) -> np.ndarray:
    steps = rng.normal(0, 1.6, (int(rng.integers(4, 10)), 3))
    for i in range(1, len(steps)):
        steps[i] += 0.6 * steps[i - 1]
    path = np.cumsum(steps, axis=0)
    return _balls(path - path.mean(axis=0), rng.uniform(1.3, 2.4, len(path)), np.ones(len(path)))


def random_molecule(rng: np.random.Generator) -> np.ndarray:
    """A density about ``PARTICLE_PX`` voxels across whose largest projected value is about one.

    Globules, hollow shells, barrels and rings, chains of domains, symmetric assemblies.

    Returns
    -------
    ndarray, float32, shape (BOX, BOX, BOX)
    """
    radius = PARTICLE_PX / 2
    kind = rng.choice(("globule", "shell", "chain", "barrel", "assembly"), p=(0.25, 0.25, 0.15, 0.15, 0.2))
    if kind == "shell":
        density = _shell(rng, radius)
    elif kind == "barrel":
        density = _barrel(rng, radius)
    elif kind == "chain":
        density = _chain(rng)
    elif kind == "globule":
        density = _symmetric_balls(rng, "C1", int(rng.integers(3, 14)), radius)
    else:
        group = str(rng.choice(("C2", "C3", "C4", "C5", "D2", "D3", "D7", "T", "O")))
        density = _symmetric_balls(rng, group, int(rng.integers(1, 4)), radius)
    return _fit_to_diameter(ndimage.gaussian_filter(np.clip(density, 0, None), 0.6), rng)


def _fit_to_diameter(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centre on the mass and scale so that the longest extent is about the nominal diameter, which users overrate."""
    solid = np.argwhere(density > 0.2 * density.max())
    middle = solid.mean(axis=0)
    extent = 2.0 * np.quantile(np.linalg.norm(solid - middle, axis=1), 0.98)
    zoom = np.clip(extent / PARTICLE_PX, 0.4, 2.5) / rng.uniform(0.8, 1.05)
    centre = np.array(ndimage.center_of_mass(density))
    out = ndimage.affine_transform(density, np.eye(3) * zoom, offset=centre - zoom * (BOX // 2), order=1)
    return (out / max(float(out.sum(axis=0).max()), 1e-6)).astype(np.float32)


def paste_views(
    molecule: np.ndarray, centres: np.ndarray, contrast: np.ndarray, extent: int, rng: np.random.Generator
) -> np.ndarray:
    """An image of randomly oriented copies of a molecule.

    Parameters
    ----------
    molecule : ndarray, float32, shape (BOX, BOX, BOX)
    centres : ndarray, shape (n, 2)
        Row and column of each copy in pixels; they may lie up to ``BOX`` pixels beyond the image.
    contrast : ndarray, shape (n,)
        Factor of each copy.
    extent : int
        Side of the image in pixels.

    Returns
    -------
    ndarray, float32, shape (extent, extent)
    """
    padded = np.zeros((extent + 4 * BOX) ** 2, dtype=np.float32)
    if len(centres):
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
        spectra = project(
            prepare_volume(torch.from_numpy(molecule)), random_rotations(len(centres), generator).float(), BOX
        )
        whole = np.floor(centres).astype(np.int64)
        rest = torch.from_numpy((centres - whole)[:, ::-1].astype(np.float32).copy())
        views = to_real(shift(spectra, rest, BOX), BOX).numpy() * contrast[:, None, None].astype(np.float32)
        width = extent + 4 * BOX
        rows = whole[:, 0, None] + 2 * BOX + _AXIS[None, :]
        columns = whole[:, 1, None] + 2 * BOX + _AXIS[None, :]
        index = rows[:, :, None] * width + columns[:, None, :]
        padded = np.bincount(index.ravel(), weights=views.ravel(), minlength=width * width).astype(np.float32)
    square = padded.reshape(extent + 4 * BOX, extent + 4 * BOX)
    return square[2 * BOX : 2 * BOX + extent, 2 * BOX : 2 * BOX + extent]
