"""The start from common lines in a run: kept in the store, and refused where it cannot work."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cryoseg_dist.errors import BadInputError, SettingsError
from cryoseg_dist.kernels.fourier import to_real
from cryoseg_dist.kernels.slices import project
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.pipeline import common_lines, run
from cryoseg_dist.pipeline.classes import Classified
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.run import RunResult, check, first_map
from cryoseg_dist.pipeline.session import Session, open_session
from cryoseg_dist.runtime.events import Message
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.specimen import made_up

SIZE, PIXEL, DIAMETER, N = 48, 4.0, 150.0, 16


def settings(**start: object) -> dict[str, object]:
    return {
        "data": {"micrographs": "*.mrc", "pixel_size": PIXEL, "voltage": 300.0, "spherical_aberration": 2.7},
        "particle": {"diameter": DIAMETER, "symmetry": start.pop("symmetry", "C1")},
        "engine": {"engine": "inline"},
        "classify": {"enabled": start.pop("classes", True)},
        "common_lines": {"starts": 1, "seed": start.pop("seed", 0)},
        "start": start,
    }


@pytest.fixture(scope="module")
def classified() -> Classified:
    specimen = made_up(symmetry="C1", diameter=DIAMETER, size=SIZE, pixel_size=PIXEL, seed=2)
    generator = torch.Generator().manual_seed(0)
    images = to_real(project(specimen.transform, random_rotations(N, generator).float(), SIZE), SIZE)
    images = images / images.std() + 0.5 * torch.randn(images.shape, generator=generator)
    optics = Optics(PIXEL, 300.0, 2.7, 0.1)
    particles = Particles("classes:all", pd.DataFrame({"row": np.arange(4)}), optics, SIZE, DIAMETER)
    selected = np.arange(N) != 3
    return Classified("classes", images.numpy(), np.full(N, 20), selected, particles)


@pytest.fixture
def said() -> list[str]:
    return []


def session_of(root: Path, said: list[str], **start: object) -> Iterator[Session]:
    def listen(event: object) -> None:
        if isinstance(event, Message):
            said.append(event.text)

    with open_session(build_settings(settings(**start)), root, [listen], ["test"]) as session:
        yield session


def test_the_map_is_kept_and_told(
    classified: Classified, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for session in session_of(tmp_path, said, method="common_lines"):
        check(session, "abinitio")
        name, volume, foreign = first_map(session, classified.particles, classified)
        assert foreign
        assert volume.shape == (SIZE, SIZE, SIZE)
        assert float(volume.max()) > 5.0 * float(volume.std())
        done = session.project.read_json(f"state/{name}/done.json")
        assert done is not None
        assert 4 not in done["classes"]
        assert len(done["rotations"]) == N - 1
        figures = RunResult(session, start=name).figures()
        assert figures["start"] == name
        assert figures["common_lines"]["consensus"] > 1.5
        assert "common_lines" not in RunResult(session, start="reference:/a/b.mrc:1:2").figures()
    assert any("15 of 15 class averages agree" in text and text.endswith(": trusted.") for text in said)

    def never(*_: object) -> None:
        raise AssertionError("a finished map is computed again")

    monkeypatch.setattr(common_lines, "orient", never)
    for session in session_of(tmp_path, said, method="common_lines"):
        again = common_lines.run_common_lines(session, classified)
        assert again.run == name
        assert torch.equal(again.volume, volume)
    for session in session_of(tmp_path, said, method="common_lines", seed=1):
        with pytest.raises(AssertionError, match="again"):
            common_lines.run_common_lines(session, classified)


def test_symmetry_or_no_classes_are_refused(tmp_path: Path, said: list[str]) -> None:
    for session in session_of(tmp_path, said, method="common_lines", symmetry="D2", classes=False):
        with pytest.raises(SettingsError) as fault:
            check(session, "abinitio")
    text = str(fault.value)
    assert "without symmetry for common_lines, got D2. Take start.method = stochastic." in text
    assert "got classify.enabled = false" in text


def test_auto_takes_lines_that_can_be_trusted(
    classified: Classified, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_stochastic", lambda *_: ("stochastic", torch.zeros(1)))
    noise = np.random.default_rng(0).normal(size=classified.averages.shape).astype(np.float32)
    few = np.arange(N) < 5
    strangers = replace(classified.particles, run="noise")
    for session in session_of(tmp_path, said):
        name, _, foreign = first_map(session, classified.particles, classified)
        assert name.startswith("common_lines")
        assert foreign
        assert not any("Stochastic" in text for text in said)
        wrong = replace(classified, averages=noise, particles=strangers)
        assert first_map(session, strangers, wrong)[0] == "stochastic"
        assert said[-2].endswith("not trusted.")
        assert said[-1].startswith("Stochastic start instead. More classes")
        some = replace(classified, selected=few, particles=replace(strangers, run="few"))
        assert first_map(session, some.particles, some)[0] == "stochastic"
        assert said[-1] == ("common lines: expected at least 10 good class averages, got 5. Stochastic start instead.")
        assert first_map(session, classified.particles, None)[0] == "stochastic"
    for session in session_of(tmp_path, said, method="common_lines"):
        with pytest.raises(BadInputError, match="at least 10 good class averages"):
            first_map(session, some.particles, some)
    for session in session_of(tmp_path, said, method="stochastic"):
        assert first_map(session, classified.particles, classified)[0] == "stochastic"
    for session in session_of(tmp_path, said, symmetry="D2"):
        assert first_map(session, classified.particles, classified)[0] == "stochastic"
