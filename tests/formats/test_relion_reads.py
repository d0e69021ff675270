"""RELION itself reads what is written here."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryoseg_dist.formats.fsc_files import write_fsc_star
from cryoseg_dist.formats.mrc import read_volume, write_stack, write_volume
from cryoseg_dist.formats.star import read_blocks, read_star, write_star

N, SIZE, PIXEL = 24, 32, 3.0


def relion(folder: Path, *command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def optics() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "optics_group_name": ["opticsGroup1"],
            "optics_group": [1],
            "voltage": [300.0],
            "spherical_aberration": [2.7],
            "amplitude_contrast": [0.1],
            "pixel_size": [PIXEL],
            "micrograph_pixel_size": [PIXEL],
            "image_size": [SIZE],
            "image_dimensionality": [2],
        }
    )


def particles() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "image_name": [f"{i + 1:06d}@p.mrcs" for i in range(N)],
            "micrograph_name": "0001.mrc",
            "coordinate_x": rng.uniform(0, 4000, N),
            "coordinate_y": rng.uniform(0, 4000, N),
            "optics_group": 1,
            "defocus_u": rng.uniform(12000, 20000, N),
            "defocus_v": 11000.0,
            "defocus_angle": rng.uniform(0, 180, N),
            "phase_shift": 0.0,
            "rot": rng.uniform(-180, 180, N),
            "tilt": rng.uniform(0, 180, N),
            "psi": rng.uniform(-180, 180, N),
            "origin_x": rng.normal(size=N),
            "origin_y": rng.normal(size=N),
            "random_subset": np.arange(N) % 2 + 1,
        }
    )


def test_particles_pass_through_relion_unchanged(tmp_path: Path) -> None:
    write_star(tmp_path / "particles.star", {"optics": optics(), "particles": particles()})
    relion(tmp_path, "relion_star_handler", "--i", "particles.star", "--o", "out.star",
           "--select", "rlnOpticsGroup", "--minval", "1", "--maxval", "1")  # fmt: skip
    again = read_star(tmp_path / "out.star")
    pd.testing.assert_frame_equal(again.rows[list(particles())], particles(), check_dtype=False, rtol=1e-6, atol=1e-5)
    assert again.optics["pixel_size"].item() == PIXEL


def test_relion_reconstructs_from_them(tmp_path: Path) -> None:
    write_star(tmp_path / "particles.star", {"optics": optics(), "particles": particles()})
    images = np.random.default_rng(1).normal(size=(N, SIZE, SIZE)).astype(np.float32)
    write_stack(tmp_path / "p.mrcs", images, PIXEL)
    relion(tmp_path, "relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf")
    volume, pixel = read_volume(tmp_path / "map.mrc")
    assert volume.shape == (SIZE,) * 3
    assert pixel == pytest.approx(PIXEL)
    assert volume.std() > 0


def test_micrographs_are_known_to_relion(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {"micrograph_name": ["a.mrc", "b.mrc"], "optics_group": 1, "defocus_u": [15000.0, 16000.0],
         "defocus_v": 14900.0, "defocus_angle": 12.5, "ctf_max_resolution": [4.5, 6.5]}
    )  # fmt: skip
    write_star(tmp_path / "micrographs_ctf.star", {"optics": optics(), "micrographs": rows})
    relion(tmp_path, "relion_star_handler", "--i", "micrographs_ctf.star", "--o", "good.star",
           "--select", "rlnCtfMaxResolution", "--minval", "0", "--maxval", "5")  # fmt: skip
    assert list(read_star(tmp_path / "good.star").rows["micrograph_name"]) == ["a.mrc"]


def test_fsc_table_has_relions_labels_and_order(tmp_path: Path, shared_data: Path) -> None:
    curve = np.linspace(1, 0, SIZE // 2 + 1)
    curves = dict.fromkeys(("unmasked", "corrected", "randomised", "masked"), curve)
    write_fsc_star(tmp_path / "fsc.star", curves, SIZE, PIXEL, {"rlnFinalResolution": 8.0})
    ours = read_blocks(tmp_path / "fsc.star")
    theirs = read_blocks(shared_data / "bgal_empiar10204/relion31_reference/postprocess.star")
    assert list(ours) == list(theirs)[:2] == ["general", "fsc"]
    assert list(ours["fsc"]) == list(theirs["fsc"])


def test_relion_reads_the_map(tmp_path: Path) -> None:
    write_volume(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(16, 16, 16)), 2.5)
    said = relion(tmp_path, "relion_image_handler", "--i", "map.mrc", "--stats")
    assert "(x,y,z,n)= 16 x 16 x 16 x 1" in said
    assert "angpix = 2.5" in said
