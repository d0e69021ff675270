"""The page builds with everything and with nothing, fetches nothing and escapes what users bring."""

from html.parser import HTMLParser

import numpy as np
import pytest

from cryoseg_dist.report.data import (
    ClassView,
    CtfView,
    FscView,
    IterationView,
    MapView,
    MicrographView,
    ReportData,
    RunSummary,
    SetAside,
)
from cryoseg_dist.report.page import build

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>$\\frac$.mrc"
VOID = {"meta", "img", "br", "hr", "input", "link"}
SECTIONS = {
    "map",
    "fsc",
    "refinement",
    "orientations",
    "time",
    "classes",
    "picks",
    "ctf",
    "aside",
    "settings",
}


class Checker(HTMLParser):
    """Collects elements and checks that they nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []

    def note(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_starttag(self, tag, attrs):
        self.note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def ctf_record(accepted: bool = True) -> dict:
    frequency = np.linspace(0.03, 0.3, 120)
    model = np.abs(np.sin(900 * frequency**2))
    return {
        "defocus_u": 15200.0,
        "defocus_v": 14800.0,
        "defocus_angle": 33.0,
        "phase_shift": 0.0,
        "ctf_figure_of_merit": 0.21,
        "ctf_max_resolution": 4.4 if accepted else None,
        "ctf_astigmatism": 400.0,
        "drift_ratio": 0.8,
        "ice_ring": None,
        "accepted": accepted,
        "reasons": [] if accepted else [f"drift in {HOSTILE}"],
        "curve_frequency": list(frequency),
        "curve_spectrum": list(model - 0.5),
        "curve_model": list(model),
        "curve_agreement": list(np.ones_like(model)),
    }


def full_data(name: str = "mic.mrc", n_micrographs: int = 14) -> ReportData:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 50)).astype(np.float16)
    n = 24
    curve = 1.0 / (1.0 + (np.arange(n // 2 + 1) / 6.0) ** 6)
    curves = {kind: curve for kind in ("unmasked", "masked", "randomised", "corrected")}
    tilt = np.degrees(np.arccos(rng.uniform(-1, 1, 400)))
    return ReportData(
        summary=RunSummary(
            project=name,
            command=f"cryoseg run --project {name}",
            ended="2026-11-24 12:00",
            wall_seconds=4000.0,
            micrographs=14,
            micrographs_used=13,
            particles_picked=2000,
            particles_used=1500,
            resolution=7.123,
            resolution_half=8.9,
            pixel_size=1.5,
            box=128,
            symmetry="D2",
            diameter=180.0,
            b_factor=-250.0,
            versions={"torch": "2"},
        ),
        micrographs=[
            MicrographView(name, image, 8.0, rng.uniform(0, 50, (9, 2)), 120.0, i > 0) for i in range(n_micrographs)
        ],
        ctf=[CtfView(name, ctf_record(i > 0), rng.uniform(size=(64, 64))) for i in range(n_micrographs)],
        classes=ClassView(
            rng.normal(size=(5, 32, 32)), np.array([10, 0, 500, 20, 3]), np.array([0, 0, 1, 1, 0], bool), 3.0
        ),
        orientations=np.column_stack([rng.uniform(-180, 180, 400), tilt]),
        fsc=FscView(curves, n, 3.0, 9.0, 12.0),
        truth_fsc=FscView({"truth": curve}, n, 3.0, None, 12.0),
        map=MapView(rng.normal(size=(n, n, n)).astype(np.float32), 3.0, 40.0),
        set_aside=[SetAside("ingest", name, f"{name}: expected 5 bytes, got 3.")],
        stage_seconds={"ingest": 3.0, "refine": 900.0, name: 1.0},
        iterations=[IterationView(1, 30.0, 15.0), IterationView(2, 20.0, 7.5)],
        settings={"ctf": {"tile_size": 512, "note": name, "missing": None}},
    )


def test_full_page_shows_every_section():
    page = build(full_data())
    checker = parsed(page)
    assert SECTIONS | {"truth"} <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids)), "two elements share an id"
    text = " ".join(checker.text)
    for expected in (
        "7.12 Å",
        "8.90 Å",
        "1,500",
        "2,000 picked",
        "67 min",
        "12 of 14 micrographs",
        "13 of 14",
        "-250 Å²",
    ):
        assert expected in text
    assert text.count("accepted") > 10
    # Class 3 leads with its 500 particles, the empty class 2 is left out.
    assert "ended 2026-11-24 12:00" in text
    assert "3 · 500 ✓" in text
    assert "2 · 0" not in text


def test_minimal_page_says_what_is_missing():
    page = build(ReportData())
    checker = parsed(page)
    assert set(checker.ids) == SECTIONS
    assert page.count('class="none"') == len(SECTIONS)


@pytest.mark.parametrize("data", [ReportData(), full_data()], ids=["minimal", "full"])
def test_page_is_self_contained(data):
    page = build(data)
    checker = parsed(page)
    lowered = page.lower()
    assert "http:" not in lowered
    assert "https:" not in lowered
    assert "@import" not in lowered
    assert not {"script", "link", "iframe", "object", "embed"} & set(checker.tags)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in checker.addresses)


def test_every_inner_reference_has_its_target():
    checker = parsed(build(full_data()))
    inner = {address[1:] for address in checker.addresses if address.startswith("#")}
    assert inner <= set(checker.ids)


def test_hostile_names_are_escaped_everywhere():
    page = build(full_data(HOSTILE))
    checker = parsed(page)
    assert "<script" not in page
    assert "script" not in checker.tags
    assert checker.handlers == []
    assert not [a for a in checker.addresses if a == "x"]
    assert any("<script>alert('x')</script>" in text for text in checker.text)


def test_same_data_same_page():
    assert build(full_data()) == build(full_data())


def test_odd_inputs_do_not_break_the_page():
    nan = np.full((20, 20), np.nan)
    data = ReportData(
        micrographs=[MicrographView("a", nan, 8.0, np.zeros((0, 2)))],
        ctf=[CtfView("a", {"accepted": False, "reasons": ["constant"]})],
        classes=ClassView(np.zeros((1, 8, 8)), np.array([0]), np.array([False]), 1.0),
        orientations=np.zeros((1, 2)),
        fsc=FscView({"unmasked": np.ones(5)}, 8, 1.0),
        map=MapView(np.zeros((8, 8, 8)), 1.0),
        stage_seconds={"ingest": 0.0},
        iterations=[IterationView(1, 10.0)],
    )
    parsed(build(data))
