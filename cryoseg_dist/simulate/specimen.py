"""Density maps with known truth: from atomic models, or made up."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.sharpen import low_pass_shell
from cryoseg_dist.kernels.slices import prepare_volume
from cryoseg_dist.kernels.symmetry import operators


@dataclass(frozen=True)
class Specimen:
    """A map to simulate from.

    Attributes
    ----------
    volume : Tensor, float32, shape (n, n, n)
        Protein density above the ice, centred.
    pixel_size : float
        A.
    symmetry : str
    diameter : float
        Longest extent in A.
    """

    volume: Tensor
    pixel_size: float
    symmetry: str
    diameter: float

    @cached_property
    def transform(self) -> Tensor:
        """The volume's transform for slicing, computed once."""
        return prepare_volume(self.volume)


def splat(points: np.ndarray, weights: np.ndarray, size: int, pixel_size: float, resolution: float) -> Tensor:
    """Density of point scatterers (xyz in A about the origin), low-passed.

    Parameters
    ----------
    points : ndarray, shape (n, 3)
    weights : ndarray, shape (n,)
    size : int
    pixel_size, resolution : float
        A.
    """
    index = points[:, ::-1] / pixel_size + size // 2
    base = np.floor(index).astype(int)
    fraction = index - base
    grid = np.zeros((size,) * 3)
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, fraction, 1.0 - fraction), axis=1) * weights
        at = base + corner
        inside = ((at >= 0) & (at < size)).all(axis=1)
        flat = np.ravel_multi_index(tuple(at[inside].T), grid.shape)
        np.add.at(grid.reshape(-1), flat, share[inside])
    # A Gaussian whose transform falls to 1/e at the resolution.
    sigma = resolution / (np.sqrt(2.0) * np.pi * pixel_size)
    smooth = ndimage.gaussian_filter(grid, sigma).astype(np.float32)
    return torch.from_numpy(smooth)


def _helix(start: np.ndarray, direction: np.ndarray, n_residues: int, rng: np.random.Generator) -> np.ndarray:
    """Residues of a right-handed alpha helix (1.5 A rise, 100 degrees, 2.3 A radius), each with a side chain outside it."""
    side = np.cross(direction, rng.normal(size=3))
    side /= np.linalg.norm(side)
    other = np.cross(direction, side)
    turn = np.deg2rad(100.0) * np.arange(n_residues)[:, None]
    spoke = np.cos(turn) * side + np.sin(turn) * other
    axis = start + 1.5 * np.arange(n_residues)[:, None] * direction
    return np.concatenate((axis + 2.3 * spoke, axis + rng.uniform(3.5, 5.5, (n_residues, 1)) * spoke))


def made_up(
    *,
    symmetry: str = "C1",
    diameter: float = 150.0,
    size: int = 64,
    pixel_size: float = 3.0,
    resolution: float = 7.0,
    seed: int = 0,
) -> Specimen:
    """A protein-like assembly: helices packed side by side in an irregular envelope.

    Asymmetric and chiral but for its point group; helices keep 8.5 A from one another and from their symmetry mates.

    Parameters
    ----------
    symmetry : str
    diameter : float
        Longest extent in A, about.
    size : int
    pixel_size, resolution : float
        A.
    seed : int
    """
    rng = np.random.default_rng(seed)
    ops = operators(symmetry).numpy()
    radius = 0.5 * diameter
    # Lobes of different sizes make every view different.
    lobes = rng.normal(size=(4 if len(ops) == 1 else 2, 3))
    reach = rng.uniform(0.35, 0.6, len(lobes)) * radius
    lobes *= ((radius - reach) / np.linalg.norm(lobes, axis=1))[:, None]
    taken = np.empty((0, 3))
    residues = []
    for _ in range(4000):
        lobe = rng.integers(len(lobes))
        n = int(rng.integers(9, 26))
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        middle = lobes[lobe] + rng.normal(size=3) * 0.5 * reach[lobe]
        spine = middle + np.linspace(-0.75 * n, 0.75 * n, 8)[:, None] * direction
        nearest = np.linalg.norm(spine[:, None] - lobes, axis=2) / reach
        if (nearest.min(axis=1) > 1.0).any():
            continue
        mates = np.concatenate([spine @ s.T for s in ops[1:]]) if len(ops) > 1 else np.empty((0, 3))
        near = np.concatenate((taken, mates))
        if len(near) and np.linalg.norm(spine[:, None] - near, axis=2).min() < 8.5:
            continue
        taken = np.concatenate((taken, spine, mates))
        residues.append(_helix(spine[0], direction, n, rng))
    subunit = np.concatenate(residues)
    assembly = np.concatenate([subunit @ s.T for s in ops])
    if len(ops) == 1:
        assembly = assembly - assembly.mean(axis=0)
    extent = 2.0 * float(np.linalg.norm(assembly, axis=1).max())
    return Specimen(
        splat(assembly, np.ones(len(assembly)), size, pixel_size, resolution), pixel_size, symmetry.upper(), extent
    )


