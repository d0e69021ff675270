"""Resolution by direction and place, amplitudes, and resolution against particles."""

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from cryoseg_dist.report.data_validation import DirectionView, GuinierView, LocalView, ParticleCurveView
from cryoseg_dist.report.drawing import GRID, INK, MUTED, SERIES, figure, shrunk, stretched, styled, svg
from cryoseg_dist.report.figures_curves import resolution_axis

# Pixels of a slice at most.
_LARGEST_SLICE = 192


@styled
def direction_curves(view: DirectionView) -> Markup:
    """Band of the conical FSC with its mean and the curves of the poorest and the best axis."""
    drawing, axes = figure(5.8, 3.7)
    k = np.arange(view.curves.shape[1]) / (view.box * view.pixel_size)
    low, high = view.curves.min(axis=0), view.curves.max(axis=0)
    axes.fill_between(k[1:], low[1:], high[1:], color=SERIES[0], alpha=0.18, linewidth=0, label="all directions")
    axes.plot(k[1:], view.curves.mean(axis=0)[1:], color=INK, label="mean")
    for index, colour, name in (
        (int(np.argmin(view.areas)), SERIES[1], "poorest"),
        (int(np.argmax(view.areas)), SERIES[2], "best"),
    ):
        axes.plot(k[1:], view.curves[index][1:], color=colour, linewidth=1.3, label=name)
    axes.axhline(0.143, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.annotate(
        "0.143",
        (1.0, 0.143),
        xycoords=("axes fraction", "data"),
        fontsize=10,
        va="center",
        xytext=(4, 0),
        textcoords="offset points",
        color=MUTED,
    )
    last = 0.5 / view.pixel_size
    axes.set(xlim=(0, last), ylim=(-0.15, 1.03), xlabel="spatial frequency (1/Å)", ylabel="correlation")
    axes.grid(axis="y", color=GRID)
    resolution_axis(axes, last)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, columnspacing=1.4, handlelength=1.6)
    return svg(drawing, "Fourier shell correlation by direction")


@styled
def direction_map(view: DirectionView) -> Markup:
    """Weighted area under the curve of every axis relative to the best, in Mollweide's equal-area projection of the sphere."""
    z = np.linspace(-1.0, 1.0, 61)
    edges = np.linspace(-np.pi, np.pi, 121)
    middle_z, middle = 0.5 * (z[1:] + z[:-1]), 0.5 * (edges[1:] + edges[:-1])
    ring = np.sqrt(1.0 - middle_z**2)[:, None]
    points = np.stack(
        (ring * np.cos(middle), ring * np.sin(middle), np.broadcast_to(middle_z[:, None], (60, 120))), axis=-1
    )
    near = np.abs(points.reshape(-1, 3) @ view.axes.T).argmax(axis=1)
    drawing, axes = figure(5.8, 3.2, "mollweide")
    share = view.areas / max(float(view.areas.max()), 1e-12)
    mesh = axes.pcolormesh(
        edges, np.arcsin(z), share[near].reshape(60, 120), cmap="viridis", vmin=0.0, vmax=1.0, rasterized=True
    )
    axes.grid(color="white", alpha=0.35, linewidth=0.5)
    axes.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]), ["−120°", "−60°", "0°", "60°", "120°"])
    axes.tick_params(axis="x", colors="white")
    axes.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]), ["tilt 150°", "120°", "90°", "60°", "30°"])
    bar = drawing.colorbar(mesh, ax=axes, shrink=0.8, aspect=24, pad=0.03)
    bar.set_label("signal relative to the best axis")
    bar.outline.set_edgecolor(MUTED)
    return svg(drawing, "Resolution by direction")


