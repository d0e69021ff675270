"""The main job on small simulated micrographs: from files to a map, killed in the middle and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.cli.simulate import write_micrographs
from cryoseg_dist.formats.mrc import read_volume
from cryoseg_dist.formats.star import read_star
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import SimulateSettings
from cryoseg_dist.simulate.specimen import made_up

OPTICS = Optics(4.0, 300.0, 2.7, 0.1)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    specimen = made_up(symmetry="D2", diameter=150.0, size=56, pixel_size=4.0, seed=1)
    settings = SimulateSettings(
        n_micrographs=4, width=640, height=640, particles=60, snr=0.3, ice_noise=0.8, carbon=0.0, seed=2
    )
    write_micrographs(specimen, OPTICS, settings, folder)
    broken = folder / "micrographs" / "micrograph_9999.mrc"
    broken.write_bytes((folder / "micrographs" / "micrograph_0000.mrc").read_bytes()[:5000])
    return folder


def command(simulated: Path, project: Path) -> list[str]:
    return [
        sys.executable, "-m", "cryoseg_dist.cli.main", "run", "--project", str(project), "--engine", "inline",
        "--micrographs", str(simulated / "micrographs" / "*.mrc"), "--pixel-size", "4", "--voltage", "300",
        "--spherical-aberration", "2.7", "--amplitude-contrast", "0.1", "--diameter", "150", "--symmetry", "D2",
        "--set", "abinitio.iterations=6", "--set", "abinitio.batch=60", "--set", "refine.max_iterations=2",
        "--set", "extract.pixel_size=6", "--set", "refine.unit_size=40",
        "--set", "ctf.min_significance=0", "--set", "ctf.max_resolution=100", "--set", "ctf.max_astigmatism=10000",
    ]  # fmt: skip


def run(simulated: Path, project: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(simulated, project), capture_output=True, text=True, env=environment, timeout=300)


EXPORTS = (
    "map.mrc", "map_unsharpened.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "micrographs_ctf.star", "picks.star",
    "particles.star", "particles.mrcs", "fsc.star", "fsc.xml", "result.json", "report.html",
)  # fmt: skip


def test_from_micrographs_to_a_map_killed_and_resumed(simulated: Path, tmp_path: Path) -> None:
    whole = run(simulated, tmp_path / "whole")
    # Three: done, with the truncated micrograph set aside.
    assert whole.returncode == 3, whole.stderr
    assert "truncated" in whole.stdout
    export = tmp_path / "whole" / "export"
    for name in EXPORTS:
        assert (export / name).stat().st_size > 0, name
    result = json.loads((export / "result.json").read_text())
    assert result["micrographs"] == 5
    assert result["micrographs_ingested"] == 4
    particles = read_star(export / "particles.star").rows
    assert len(particles) == result["particles"] > 100
    assert {"rot", "tilt", "psi", "random_subset", "defocus_u", "image_name"} <= set(particles)
    assert set(particles["random_subset"]) == {1, 2}
    fitted = set(read_star(export / "micrographs_ctf.star").rows["micrograph_name"])
    for name in ("picks.star", "particles.star"):
        assert set(read_star(export / name).rows["micrograph_name"]) <= fitted, name
    # What is counted and shown by stage is the stage's own.
    events = map(json.loads, (tmp_path / "whole" / "events.jsonl").read_text().splitlines())
    ended = [(event["stage"], event["run"]) for event in events if event["event"] == "UnitFinished"]
    assert {stage for stage, run in ended} >= {"ctf", "classify", "abinitio", "refine"}
    assert all(run.startswith(f"{stage}-") for stage, run in ended)

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(simulated, killed),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("state/abinitio-*/it003.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    marks = {p.name: p.read_bytes() for p in (killed / "ledger").glob("*.jsonl")}
    resumed = run(simulated, killed)
    assert resumed.returncode == 3, resumed.stderr
    assert "of them finished before" in resumed.stderr
    for name, before in marks.items():
        after = (killed / "ledger" / name).read_bytes()
        # Finished units keep their marks: nothing marked was computed again.
        assert after.startswith(before[: before.rfind(b"\n") + 1])
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        np.testing.assert_array_equal(read_volume(export / name)[0], read_volume(killed / "export" / name)[0])

    # A clean project of which a shard is damaged: what wrote it is computed again, and nothing else.
    cleaned = CliRunner().invoke(app, ["clean", str(killed), "--yes"])
    assert cleaned.exit_code == 0, cleaned.output
    assert "steps that led to it" in cleaned.output
    assert CliRunner().invoke(app, ["verify", str(killed)]).exit_code == 0
    shard = next(killed.glob("store.zarr/extract-*/images/c/0/0/0"))
    shard.write_bytes(shard.read_bytes()[:-100])
    found = CliRunner().invoke(app, ["verify", str(killed), "--quick"])
    assert found.exit_code == 0, found.output
    found = CliRunner().invoke(app, ["verify", str(killed)])
    assert found.exit_code == 1
    assert found.output.count("takes extract/000000000 of extract-") == 1
    before = (killed / "events.jsonl").stat().st_size
    started = time.monotonic()
    again = run(simulated, killed)
    assert again.returncode == 3, again.stderr
    assert time.monotonic() - started < 60
    with (killed / "events.jsonl").open("rb") as stream:
        stream.seek(before)
        events = [json.loads(line) for line in stream]
    assert [e["unit"] for e in events if e["event"] == "UnitFinished"] == ["extract/000000000"]
    assert any("is damaged" in e.get("message", "") for e in events if e["event"] == "Message")
    np.testing.assert_array_equal(read_volume(export / "map.mrc")[0], read_volume(killed / "export" / "map.mrc")[0])
    assert CliRunner().invoke(app, ["verify", str(killed)]).exit_code == 0

    # Every artefact says where it comes from.
    refined = json.loads((killed / "export" / "result.json").read_text())["provenance"]["run"]
    assert refined.startswith("refine-")
    for name in ("map.mrc", "particles.mrcs", "fsc.star", "particles.star", "fsc.xml", "report.html", "result.json"):
        assert refined.encode() in (killed / "export" / name).read_bytes(), name
    chain = json.loads((killed / "export" / "result.json").read_text())["provenance"]["upstream"]
    assert {name.partition("-")[0] for name in chain} >= {
        "abinitio",
        "classify",
        "extract",
        "pick",
        "segment",
        "ctf",
        "ingest",
    }