def from_model(
    path: Path,
    *,
    pixel_size: float,
    resolution: float,
    size: int | None = None,
    symmetry: str = "C1",
    assembly: str | None = None,
) -> Specimen:
    """Density of an atomic model (mmCIF or PDB, gzip too), centred on its mass.

    Each atom scatters electrons as ``gemmi``'s c4322 factors (Peng 1996) say for zero angle; its shape is that of the
    resolution, which is far wider than the atom's own. Water is left out; hydrogens count as far as the model has them.

    Parameters
    ----------
    path : Path
    pixel_size, resolution : float
        A.
    size : int, optional
        Box; 1.4 times the molecule's extent when not given.
    symmetry : str
        Point group that the model has in its own frame.
    assembly : str, optional
        Name of a biological assembly in the file, as ``"1"``; the model as it is when not given.

    Raises
    ------
    BadInputError
        Not a readable model, no atoms, an assembly the file does not have, or atoms beyond the box.
    """
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as fault:
        raise BadInputError(str(path), "an atomic model (mmCIF or PDB)", str(fault)) from None
    if assembly is not None and len(structure):
        known = [a.name for a in structure.assemblies]
        if assembly not in known:
            raise BadInputError(str(path), f"an assembly {assembly!r}", f"assemblies {', '.join(known) or 'none'}")
        structure.transform_to_assembly(assembly, gemmi.HowToNameCopiedChain.Short)
    table = _atoms(structure[0]) if len(structure) else np.empty((0, 4))
    if not len(table):
        raise BadInputError(str(path), "a model with atoms", "none")
    points = table[:, :3] - np.average(table[:, :3], axis=0, weights=table[:, 3])
    reach = float(np.linalg.norm(points, axis=1).max())
    box = size or 2 * math.ceil(1.4 * reach / pixel_size)
    if reach > 0.5 * box * pixel_size:
        raise BadInputError(
            str(path), f"a molecule within {box * pixel_size:g} A", f"{2 * reach:.0f} A across", "Take a larger box."
        )
    volume = splat(points, table[:, 3], box, pixel_size, resolution)
    return Specimen(volume, pixel_size, symmetry.upper(), 2.0 * reach)


def _atoms(model: gemmi.Model) -> np.ndarray:
    """Position (xyz, A) and scattering of all atoms but water, shape (n, 4)."""
    factors: dict[str, float] = {}
    rows = []
    for chain in model:
        for residue in chain:
            if residue.is_water():
                continue
            for atom in residue:
                name = atom.element.name
                if name not in factors:
                    known = atom.element.c4322
                    factors[name] = known.calculate_sf(0.0) if known is not None else 0.4 * atom.element.atomic_number
                rows.append((atom.pos.x, atom.pos.y, atom.pos.z, factors[name] * atom.occ))
    return np.array(rows).reshape(-1, 4)


def from_map(volume: np.ndarray, pixel_size: float, symmetry: str, diameter: float) -> Specimen:
    """A map as a specimen: band-limited within its grid, the solvent's mean taken off."""
    cube = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    n = cube.shape[-1]
    smooth = to_real(low_pass_shell(to_fourier(cube, 3), 0.47 * n, 0.06 * n), n, 3)
    edge = torch.cat([smooth[0].flatten(), smooth[-1].flatten()]).median()
    return Specimen(smooth - edge, pixel_size, symmetry.upper(), diameter)
