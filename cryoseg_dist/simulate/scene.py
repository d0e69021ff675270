"""What lies in the ice of a simulated micrograph: particles, carbon film, ice crystals and dirt."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.so3 import random_rotations

# Candidates that a crowded micrograph may refuse in a row before it counts as full.
PATIENCE = 400


def place_particles(
    rng: np.random.Generator,
    shape: tuple[int, int],
    wanted: int,
    diameter_px: float,
    closest_px: float,
    touching: float,
) -> tuple[np.ndarray, int]:
    """Centres of particles, none closer to another than allowed; the ice goes on beyond the border.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
        Rows and columns of the micrograph.
    wanted : int
        Particles whose centre lies on the micrograph, as far as they fit.
    diameter_px, closest_px : float
        Diameter, and smallest distance of two centres, in pixels.
    touching : float
        Share of the particles that are put right beside another.

    Returns
    -------
    centres : ndarray, float64, shape (n, 2)
        x, y in pixels: first those on the micrograph, then those beyond its border that reach into it.
    n_inside : int
        How many of them lie on the micrograph.
    """
    extent = np.array(shape[::-1], dtype=float)
    low, high = np.zeros(2), extent - 1.0
    reach = 0.5 * diameter_px
    band = float(np.prod(extent + 2 * reach) / np.prod(extent)) - 1.0
    total = wanted + round(wanted * band)
    centres = np.empty((total, 2))

    def fill(n: int, upto: int, outside: bool) -> int:
        refused = 0
        while n < upto and refused < PATIENCE:
            if n and rng.random() < touching:
                angle = rng.uniform(0, 2 * np.pi)
                candidate = centres[rng.integers(n)] + 1.02 * closest_px * np.array((np.cos(angle), np.sin(angle)))
            else:
                candidate = rng.uniform(low - reach, high + reach) if outside else rng.uniform(low, high)
            inside = bool((candidate >= low).all() and (candidate <= high).all())
            within = bool((candidate >= low - reach).all() and (candidate <= high + reach).all())
            apart = ((centres[:n] - candidate) ** 2).sum(axis=1).min(initial=np.inf) >= closest_px**2
            if apart and within and inside != outside:
                centres[n] = candidate
                n, refused = n + 1, 0
            else:
                refused += 1
        return n

    n_inside = fill(0, wanted, outside=False)
    n = fill(n_inside, n_inside + total - wanted, outside=True)
    return centres[:n], n_inside


def draw_views(n: int, preferred: float, generator: torch.Generator) -> Tensor:
    """Orientations, uniform or crowded about views along z and against it.

    Parameters
    ----------
    n : int
    preferred : float
        Concentration ``c``: a view at the angle ``t`` to z is drawn with a chance in proportion to ``exp(c |cos t|)``.
    generator : torch.Generator

    Returns
    -------
    Tensor, float64, shape (n, 3, 3)
    """
    if preferred <= 0 or n == 0:
        return random_rotations(n, generator)
    kept = torch.empty((0, 3, 3), dtype=torch.float64)
    while len(kept) < n:
        rotations = random_rotations(4 * n, generator)
        chance = torch.exp(preferred * (rotations[:, 2, 2].abs() - 1.0))
        kept = torch.cat((kept, rotations[torch.rand(4 * n, generator=generator) < chance]))
    return kept[:n]


def carbon_film(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Where the film is: inside a circle much larger than the micrograph, with a frayed edge; bool, shape (y, x)."""
    largest = max(shape)
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 3.0) * largest
    reach = radius + rng.uniform(0.15, 0.45) * largest
    cy, cx = shape[0] / 2 + reach * np.sin(angle), shape[1] / 2 + reach * np.cos(angle)
    y, x = np.arange(shape[0], dtype=np.float32)[:, None] - cy, np.arange(shape[1], dtype=np.float32)[None, :] - cx
    # The edge seen along itself is short, so a wave in y and one in x fray it well enough.
    wave = 0.004 * largest * (np.sin(y * (40.0 / largest)) + np.sin(x * (57.0 / largest)))
    return np.sqrt(y * y + x * x) + wave < radius


@dataclass(frozen=True)
class Dirt:
    """A crystal of ice, a drop or dirt.

    Attributes
    ----------
    rows, columns : slice
        Where it lies in the micrograph.
    thickness : ndarray, float32, shape (rows, columns)
        From 0 outside to about 1.
    """

    rows: slice
    columns: slice
    thickness: np.ndarray


def dirt(rng: np.random.Generator, shape: tuple[int, int], diameter_px: float) -> Dirt:
    """One piece of dirt with a lobed outline, of half to three particle diameters; round, flat or of grains."""
    cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
    radius = 0.5 * diameter_px * rng.uniform(0.6, 3.0)
    lobes = rng.normal(0, 0.08, 4)
    phases = rng.uniform(0, 2 * np.pi, 4)
    kind = rng.choice(("drop", "crystal", "grains"))
    reach = int(np.ceil(2.0 * radius))
    rows = slice(max(0, int(cy) - reach), min(shape[0], int(cy) + reach))
    columns = slice(max(0, int(cx) - reach), min(shape[1], int(cx) + reach))
    y = np.arange(rows.start, rows.stop)[:, None] - cy
    x = np.arange(columns.start, columns.stop)[None, :] - cx
    theta = np.arctan2(y, x)
    outline = 1.0 + sum(a * np.cos((k + 1) * theta + p) for k, (a, p) in enumerate(zip(lobes, phases, strict=True)))
    depth = np.clip(1.0 - np.hypot(y, x) / (radius * np.clip(outline, 0.3, 1.9)), 0.0, 1.0)
    if kind == "drop":
        thickness = np.sqrt(depth)
    elif kind == "crystal":
        thickness = np.minimum(1.0, 6.0 * depth)
    else:
        waves = np.sin(0.9 * x + phases[0]) * np.sin(0.7 * y + phases[1]) + np.sin(0.5 * (x + y) + phases[2])
        thickness = np.minimum(1.0, 4.0 * depth) * (0.7 + 0.2 * waves)
    return Dirt(rows, columns, thickness.astype(np.float32))


def slow_field(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A smooth random field of about one wave across the micrograph, of zero mean and unit deviation; float32."""
    y, x = np.linspace(0, 1, shape[0])[:, None], np.linspace(0, 1, shape[1])[None, :]
    field = np.zeros(shape, dtype=np.float32)
    for ky in range(3):
        for kx in range(3):
            phase = rng.uniform(0, 2 * np.pi, 2)
            amplitude = rng.standard_normal() / (1.0 + ky * ky + kx * kx)
            if ky or kx:
                wave = np.cos(np.pi * ky * y + phase[0]) * np.cos(np.pi * kx * x + phase[1])
                field += (amplitude * wave).astype(np.float32)
    field -= field.mean()
    return field / max(float(field.std()), 1e-9)
