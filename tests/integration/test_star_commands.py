"""Particles of a STAR file through `cryoseg reconstruct`: the map, an interruption, what is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.formats.mrc import read_volume, write_stack, write_volume
from cryoseg_dist.formats.star import read_star, write_star
from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.fourier import to_real
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.pipeline import from_star

SIZE, PIXEL, N = 24, 4.0, 600
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}


def phantom() -> Tensor:
    """Five blobs of different mass that no mirror maps onto one another."""
    axis = torch.arange(SIZE) - SIZE // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blobs = ((5, 0, 0, 1.0), (-3, 4, 0, 1.5), (0, -2, 5, 2.0), (0, 3, -4, 0.8), (-4, -4, -3, 1.2))
    return sum(
        (m * torch.exp(-0.25 * ((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2)) for a, b, c, m in blobs), torch.zeros(())
    )


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RELION-like project: the STAR file in a job's folder, the stack named from the project."""
    root = tmp_path_factory.mktemp("relion")
    rng = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "image_name": [f"{i:06d}@Extract/stack.mrcs" for i in range(1, N + 1)],
            "rlnMadeUp": rng.uniform(size=N).round(6),
            "optics_group": 1,
            "defocus_u": rng.uniform(9000, 20000, N),
            "defocus_angle": rng.uniform(0, 180, N),
            "rot": rng.uniform(-180, 180, N),
            "tilt": np.degrees(np.arccos(rng.uniform(-1, 1, N))),
            "psi": rng.uniform(-180, 180, N),
            "origin_x": rng.uniform(-8, 8, N),
            "origin_y": rng.uniform(-8, 8, N),
            "random_subset": rng.permutation(N) % 2 + 1,
        }
    )
    table["defocus_v"] = table["defocus_u"] - 500.0
    rotations = euler_to_matrix(*(torch.tensor(table[c].to_numpy()) for c in ("rot", "tilt", "psi"))).float()
    defocus = [torch.tensor(table[c].to_numpy()) for c in ("defocus_u", "defocus_v", "defocus_angle")]
    ky, kx = torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None]
    x, y = (torch.tensor(table[c].to_numpy() / PIXEL)[:, None, None] for c in ("origin_x", "origin_y"))
    away = torch.exp(2j * torch.pi * (x * kx + y * ky)).to(torch.complex64)
    spectra = project(prepare_volume(phantom()), rotations, SIZE) * ctf(SIZE, PIXEL, *defocus, **OPTICS) * away
    images = to_real(spectra, SIZE).numpy()
    (root / "Extract").mkdir()
    write_stack(
        root / "Extract/stack.mrcs", images + rng.normal(scale=images.std(), size=images.shape).astype("f4"), PIXEL
    )
    group = {"optics_group_name": "one", "optics_group": 1, **OPTICS, "pixel_size": PIXEL, "image_size": SIZE}
    path = root / "Refine3D/job003/run_data.star"
    write_star(path, {"optics": pd.DataFrame([group]), "particles": table})
    return path


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def test_reconstruct_gives_the_map_in_the_right_hand(star: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["reconstruct", str(star), "--output", str(tmp_path / "p"), "--workers", "1"])
    assert result.exit_code == 0, result.output
    out = tmp_path / "p/export"
    volume = torch.from_numpy(read_volume(out / "map_unsharpened.mrc")[0])
    assert correlation(volume, phantom()) > 0.95
    assert correlation(volume, phantom().flip(0).roll(1, 0)) < 0.75
    for name in ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.star"):
        assert (out / name).is_file()
    assert json.loads((out / "result.json").read_text())["particles"] == N
    given, told = read_star(star).rows, read_star(out / "particles.star").rows
    assert (told["rlnMadeUp"] == given["rlnMadeUp"]).all()
    assert (told["random_subset"] == given["random_subset"]).all()
    # What was written can be read again from where it lies.
    again = CliRunner().invoke(
        app, ["reconstruct", str(out / "particles.star"), "--output", str(tmp_path / "q"), "--max-resolution", "12"]
    )
    assert again.exit_code == 0, again.output


def finished(project: Path) -> dict[str, float]:
    """When each fold was finished."""
    marks = {}
    for path in (project / "ledger").glob("reconstruct-*.jsonl"):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                mark = json.loads(line)
                if "taken_back" in mark:
                    continue
                assert mark["key"] not in marks, "computed twice"
                marks[mark["key"]] = mark["finished_at"]
    return marks


