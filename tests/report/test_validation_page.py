"""Sections on validation, in a run's report and on a page of their own."""

import dataclasses

import numpy as np
import pytest

from cryoseg_dist.kernels.coverage import sphere_points
from cryoseg_dist.report.data import MapView, ReportData
from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.report.data_validation import (
    ComparisonView,
    DirectionView,
    GuinierView,
    LocalView,
    ParticleCurveView,
    ValidationView,
)
from cryoseg_dist.report.page import build
from cryoseg_dist.report.validation_page import build_validation
from tests.report.test_report_page import HOSTILE, parsed

N = 24
PARTS = {"directions", "local", "guinier", "particles", "comparison-1"}


def full_view(name: str = "model.cif") -> ValidationView:
    rng = np.random.default_rng(0)
    axes = sphere_points(64).numpy()[:32]
    fall = 1.0 / (1.0 + (np.arange(N // 2 + 1) / 6.0) ** 6)
    x = (np.arange(N // 2 + 1) / (N * 3.0)) ** 2
    return ValidationView(
        direction=DirectionView(
            axes, np.clip(fall + rng.normal(0, 0.03, (32, N // 2 + 1)), -1, 1), rng.uniform(80, 120, 32), N, 3.0,
            "Resolution depends on direction: worst 12 Å.", False,
        ),
        local=LocalView(
            rng.normal(size=(N, N, N)), rng.uniform(7, 11, (N, N, N)), np.ones((N, N, N)), 3.0, "Locally 7 to 11 Å."
        ),
        guinier=GuinierView(x, -20.0 * x, -25.0 * x - 0.1, 5.0 * x, 8.0, -25.0, -0.1, 15.0, "B-factor -100."),
        particles=ParticleCurveView(
            (100, 200, 400), (12.0, 10.5, 9.4), 0.003, -0.006, 3.0, "More particles would help."
        ),
        comparisons=[ComparisonView(name, FscView({"same hand": fall, "other hand": 0.3 * fall}, N, 3.0), f"Agrees with {name}.", True)],
        resolution_words="The half maps agree to 9.00 Å.",
    )  # fmt: skip


def page(name: str = "half1.mrc") -> str:
    fall = 1.0 / (1.0 + (np.arange(N // 2 + 1) / 6.0) ** 6)
    return build_validation(
        name,
        "2026-11-24 12:00",
        [("Resolution", "9.00 Å", "FSC 0.143")],
        FscView({"corrected": fall, "unmasked": 0.9 * fall}, N, 3.0, 9.0, 12.0),
        MapView(np.random.default_rng(0).normal(size=(N, N, N)).astype(np.float32), 3.0, 40.0),
        full_view(name),
        [("half 1", name)],
        orientations=np.random.default_rng(1).uniform(0, 180, (200, 2)),
    )


def test_the_page_shows_every_part_and_fetches_nothing() -> None:
    checker = parsed(page())
    assert PARTS | {"map", "fsc", "orientations", "slices", "files"} <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids))
    inner = {a[1:] for a in checker.addresses if a.startswith("#")}
    assert inner <= set(checker.ids)
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in checker.addresses)
    assert not {"script", "link", "iframe"} & set(checker.tags)
    text = " ".join(checker.text)
    for said in ("depends on direction", "More particles would help", "Agrees with half1.mrc", "agree to 9.00 Å"):
        assert said in text


def test_hostile_names_are_escaped() -> None:
    checker = parsed(page(HOSTILE))
    assert "script" not in checker.tags
    assert checker.handlers == []


def test_the_same_sections_stand_in_the_report() -> None:
    checker = parsed(build(ReportData(validation=full_view())))
    assert PARTS | {"slices"} <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids))


@pytest.mark.parametrize("missing", ["direction", "local", "guinier", "particles"])
def test_parts_may_be_missing(missing: str) -> None:
    checker = parsed(build(ReportData(validation=dataclasses.replace(full_view(), **{missing: None}))))
    assert len(PARTS & set(checker.ids)) == len(PARTS) - 1


def test_verdicts_are_coloured_by_what_they_say() -> None:
    html = build(ReportData(validation=full_view()))
    assert 'verdict poor">Resolution depends on direction' in html
    assert 'verdict">More particles would help' in html
