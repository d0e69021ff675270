"""How evenly views cover the sphere, and what that does to Fourier space."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Coverage:
    """Evenness of a set of views.

    Attributes
    ----------
    sampling_factor : float
        Harmonic mean over directions of the sampling of Fourier space relative to an even one; 1 is even, 0 leaves
        directions without any data (Baldwin & Lyumkin 2020).
    empty_fraction : float
        Share of directions in Fourier space with less than a tenth of their even share.
    worst_sampling : float
        Sampling of the poorest direction relative to an even one.
    """

    sampling_factor: float
    empty_fraction: float
    worst_sampling: float


def sphere_points(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Nearly even unit vectors on the sphere (Fibonacci lattice), float32, shape (count, 3), xyz."""
    i = torch.arange(count, dtype=torch.float64, device=device)
    z = 1.0 - (2.0 * i + 1.0) / count
    longitude = i * math.pi * (3.0 - math.sqrt(5.0))
    r = torch.sqrt(1.0 - z * z)
    return torch.stack([r * torch.cos(longitude), r * torch.sin(longitude), z], dim=1).to(torch.float32)


def view_coverage(views: Tensor, n_directions: int = 500, half_width: float = 0.05, chunk: int = 20_000) -> Coverage:
    """Sampling of Fourier space by central slices.

    A view fills the slice perpendicular to it, so a direction of Fourier space is sampled by the views that lie
    within ``half_width`` of its great circle.

    Parameters
    ----------
    views : Tensor, shape (n, 3)
        Unit view axes, xyz, symmetry-related copies included.
    n_directions : int
        Directions tested.
    half_width : float
        Sine of the angle that still counts as on the circle.
    chunk : int
        Views handled at a time.
    """
    directions = sphere_points(n_directions, views.device).to(views.dtype)
    hits = torch.zeros(n_directions, dtype=torch.float64, device=views.device)
    for part in torch.split(views, chunk):
        hits += ((directions @ part.T).abs() < half_width).sum(dim=1)
    # Evenly spread views fall within the band with probability ``half_width``.
    sampling = hits / max(1.0, half_width * views.shape[0])
    floor = 1.0 / max(1.0, half_width * views.shape[0])
    return Coverage(
        sampling_factor=float(1.0 / (1.0 / sampling.clamp(min=0.5 * floor)).mean()),
        empty_fraction=float((sampling < 0.1).to(torch.float64).mean()),
        worst_sampling=float(sampling.min()),
    )