def _slice_pair(view: LocalView, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Density (0 to 1), resolution and mask of a central slice."""
    n = view.density.shape[axis]
    cut = [shrunk(np.asarray(v.take(n // 2, axis), dtype=np.float32), _LARGEST_SLICE)
           for v in (view.density, view.resolution, view.mask)]  # fmt: skip
    return stretched(cut[0], 0.5, 99.8) / 255.0, cut[1], cut[2]


@styled
def local_slices(view: LocalView) -> Markup:
    """Central slices of the map, coloured by their local resolution within the mask."""
    inside = view.resolution[view.mask > 0.5]
    low, high = (float(v) for v in np.quantile(inside, [0.01, 0.99])) if inside.size else (1.0, 2.0)
    high = max(high, low + 0.1)
    drawing = Figure(figsize=(12.2, 3.6), layout="constrained")
    panels = drawing.subplots(1, 3)
    # Without its dark ends, so that density stays visible.
    scale = LinearSegmentedColormap.from_list("scale", colormaps["turbo"](np.linspace(0.12, 0.92, 64)))
    for panel, axis, name in zip(panels, range(3), "zyx", strict=True):
        density, resolution, mask = _slice_pair(view, axis)
        colour = scale(np.clip((resolution - low) / (high - low), 0.0, 1.0))[..., :3] * (0.3 + 0.7 * density[..., None])
        picture = np.where(mask[..., None] > 0.5, colour, 0.75 * density[..., None])
        panel.imshow(picture, interpolation="nearest", rasterized=True)
        panel.set_title(f"slice along {name}", fontsize=11)
        panel.set_axis_off()
    bar = drawing.colorbar(
        ScalarMappable(Normalize(low, high), scale), ax=list(panels), shrink=0.9, aspect=24, pad=0.02
    )
    bar.set_label("local resolution (Å)")
    bar.outline.set_edgecolor(MUTED)
    return svg(drawing, "Central slices coloured by local resolution")


@styled
def local_histogram(view: LocalView) -> Markup:
    """How much of the map has which local resolution."""
    drawing, axes = figure(5.8, 2.8)
    inside = view.resolution[view.mask > 0.5]
    if inside.size:
        top = float(np.quantile(inside, 0.995))
        axes.hist(np.minimum(inside, top), bins=40, color=SERIES[0], weights=np.full(inside.size, 100.0 / inside.size))
    axes.set(xlabel="local resolution (Å)", ylabel="share of the mask (%)")
    axes.grid(axis="y", color=GRID)
    return svg(drawing, "Histogram of the local resolution")


@styled
def guinier_figure(view: GuinierView) -> Markup:
    """Logarithms of amplitudes against the square of the frequency, with the fitted line."""
    drawing, axes = figure(5.8, 3.7)
    x = np.asarray(view.inverse_square)
    held = x <= 1.0 / view.resolution**2
    axes.plot(x[1:], view.original[1:], color=MUTED, linewidth=1.2, label="map")
    for values, colour, name in (
        (view.weighted, SERIES[0], "weighted by FSC"),
        (view.sharpened, SERIES[1], "sharpened"),
    ):
        shown = held & (np.asarray(values) > -300.0)
        shown[0] = False
        axes.plot(x[shown], np.asarray(values)[shown], color=colour, label=name)
    if view.slope is not None and view.intercept is not None:
        ends = np.array([1.0 / view.fitted_from**2, 1.0 / view.resolution**2])
        axes.plot(ends, view.slope * ends + view.intercept, color=INK, linestyle=(0, (4, 2)), label="fitted line")
    axes.set(xlabel="1 / resolution² (1/Å²)", ylabel="ln amplitude", xlim=(0, x[-1]))
    values = np.concatenate([view.original[1:], view.sharpened[held][1:]])
    values = values[values > -300.0]
    axes.set_ylim(values.min() - 1.0, values.max() + 0.5)
    axes.grid(axis="y", color=GRID)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, columnspacing=1.4, handlelength=1.6)
    return svg(drawing, "Guinier plot")


@styled
def particle_curve_figure(view: ParticleCurveView) -> Markup:
    """Resolution of subsets against their number, over a logarithmic axis, with the line drawn on."""
    drawing, axes = figure(5.8, 3.4)
    counts = np.asarray(view.counts, dtype=float)
    inverse = np.asarray(view.resolutions, dtype=float) ** -2.0
    axes.plot(counts, inverse, color=SERIES[0], marker="o", markersize=5, label="subsets")
    ahead = np.array([counts[0], 4.0 * counts[-1]])
    axes.plot(ahead, view.slope * np.log(ahead) + view.intercept, color=INK, linestyle=(0, (4, 2)), label="line")
    limit = (0.5 / view.pixel_size) ** 2
    top = max(float(inverse.max()), view.slope * float(np.log(ahead[1])) + view.intercept)
    if top > 0.8 * limit:
        axes.axhline(limit, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), label="limit of the pixel size")
        top = limit
    axes.set_xscale("log")
    axes.set(xlim=(0.85 * counts[0], 1.15 * ahead[1]), ylim=(0.0, 1.12 * top), xlabel="particles")
    ticks = np.concatenate([counts, counts[-1] * np.array([2.0, 4.0])])
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{round(t):,}" for t in ticks], rotation=30, ha="right")
    _resolution_ticks(axes, 1.12 * top)
    axes.grid(axis="y", color=GRID)
    axes.legend(loc="lower right")
    return svg(drawing, "Resolution against the number of particles")


def _resolution_ticks(axes: Axes, top: float) -> None:
    """Label an axis of ``1 / d^2`` with resolutions."""
    kept: list[float] = []
    for d in (100, 50, 30, 20, 15, 12, 10, 9, 8, 7, 6, 5.5, 5, 4.5, 4, 3.5, 3, 2.7, 2.5, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1):
        if d**-2.0 <= top and (not kept or d**-2.0 - kept[-1] ** -2.0 > 0.09 * top):
            kept.append(d)
    axes.set_yticks([d**-2.0 for d in kept], [f"{d:g} Å" for d in kept])
    axes.set_ylabel("resolution")
