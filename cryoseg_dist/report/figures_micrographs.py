"""Micrographs with their picks, and Thon rings with their fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from cryoseg_dist.report.data import CtfView, MicrographView
from cryoseg_dist.report.drawing import GRID, MUTED, SERIES, figure, grey_png, shrunk, stretched, styled, svg


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` positions, evenly spread, first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, most)})


@dataclass(frozen=True, slots=True)
class Card:
    """A picture with its text.

    Attributes
    ----------
    name : str
    picture : Markup
    facts : list of (str, str)
    accepted : bool
    reasons : list of str
    curve : Markup
    """

    name: str
    picture: Markup
    facts: list[tuple[str, str]]
    accepted: bool = True
    reasons: tuple[str, ...] = ()
    curve: Markup = Markup("")  # noqa: RUF009 - immutable


def picked_micrograph(view: MicrographView, largest: int = 512) -> Markup:
    """A micrograph as a grey picture with a circle round each pick and a scale bar."""
    image = shrunk(np.asarray(view.image), largest)
    factor = view.image.shape[-1] // image.shape[-1]
    pixel_size = view.pixel_size * factor
    height, width = image.shape
    # Centre of a block of pixels: sample i of the large image lies at (i + 1/2) / factor - 1/2 of the small one.
    held = np.empty((0, 2)) if view.picks is None else view.picks
    picks = (np.asarray(held, dtype=np.float64).reshape(-1, 2) + 0.5) / factor
    radius = 0.5 * (view.diameter or 16.0 * pixel_size) / pixel_size
    circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>' for x, y in picks)
    bar = scale_bar(width * pixel_size)
    length = bar / pixel_size
    return Markup(
        f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(view.name)}">'
        f'<image href="{grey_png(stretched(image))}" width="{width}" height="{height}"/>'
        f'<g class="picks">{circles}</g>'
        f'<g class="bar"><rect class="back" x="0" y="{0.86 * height:.1f}" width="{length + 0.08 * width:.1f}" '
        f'height="{0.14 * height:.1f}"/><rect x="{0.04 * width:.1f}" y="{0.94 * height:.1f}" width="{length:.1f}" '
        f'height="{0.012 * height:.1f}"/>'
        f'<text x="{0.04 * width:.1f}" y="{0.925 * height:.1f}" font-size="{0.045 * width:.1f}">{bar / 10:g} nm</text></g></svg>'
    )


def scale_bar(extent: float) -> float:
    """A round length in A, about a fifth of ``extent``."""
    power = 10.0 ** np.floor(np.log10(0.25 * extent))
    return float(max(m * power for m in (1.0, 2.0, 5.0) if m * power <= 0.25 * extent))


def gallery(views: Sequence[MicrographView], most: int = 12) -> list[Card]:
    """Cards of an even choice of micrographs."""
    cards = []
    for i in spread(len(views), most):
        view = views[i]
        facts = [] if view.picks is None else [("picks", f"{len(np.asarray(view.picks).reshape(-1, 2)):,}")]
        cards.append(Card(view.name, picked_micrograph(view), facts, view.accepted))
    return cards


def ring_picture(view: CtfView) -> Markup:
    """The two-dimensional picture of a fit."""
    if view.picture is None:
        return Markup("")
    values = np.rint(255.0 * np.clip(np.asarray(view.picture, dtype=np.float32), 0.0, 1.0))
    height, width = values.shape
    return Markup(
        f'<img class="picture" src="{grey_png(values)}" width="{width}" height="{height}" '
        f'alt="Spectrum and fit of {escape(view.name)}">'
    )


@styled
def ring_curve(view: CtfView, key: str) -> Markup:
    """Equiphase spectrum, fitted transfer function and their local agreement; ``key`` tells figures apart."""
    record = view.record
    frequency = np.asarray(record.get("curve_frequency", ()), dtype=np.float64)
    if frequency.size < 2:
        return Markup("")
    spectrum = np.asarray(record["curve_spectrum"], dtype=np.float64)
    # Rings fade with frequency: each stretch is shown at the height of its own rings.
    width = max(9, len(spectrum) // 8) | 1
    local = np.sqrt(np.convolve(np.pad(spectrum**2, width // 2, mode="reflect"), np.ones(width) / width, "valid"))
    shown = 0.5 + 0.33 * spectrum / np.maximum(local, 0.05 * local.max() + 1e-12)
    limit = record.get("ctf_max_resolution")
    # Beyond the last rings there is noise, which says nothing at a finer scale.
    end = frequency[-1] if not limit else min(frequency[-1], 1.3 / limit)
    drawing, axes = figure(4.2, 1.75)
    axes.plot(frequency, record["curve_model"], color=SERIES[1], linewidth=1.0)
    axes.plot(frequency, np.clip(shown, -0.2, 1.2), color=SERIES[0], linewidth=1.3)
    axes.plot(
        frequency, np.clip(record["curve_agreement"], 0.0, 1.0), color=MUTED, linewidth=1.0, linestyle=(0, (4, 2))
    )
    if limit:
        axes.axvline(1.0 / limit, color=MUTED, linewidth=1.0)
        axes.annotate(
            f"{limit:.1f} Å", (1.0 / limit, 1.12), textcoords="offset points", xytext=(4, 0), fontsize=10, va="center"
        )
    axes.set(xlim=(frequency[0], end), ylim=(-0.2, 1.25), xlabel="spatial frequency (1/Å)", yticks=[0, 0.5, 1])
    axes.grid(axis="y", color=GRID)
    return svg(drawing, f"Thon rings and fitted transfer function of {view.name}", key)


def number(value: Any, pattern: str, unit: str = "") -> str:
    """A value as text, a dash where it is missing."""
    return "–" if value is None else format(value, pattern) + unit


def ctf_cards(views: Sequence[CtfView], most: int = 12) -> list[Card]:
    """Cards of fits: micrographs that were not accepted first (a third at the most), then an even choice."""
    bad = [i for i, view in enumerate(views) if not view.record.get("accepted", True)]
    good = [i for i, view in enumerate(views) if view.record.get("accepted", True)]
    shown_bad = [bad[j] for j in spread(len(bad), most if not good else max(1, most // 3))]
    chosen = shown_bad + [good[j] for j in spread(len(good), most - len(shown_bad))]
    cards = []
    for i in chosen:
        record = views[i].record
        facts = [
            ("defocus", f"{number(record.get('defocus_u'), ',.0f')} / {number(record.get('defocus_v'), ',.0f', ' Å')}"),
            ("angle", number(record.get("defocus_angle"), ".0f", "°")),
            ("rings to", number(record.get("ctf_max_resolution"), ".1f", " Å")),
            ("correlation", number(record.get("ctf_figure_of_merit"), ".3f")),
        ]
        if record.get("phase_shift"):
            facts.append(("phase shift", number(record["phase_shift"], ".0f", "°")))
        cards.append(
            Card(
                views[i].name,
                ring_picture(views[i]),
                facts,
                bool(record.get("accepted", True)),
                tuple(str(reason) for reason in record.get("reasons", ())),
                ring_curve(views[i], str(i)),
            )
        )
    return cards


@styled
def ctf_overview(views: Sequence[CtfView]) -> Markup:
    """Defocus against the resolution of the rings, one dot a micrograph."""
    rows = [
        (0.5 * (r["defocus_u"] + r["defocus_v"]) / 1e4, r["ctf_max_resolution"], bool(r.get("accepted", True)))
        for r in (view.record for view in views)
        if r.get("ctf_max_resolution") and r.get("defocus_u") is not None and r.get("defocus_v") is not None
    ]
    if len(rows) < 2:
        return Markup("")
    defocus, limit, good = (np.array(column) for column in zip(*rows, strict=True))
    drawing, axes = figure(7.6, 3.0)
    for mask, colour, marker, label in ((good, SERIES[0], "o", "accepted"), (~good, SERIES[1], "X", "not accepted")):
        if mask.any():
            axes.scatter(defocus[mask], limit[mask], s=34, c=colour, marker=marker, label=label, linewidths=0)
    axes.set(xlabel="mean defocus (µm)", ylabel="rings end at (Å)")
    axes.invert_yaxis()
    axes.grid(color=GRID)
    if not good.all():
        axes.legend(loc="best")
    return svg(drawing, "Defocus and resolution of the rings of every micrograph")
