"""Particles of several optics groups with aberrations and envelopes: one map, the same convention as RELION's."""

import shutil
import subprocess
from collections.abc import Callable
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
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.schema.optics import Optics

SIZE, PIXEL, N = 24, 4.0, 480
GROUPS = (
    Optics(PIXEL, 300.0, 2.7, 0.1, (40.0, -30.0), (6.0, -8.0, 1500.0, 0.0, 0.0, -1000.0), ()),
    Optics(PIXEL, 200.0, 1.4, 0.07, (0.0, 0.0), (), (0.6, 80.0, -30.0, 40.0)),
)


def phantom() -> Tensor:
    axis = torch.arange(SIZE) - SIZE // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blobs = ((5, 0, 0, 1.0), (-3, 4, 0, 1.5), (0, -2, 5, 2.0), (0, 3, -4, 0.8), (-4, -4, -3, 1.2))
    return sum(
        (m * torch.exp(-0.25 * ((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2)) for a, b, c, m in blobs), torch.zeros(())
    )


def numbers(values: tuple[float, ...]) -> str:
    return "[" + ",".join(f"{v:g}" for v in values) + "]"


def optics_table(groups: tuple[Optics, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "optics_group_name": f"opticsGroup{i}",
                "optics_group": i,
                "voltage": g.voltage,
                "spherical_aberration": g.spherical_aberration,
                "amplitude_contrast": g.amplitude_contrast,
                "pixel_size": g.pixel_size,
                "image_size": SIZE,
                "image_dimensionality": 2,
                "beam_tilt_x": g.beam_tilt[0],
                "beam_tilt_y": g.beam_tilt[1],
                "odd_zernike": numbers(g.odd_aberrations or (0.0,)),
                "even_zernike": numbers(g.even_aberrations or (0.0,)),
                **dict(zip(("mag_00", "mag_01", "mag_10", "mag_11"), g.magnification, strict=True)),
            }
            for i, g in enumerate(groups, start=3)
        ]
    )


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the particles of each group; the stack lies beside the file."""
    root = tmp_path_factory.mktemp("groups")
    rng = np.random.default_rng(5)
    table = pd.DataFrame(
        {
            "image_name": [f"{i:06d}@stack.mrcs" for i in range(1, N + 1)],
            "optics_group": rng.permutation(N) % 2 + 3,
            "defocus_u": rng.uniform(9000, 20000, N),
            "defocus_angle": rng.uniform(0, 180, N),
            "rot": rng.uniform(-180, 180, N),
            "tilt": np.degrees(np.arccos(rng.uniform(-1, 1, N))),
            "psi": rng.uniform(-180, 180, N),
            "random_subset": rng.permutation(N) % 2 + 1,
            "ctf_scale": rng.uniform(0.4, 1.6, N),
            "ctf_b_factor": rng.uniform(-200, 600, N),
        }
    )
    table["defocus_v"] = table["defocus_u"] - 500.0
    rotations = euler_to_matrix(*(torch.tensor(table[c].to_numpy()) for c in ("rot", "tilt", "psi"))).float()
    ky, kx = disc_pixels(SIZE, SIZE / 2)
    columns = torch.tensor(table[["defocus_u", "defocus_v", "defocus_angle"]].to_numpy())
    columns = torch.column_stack((columns, torch.zeros(N), torch.tensor(table["optics_group"].to_numpy() - 3))).float()
    microscope = Microscope(GROUPS, SIZE, ky, kx)
    square = (ky * ky + kx * kx) / (SIZE * PIXEL) ** 2
    scale, b_factor = (torch.tensor(table[c].to_numpy())[:, None] for c in ("ctf_scale", "ctf_b_factor"))
    envelope = (scale * torch.exp(-b_factor * square / 4)).float()
    factor = envelope * (
        microscope.ctf(columns) * microscope.in_phase(torch.ones((N, len(ky)), dtype=torch.complex64), columns).conj()
    )
    spectra = project(prepare_volume(phantom()), rotations, SIZE)
    damaged = torch.zeros_like(spectra)
    damaged[:, ky, kx] = spectra[:, ky, kx] * factor
    write_stack(root / "stack.mrcs", to_real(damaged, SIZE).numpy(), PIXEL)
    path = root / "particles.star"
    write_star(path, {"optics": optics_table(GROUPS), "particles": table})
    return path


def likeness(volume: Tensor) -> float:
    """Correlation with the truth between 16 A and 9 A, where aberrations tell."""
    a, b = to_fourier(volume, 3), to_fourier(phantom(), 3)
    k, kx = torch.fft.fftfreq(SIZE) * SIZE, torch.fft.rfftfreq(SIZE) * SIZE
    radius = (k[:, None, None] ** 2 + k[None, :, None] ** 2 + kx[None, None] ** 2).sqrt()
    band = (radius > 6) & (radius < 10.5)
    a, b = a[band], b[band]
    return float((a * b.conj()).real.sum() / (a.abs().square().sum() * b.abs().square().sum()).sqrt())


def ours(star: Path, out: Path) -> Tensor:
    result = CliRunner().invoke(app, ["reconstruct", str(star), "--output", str(out), "--workers", "1"])
    assert result.exit_code == 0, result.output
    return torch.from_numpy(read_volume(out / "export/map_unsharpened.mrc")[0])


def relions(star: Path, out: Path) -> Tensor:
    if shutil.which("relion_reconstruct") is None:
        pytest.skip("relion_reconstruct is not installed")
    command = ["relion_reconstruct", "--i", star.name, "--o", str(out), "--ctf", "--pad", "2"]
    done = subprocess.run(command, cwd=star.parent, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.from_numpy(read_volume(out)[0])


@pytest.mark.parametrize("engine", [ours, relions], ids=["ours", "relion"])
def test_groups_and_aberrations_are_corrected(
    star: Path, tmp_path: Path, engine: Callable[[Path, Path], Tensor]
) -> None:
    right = likeness(engine(star, tmp_path / "right.mrc"))
    tables = read_star(star)
    optics = {
        "one voltage": tables.optics.assign(voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1),
        "no tilt": tables.optics.assign(beam_tilt_x=0.0, beam_tilt_y=0.0),
        "other tilt": tables.optics.assign(beam_tilt_x=-tables.optics["beam_tilt_x"]),
        "no odd": tables.optics.assign(odd_zernike="[0]"),
        "no even": tables.optics.assign(even_zernike="[0]"),
        "other order": tables.optics.assign(even_zernike=numbers((0.6, 40.0, -30.0, 80.0))),
    }
    rows = {
        "no scale": tables.rows.assign(ctf_scale=1.0),
        "no fading": tables.rows.assign(ctf_b_factor=0.0),
        "other sign": tables.rows.assign(ctf_b_factor=-tables.rows["ctf_b_factor"]),
    }
    wrongs = {name: (table, tables.rows) for name, table in optics.items()}
    wrongs |= {name: (tables.optics, table) for name, table in rows.items()}
    found = {}
    for name, (groups, particles) in wrongs.items():
        path = star.with_name("wrong.star")
        write_star(path, {"optics": groups, "particles": particles})
        found[name] = likeness(engine(path, tmp_path / f"{name}.mrc"))
    assert right > 0.97, (right, found)
    assert all(value < right - 0.001 for value in found.values()), f"{right} {found}"


def test_both_programs_give_the_same_map(star: Path, tmp_path: Path) -> None:
    a, b = ours(star, tmp_path / "ours"), relions(star, tmp_path / "relion.mrc")
    assert float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) > 0.99


def test_refinement_corrects_them_too(star: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "reference.mrc", phantom().numpy(), PIXEL)
    tables = read_star(star)
    few = star.with_name("few.star")
    write_star(few, {"optics": tables.optics, "particles": tables.rows[:120]})
    plain = star.with_name("few_plain.star")
    bare = tables.optics.assign(odd_zernike="[0]", even_zernike="[0]", beam_tilt_x=0.0, beam_tilt_y=0.0)
    write_star(plain, {"optics": bare, "particles": tables.rows[:120]})
    options = ["--reference", str(tmp_path / "reference.mrc"), "--diameter", "76", "--engine", "inline"]
    options += ["--set", "refine.max_iterations=2", "--set", "refine.initial_low_pass=12"]
    likenesses = []
    for path in (few, plain):
        out = tmp_path / path.stem
        result = CliRunner().invoke(app, ["refine", str(path), "--output", str(out), *options])
        assert result.exit_code == 0, result.output
        likenesses.append(likeness(torch.from_numpy(read_volume(out / "export/map_unsharpened.mrc")[0])))
    assert likenesses[0] > likenesses[1] + 0.02, likenesses
    kept = read_star(tmp_path / "few/export/particles.star")
    pd.testing.assert_frame_equal(kept.optics, tables.optics)


def test_the_four_columns_of_one_group_are_the_first_group() -> None:
    ky, kx = disc_pixels(SIZE, SIZE / 2)
    columns = torch.tensor([[12000.0, 11000.0, 30.0, 0.0]])
    one = Microscope(GROUPS[1], SIZE, ky, kx).ctf(columns)
    other = Microscope(GROUPS, SIZE, ky, kx).ctf(torch.column_stack((columns, torch.ones(1))))
    torch.testing.assert_close(one, other)
    plain = Microscope(Optics(PIXEL, 300.0, 2.7, 0.1), SIZE, ky, kx)
    whole = ctf(SIZE, PIXEL, *columns.unbind(1), voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)
    torch.testing.assert_close(plain.ctf(columns), whole[:, ky, kx], atol=2e-4, rtol=0)
    spectra = torch.ones((1, len(ky)), dtype=torch.complex64)
    assert plain.in_phase(spectra, columns) is spectra
