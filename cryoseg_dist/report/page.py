"""One self-contained HTML page about a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from cryoseg_dist.kernels.coverage import coverage_verdict, view_coverage
from cryoseg_dist.kernels.views import view_axes
from cryoseg_dist.report.data import ReportData, RunSummary
from cryoseg_dist.report.figures_classes import class_cards
from cryoseg_dist.report.figures_curves import convergence_figure, duration, fsc_figure, time_figure
from cryoseg_dist.report.figures_map import map_pictures
from cryoseg_dist.report.figures_micrographs import ctf_cards, ctf_overview, gallery, number
from cryoseg_dist.report.figures_orientations import orientation_map
from cryoseg_dist.report.figures_validation import local_slices
from cryoseg_dist.report.validation_parts import validation_parts

_MOST_ROWS = 2000


def key_figures(summary: RunSummary) -> list[tuple[str, str, str]]:
    """Title, value and remark of the figures that head the page; unknown ones are left out."""
    rows: list[tuple[str, str | None, str]] = [
        (
            "Resolution",
            None if summary.resolution is None else f"{summary.resolution:.2f} Å",
            "FSC 0.143" + ("" if summary.resolution_half is None else f" (0.5: {summary.resolution_half:.2f} Å)"),
        ),
        (
            "Particles",
            None if summary.particles_used is None else f"{summary.particles_used:,}",
            "in the map" + ("" if summary.particles_picked is None else f", {summary.particles_picked:,} picked"),
        ),
        (
            "Micrographs",
            None if summary.micrographs is None else f"{summary.micrographs:,}",
            "" if summary.micrographs_used is None else f"{summary.micrographs_used:,} used",
        ),
        (
            "Pixel size",
            None if summary.pixel_size is None else f"{summary.pixel_size:.3g} Å",
            "" if summary.box is None else f"box of {summary.box} px",
        ),
        (
            "Symmetry",
            summary.symmetry,
            "" if summary.diameter is None else f"diameter {summary.diameter:g} Å",
        ),
        (
            "Wall time",
            None if summary.wall_seconds is None else duration(summary.wall_seconds),
            f"ended {summary.ended}" if summary.ended else "",
        ),
        ("B-factor", None if summary.b_factor is None else f"{summary.b_factor:.0f} Å²", "of the sharpened map"),
    ]
    return [(title, value, remark) for title, value, remark in rows if value is not None]


def ctf_rows(data: ReportData) -> list[dict[str, Any]]:
    """One row a micrograph for the table of fits."""
    return [
        {
            "name": view.name,
            "cells": [
                number(view.record.get("defocus_u"), ",.0f"),
                number(view.record.get("defocus_v"), ",.0f"),
                number(view.record.get("defocus_angle"), ".1f"),
                number(view.record.get("ctf_astigmatism"), ",.0f"),
                number(view.record.get("ctf_max_resolution"), ".2f"),
                number(view.record.get("ctf_figure_of_merit"), ".3f"),
                number(view.record.get("drift_ratio"), ".2f"),
                number(view.record.get("ice_ring"), ".2f"),
            ],
            "accepted": bool(view.record.get("accepted", True)),
            "reasons": "; ".join(str(reason) for reason in view.record.get("reasons", ())),
        }
        for view in data.ctf[:_MOST_ROWS]
    ]


def orientation_part(orientations: np.ndarray | None, symmetry: str | None) -> dict[str, Any] | None:
    """Map, verdict and count of the views; None where there are none."""
    if orientations is None or len(orientations) == 0:
        return None
    views = view_axes(np.asarray(orientations), symmetry)
    verdict = coverage_verdict(view_coverage(views))
    return {
        "figure": orientation_map(views.numpy()),
        "even": verdict.even,
        "words": verdict.words,
        "count": len(orientations),
    }


def _setting(value: Any) -> str:
    return "not set" if value is None else str(value)


def _settings(settings: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(name, [(key, _setting(value)) for key, value in section.items()]) for name, section in settings.items()]


def environment() -> Environment:
    """Templates that escape what is put into them and refuse what is missing."""
    return Environment(
        loader=PackageLoader("cryoseg_dist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def build(data: ReportData) -> str:
    """Build the page.

    Everything in it is inline: style, figures, pictures. Nothing is fetched from anywhere and no script runs. Text that
    a user brought (names, reasons, settings) is escaped.

    Parameters
    ----------
    data : ReportData

    Returns
    -------
    str
        HTML, to be written as UTF-8.
    """
    classes = data.classes
    return (
        environment()
        .get_template("report.html")
        .render(
            summary=data.summary,
            key_figures=key_figures(data.summary),
            gallery=gallery(data.micrographs),
            n_micrographs=len(data.micrographs),
            ctf_cards=ctf_cards(data.ctf),
            ctf_overview=ctf_overview(data.ctf),
            ctf_rows=ctf_rows(data),
            n_ctf=len(data.ctf),
            n_accepted=sum(bool(view.record.get("accepted", True)) for view in data.ctf),
            classes=class_cards(classes) if classes is not None else [],
            class_totals=None
            if classes is None
            else {
                "classes": int(np.count_nonzero(np.asarray(classes.counts))),
                "selected": int(np.count_nonzero(classes.selected)),
                "particles": round(float(np.sum(classes.counts))),
                "kept": round(float(np.sum(np.asarray(classes.counts)[np.asarray(classes.selected, dtype=bool)]))),
            },
            orientations=orientation_part(data.orientations, data.summary.symmetry),
            fsc=fsc_figure(data.fsc) if data.fsc is not None and data.fsc.curves else None,
            truth=fsc_figure(data.truth_fsc, "Fourier shell correlation with the truth")
            if data.truth_fsc is not None and data.truth_fsc.curves
            else None,
            map_pictures=map_pictures(data.map) if data.map is not None else [],
            validation=None
            if data.validation is None
            else {
                "parts": validation_parts(data.validation),
                "wide": None if data.validation.local is None else local_slices(data.validation.local),
            },
            set_aside=data.set_aside[:_MOST_ROWS],
            n_set_aside=len(data.set_aside),
            time=time_figure(data.stage_seconds) if data.stage_seconds else None,
            convergence=convergence_figure(data.iterations) if data.iterations else None,
            settings=_settings(data.settings),
        )
    )
