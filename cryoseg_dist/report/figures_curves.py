"""FSC curves, convergence and time."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cryoseg_dist.report.data import IterationView
from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.report.drawing import GRID, INK, MUTED, SERIES, figure, styled, svg

_NAMES = {
    "corrected": "corrected",
    "masked": "masked",
    "unmasked": "unmasked",
    "randomised": "phase-randomised",
}
_COLOURS = {"corrected": INK, "masked": SERIES[0], "unmasked": SERIES[2], "randomised": SERIES[1]}


def resolution_axis(axes: Axes, last: float) -> None:
    """Label the frequency axis with resolutions too, along the top."""
    values = [
        d
        for d in (100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1)
        if 1 / d <= last
    ]
    kept: list[float] = []
    for d in values:
        if 1.0 / d > 0.04 * last and (not kept or 1.0 / d - 1.0 / kept[-1] > 0.1 * last):
            kept.append(d)
    top = axes.secondary_xaxis("top", functions=(lambda k: k, lambda k: k))
    top.set_xticks([1.0 / d for d in kept], [f"{d:g} Å" for d in kept])
    top.tick_params(length=3, colors=MUTED)
    top.spines["top"].set_visible(False)


@styled
def fsc_figure(view: FscView, label: str = "Fourier shell correlation") -> Markup:
    """FSC curves against spatial frequency with the 0.143 and 0.5 thresholds."""
    drawing, axes = figure(5.8, 3.7)
    extra = [c for c in SERIES if c not in {_COLOURS.get(name) for name in view.curves}]
    last = 0.5 / view.pixel_size
    ordered = [n for n in ("randomised", "unmasked", "masked", "corrected") if n in view.curves]
    for name in ordered + [n for n in view.curves if n not in _NAMES]:
        curve = np.asarray(view.curves[name], dtype=np.float64)
        frequency = np.arange(len(curve)) / (view.box * view.pixel_size)
        colour = _COLOURS.get(name) or (extra.pop(0) if extra else MUTED)
        style = (0, (4, 2)) if name == "randomised" else "-"
        text = _NAMES.get(name, str(name).replace("$", r"\$"))
        axes.plot(frequency[1:], curve[1:], color=colour, linestyle=style, label=text)
    for threshold in (0.143, 0.5):
        axes.axhline(threshold, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.annotate(
            f"{threshold:g}",
            (1.0, threshold),
            xycoords=("axes fraction", "data"),
            fontsize=10,
            va="center",
            xytext=(4, 0),
            textcoords="offset points",
            color=MUTED,
        )
    for limit, threshold in ((view.resolution, 0.143), (view.resolution_half, 0.5)):
        # A curve that ends above the threshold has no crossing to mark.
        if limit and 1.0 / limit < 0.999 * last:
            axes.plot([1.0 / limit], [threshold], "o", color=INK, markersize=5)
            axes.annotate(
                f"{limit:.2f} Å", (1.0 / limit, threshold), xytext=(7, 6), textcoords="offset points", fontsize=11
            )
    lowest = min((float(np.nanmin(np.asarray(c)[1:])) for c in view.curves.values()), default=0.0)
    axes.set(
        xlim=(0, last),
        ylim=(min(-0.06, max(lowest, -0.4)), 1.03),
        xlabel="spatial frequency (1/Å)",
        ylabel="correlation",
    )
    axes.grid(axis="y", color=GRID)
    resolution_axis(axes, last)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, columnspacing=1.4, handlelength=1.6)
    return svg(drawing, label)


@styled
def convergence_figure(iterations: Sequence[IterationView]) -> Markup:
    """Resolution of each iteration, with its angular step."""
    number = [i.iteration for i in iterations]
    drawing, axes = figure(5.8, 2.8)
    axes.plot(number, [i.resolution for i in iterations], color=SERIES[0], marker="o", markersize=4)
    axes.set(xlabel="iteration", ylabel="resolution (Å)")
    axes.margins(x=0.08, y=0.16)
    axes.invert_yaxis()
    axes.grid(axis="y", color=GRID)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    last = None
    for i in iterations:
        if i.angular_step is not None and i.angular_step != last:
            axes.annotate(
                f"{i.angular_step:.3g}° step",
                (i.iteration, i.resolution),
                xytext=(4, -13),
                textcoords="offset points",
                fontsize=9,
                color=MUTED,
            )
            last = i.angular_step
    return svg(drawing, "Resolution of each iteration of the refinement")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


@styled
def time_figure(stage_seconds: Mapping[str, float]) -> Markup:
    """Wall-clock time of each stage as bars."""
    names = [name if len(name) <= 24 else name[:23] + "…" for name in stage_seconds]
    values = [float(seconds) for seconds in stage_seconds.values()]
    drawing, axes = figure(5.8, 0.55 + 0.3 * len(names))
    rows = np.arange(len(names))
    axes.barh(rows, values, color=SERIES[0], height=0.62)
    axes.set_yticks(rows, names, parse_math=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max([*values, 1e-9]))
    for row, value in zip(rows, values, strict=True):
        axes.annotate(
            duration(value), (value, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10
        )
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return svg(drawing, "Wall-clock time of each stage")
