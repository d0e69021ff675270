"""Where the particles are seen from, and whether that is even enough."""

import numpy as np
import torch
from markupsafe import Markup

from cryoseg_dist.kernels.coverage import Coverage, view_coverage
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.report.drawing import MUTED, figure, styled, svg

_MOST = 200_000  # views that enter the figure and the numbers


def view_axes(orientations: np.ndarray, symmetry: str | None, seed: int = 0) -> np.ndarray:
    """Unit view axes of particles with all their symmetry-related copies, float32, shape (n, 3), xyz."""
    angles = torch.as_tensor(np.asarray(orientations, dtype=np.float64)[:, :2].copy())
    group = operators(symmetry or "C1").to(torch.float64)
    most = max(1, _MOST // group.shape[0])
    if angles.shape[0] > most:
        angles = angles[torch.randperm(angles.shape[0], generator=torch.Generator().manual_seed(seed))[:most]]
    matrices = euler_to_matrix(angles[:, 0], angles[:, 1], torch.zeros_like(angles[:, 0])).to(torch.float64)
    return torch.einsum("nj,gjk->ngk", matrices[:, 2], group).reshape(-1, 3).to(torch.float32).numpy()


@styled
def orientation_map(views: np.ndarray) -> Markup:
    """Density of view axes over the sphere relative to an even one, in Mollweide's equal-area projection."""
    n_tilt = int(np.clip(np.sqrt(len(views) / 40.0), 9, 30))
    n_rot = 2 * n_tilt
    # Rows of equal height in cos(tilt) have equal area, as the projection has.
    z = np.linspace(-1.0, 1.0, n_tilt + 1)
    edges = np.linspace(-np.pi, np.pi, n_rot + 1)
    longitude = np.arctan2(views[:, 1], views[:, 0])
    counts, _, _ = np.histogram2d(views[:, 2], longitude, bins=(z, edges))
    density = counts / max(counts.mean(), 1e-12)
    drawing, axes = figure(5.8, 3.2, "mollweide")
    top = max(2.0, float(np.quantile(density, 0.995)))
    mesh = axes.pcolormesh(edges, np.arcsin(z), density, cmap="viridis", vmin=0.0, vmax=top, rasterized=True)
    axes.grid(color="white", alpha=0.35, linewidth=0.5)
    axes.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]), ["−120°", "−60°", "0°", "60°", "120°"])
    axes.tick_params(axis="x", colors="white")
    axes.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]), ["tilt 150°", "120°", "90°", "60°", "30°"])
    bar = drawing.colorbar(mesh, ax=axes, shrink=0.8, aspect=24, pad=0.03)
    bar.set_label("density relative to even")
    bar.outline.set_edgecolor(MUTED)
    return svg(drawing, "Distribution of view directions over the sphere")


def measure(views: np.ndarray) -> Coverage:
    """Coverage of Fourier space by the views."""
    return view_coverage(torch.from_numpy(np.ascontiguousarray(views)))
