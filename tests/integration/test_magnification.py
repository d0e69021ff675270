"""Anisotropic magnification: analytic images of Gaussian blobs, taken at ``M k``, in the same convention as RELION's."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.formats.star import write_star
from cryoseg_dist.kernels.ctf import wavelength
from cryoseg_dist.kernels.fourier import to_real
from cryoseg_dist.kernels.magnification import stretch
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.schema.optics import Optics
from tests.integration.test_optics_groups import PIXEL, SIZE, N, likeness, optics_table, ours, relions

MATRIX = np.array([[1.06, 0.03], [-0.01, 0.95]])
BLOBS = ((5, 0, 0, 1.0), (-3, 4, 0, 1.5), (0, -2, 5, 2.0), (0, 3, -4, 0.8), (-4, -4, -3, 1.2))
VOLTAGE, CS, AMPLITUDE = 300.0, 2.7, 0.1


def optics_of(matrix: np.ndarray) -> Optics:
    a, b, c, d = matrix.flatten().tolist()
    return Optics(PIXEL, VOLTAGE, CS, AMPLITUDE, magnification=(a, b, c, d))


def phase(k: np.ndarray, row: pd.Series) -> np.ndarray:
    """That of the CTF at frequencies (2, p) in Fourier pixels."""
    x, y = k / (SIZE * PIXEL)
    square, turned = x * x + y * y, np.arctan2(y, x) - math.radians(row["defocus_angle"])
    u, v, lam = row["defocus_u"], row["defocus_v"], wavelength(VOLTAGE)
    focus = 0.5 * (u + v + (u - v) * np.cos(2 * turned))
    return math.pi * lam * square * focus - 0.5 * math.pi * lam**3 * CS * 1e7 * square**2 + math.asin(AMPLITUDE)


def table_of(rng: np.random.Generator) -> pd.DataFrame:
    u = rng.uniform(9000, 20000, N)
    return pd.DataFrame(
        {
            "image_name": [f"{i:06d}@stack.mrcs" for i in range(1, N + 1)],
            "optics_group": 3,
            "defocus_u": u,
            "defocus_v": u - 800.0,
            "defocus_angle": rng.uniform(0, 180, N),
            "rot": rng.uniform(-180, 180, N),
            "tilt": np.degrees(np.arccos(rng.uniform(-1, 1, N))),
            "psi": rng.uniform(-180, 180, N),
            "random_subset": np.arange(N) % 2 + 1,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("magnified")
    table = table_of(np.random.default_rng(0))
    rotations = euler_to_matrix(*(torch.tensor(table[c].to_numpy()) for c in ("rot", "tilt", "psi"))).numpy()
    ky, kx = (k.numpy() for k in disc_pixels(SIZE, SIZE / 2))
    spectra = torch.zeros((N, SIZE, SIZE // 2 + 1), dtype=torch.complex64)
    for i, (_, row) in enumerate(table.iterrows()):
        k = MATRIX @ np.stack((kx, ky))
        at = k.T @ rotations[i, :2] / SIZE
        molecule = sum(mass * np.exp(-2j * np.pi * (at @ np.array(place))) for *place, mass in BLOBS)
        molecule = molecule * np.exp(-4 * np.pi**2 * (at**2).sum(axis=1))
        spectra[i, ky, kx] = torch.from_numpy(molecule * np.sin(phase(k, row))).to(torch.complex64)
    write_stack(root / "stack.mrcs", to_real(spectra, SIZE).numpy(), PIXEL)
    return root


def star(folder: Path, matrix: np.ndarray) -> Path:
    """The particles with that matrix in their optics table."""
    optics = optics_table((optics_of(matrix),))
    path = folder / "particles.star"
    write_star(path, {"optics": optics, "particles": table_of(np.random.default_rng(0))})
    return path


@pytest.mark.parametrize("engine", [ours, relions], ids=["ours", "relion"])
def test_slices_and_ctf_are_taken_where_they_lie(
    folder: Path, tmp_path: Path, engine: Callable[[Path, Path], Tensor]
) -> None:
    right = likeness(engine(star(folder, MATRIX), tmp_path / "right.mrc"))
    wrongs = {"none": np.eye(2), "transposed": MATRIX.T, "inverse": np.linalg.inv(MATRIX)}
    found = {name: likeness(engine(star(folder, m), tmp_path / f"{name}.mrc")) for name, m in wrongs.items()}
    assert right > 0.995, f"{right} {found}"
    assert all(value < right - 0.001 for value in found.values()), f"{right} {found}"


def test_the_transfer_function_is_that_of_magnified_frequencies() -> None:
    optics = optics_of(MATRIX)
    row = pd.Series({"defocus_u": 15000.0, "defocus_v": 14000.0, "defocus_angle": 30.0})
    ky, kx = disc_pixels(SIZE, SIZE / 2)
    got = Microscope(optics, SIZE, ky, kx).ctf(torch.tensor([[15000.0, 14000.0, 30.0, 0.0]]))[0]
    want = np.sin(phase(MATRIX @ np.stack((kx.numpy(), ky.numpy())), row))
    np.testing.assert_allclose(got.numpy(), want, atol=2e-5)
    assert stretch((optics, Optics(PIXEL, VOLTAGE, CS, AMPLITUDE))) == pytest.approx(np.linalg.norm(MATRIX, 2))


def test_refinement_says_that_it_does_not_correct_for_it(folder: Path, tmp_path: Path) -> None:
    command = ["refine", str(star(folder, MATRIX)), "--reference", str(folder / "stack.mrcs"), "--diameter", "76"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "p")])
    assert result.exit_code == 2
    assert "_rlnMagMat00" in result.output