def test_a_killed_reconstruction_goes_on(star: Path, tmp_path: Path) -> None:
    options = ["--workers", "1", "--set", "reconstruct.folds_per_worker=100"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert CliRunner().invoke(app, ["reconstruct", str(star), "--output", str(whole), *options]).exit_code == 0
    code = "from cryoseg_dist.cli.main import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "reconstruct", str(star), "--output", str(killed), *options],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while len(finished(killed)) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(killed)
    assert 3 <= len(before) < 100
    # Another number of workers does not change how the folds were cut.
    options[1] = "2"
    assert CliRunner().invoke(app, ["reconstruct", str(star), "--output", str(killed), *options]).exit_code == 0
    after = finished(killed)
    assert len(after) == 100
    assert before.items() <= after.items()
    for name in ("map_unsharpened.mrc", "half1.mrc", "half2.mrc"):
        assert np.array_equal(read_volume(whole / "export" / name)[0], read_volume(killed / "export" / name)[0])


def test_a_damaged_partial_sum_is_made_again(star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["reconstruct", str(star), "--workers", "1", "--set", "reconstruct.folds_per_worker=4"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "calm")])
    assert result.exit_code == 0, result.output
    damaged, finish = [], from_star.finish_by_slabs

    def after_damage(session, accumulate, finishing, *rest):
        if not damaged:
            sums = finishing.partials
            region, _ = sums.regions(1)
            _, path = next(iter(session.project.shards(region)))
            path.write_bytes(path.read_bytes()[:-7])
            damaged.append(region)
        finish(session, accumulate, finishing, *rest)

    monkeypatch.setattr(from_star, "finish_by_slabs", after_damage)
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "hurt")])
    assert result.exit_code == 0, result.output
    assert damaged
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        a, b = (read_volume(tmp_path / project / "export" / name)[0] for project in ("calm", "hurt"))
        np.testing.assert_array_equal(a, b)
    lines = next((tmp_path / "hurt/ledger").rglob("reconstruct*.jsonl")).read_text().splitlines()
    keys = [json.loads(line).get("key") for line in lines if "taken_back" not in line]
    assert sorted(map(keys.count, set(keys))) == [1] * (len(set(keys)) - 1) + [2]


def test_damaged_maps_are_made_again_after_their_sums_have_gone(star: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    command = ["reconstruct", str(star), "--output", str(out), "--workers", "1"]
    assert CliRunner().invoke(app, command).exit_code == 0
    # Nobody misses the sums.
    assert CliRunner().invoke(app, ["verify", str(out)]).exit_code == 0
    before = read_volume(out / "export/half1.mrc")[0]
    shard = next(path for path in (out / "store.zarr").rglob("maps/c/**/0") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-7])
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "computed again" in result.output
    np.testing.assert_array_equal(read_volume(out / "export/half1.mrc")[0], before)


def test_what_is_missing_is_listed_before_any_work(star: Path, tmp_path: Path) -> None:
    tables = read_star(star)
    rows = tables.rows.drop(columns="tilt")
    rows.loc[5, "image_name"] = "000001@Extract/gone.mrcs"
    rows.loc[6, "image_name"] = "009999@Extract/stack.mrcs"
    bad = star.with_name("bad.star")
    write_star(bad, {"optics": tables.optics.drop(columns="voltage"), "particles": rows})
    result = CliRunner().invoke(app, ["reconstruct", str(bad), "--output", str(tmp_path / "p")])
    assert result.exit_code == 2
    for word in ("_rlnAngleTilt", "_rlnVoltage", "Extract/gone.mrcs", "9999"):
        assert word in result.output
    assert not (tmp_path / "p").exists()


def test_corrections_that_are_not_applied_are_refused(star: Path, tmp_path: Path) -> None:
    tables = read_star(star)
    for optics, word in (
        (tables.optics.assign(mag_00=1.5), "_rlnMagMat00"),
        (tables.optics.assign(ctf_premultiplied=1), "_rlnCtfDataAreCtfPremultiplied"),
        (pd.concat([tables.optics, tables.optics.assign(optics_group=2, pixel_size=5.0)]), "_rlnImagePixelSize"),
        (pd.concat([tables.optics, tables.optics]), "listed twice"),
        (tables.optics.assign(voltage=np.inf), "_rlnVoltage"),
        (tables.optics.assign(odd_zernike="[1,x]"), "[1,x]"),
    ):
        bad = star.with_name("bad2.star")
        group = np.arange(N) % optics["optics_group"].nunique() + 1
        write_star(bad, {"optics": optics, "particles": tables.rows.assign(optics_group=group)})
        result = CliRunner().invoke(app, ["reconstruct", str(bad), "--output", str(tmp_path / "p")])
        assert result.exit_code == 2
        assert word in result.output


def test_refine_takes_a_star_file_and_keeps_its_half_sets(star: Path, tmp_path: Path) -> None:
    tables = read_star(star)
    some = star.with_name("some.star")
    write_star(some, {"optics": tables.optics, "particles": tables.rows.drop(columns=["rot", "tilt", "psi"])[:80]})
    write_volume(tmp_path / "reference.mrc", phantom().numpy(), PIXEL)
    options = ["--diameter", "76", "--engine", "inline", "--set", "refine.max_iterations=1"]
    options += ["--set", "refine.first_order=1", "--set", "refine.initial_low_pass=20"]
    out = tmp_path / "p"
    result = CliRunner().invoke(
        app, ["refine", str(some), "--reference", str(tmp_path / "reference.mrc"), "--output", str(out), *options]
    )
    assert result.exit_code == 0, result.output
    told = read_star(out / "export/particles.star").rows
    assert (told["random_subset"] == tables.rows["random_subset"][:80]).all()
    assert correlation(torch.from_numpy(read_volume(out / "export/map_unsharpened.mrc")[0]), phantom()) > 0.7


def test_refine_of_a_star_file_says_what_it_needs(star: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["refine", str(star), "--voltage", "200"])
    assert result.exit_code == 2
    for option in ("--reference", "--output", "--diameter", "--voltage"):
        assert option in result.output
