"""Where the particles are seen from, drawn."""

import numpy as np
from markupsafe import Markup

from cryoseg_dist.report.drawing import MUTED, figure, styled, svg


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
