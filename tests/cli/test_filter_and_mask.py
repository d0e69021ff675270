"""``cryoseg filter`` and ``cryoseg mask``, beside RELION's programs."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.formats.mrc import read_volume, write_volume
from cryoseg_dist.kernels.fourier import shell_mean, to_fourier
from cryoseg_dist.kernels.mask import soft_sphere

N, PIXEL = 48, 2.0


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.mrc"
    write_volume(path, np.random.default_rng(0).normal(size=(N, N, N)).astype(np.float32), PIXEL)
    return path


def amplitude(path: Path) -> torch.Tensor:
    return shell_mean(to_fourier(torch.from_numpy(read_volume(path)[0]), 3).abs().square(), N, 3).sqrt()


def test_bands_and_b_factor_multiply_the_amplitudes(noise: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mrc"
    assert call("filter", noise, "--output", out, "--low-pass", 8, "--high-pass", 32)[0] == 0
    before, after = amplitude(noise), amplitude(out)
    assert float(after[:2].max()) < 0.01 * float(before.mean())
    torch.testing.assert_close(after[5:11], before[5:11], rtol=1e-3, atol=0.0)
    assert float(after[14:].max()) < 0.01 * float(before.mean())
    assert call("filter", noise, "--output", out, "--b-factor", -60)[0] == 0
    k = torch.arange(N // 2 + 1) / (N * PIXEL)
    torch.testing.assert_close(amplitude(out) / before, torch.exp(15.0 * k * k), rtol=0.03, atol=0.0)


@pytest.mark.parametrize("given", [{"low-pass": 12}, {"high-pass": 12}, {"b-factor": -60, "low-pass": 6}])
def test_beside_relion(noise: Path, tmp_path: Path, given: dict[str, int]) -> None:
    """Cut-offs lie on shells, to which RELION rounds them; it leaves nothing beyond the inscribed sphere after a B-factor."""
    if shutil.which("relion_image_handler") is None:
        pytest.skip("relion_image_handler is not installed")
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    assert call("filter", noise, "--output", tmp_path / "ours.mrc", *options)[0] == 0
    subprocess.run(
        ["relion_image_handler", "--i", str(noise), "--o", str(tmp_path / "theirs.mrc"), "--angpix", str(PIXEL),
         *(text.replace("-pass", "pass").replace("b-f", "bf") for text in options)],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    a, b = (read_volume(tmp_path / f"{name}.mrc")[0] for name in ("ours", "theirs"))
    assert np.abs(a - b).max() < 0.01 * b.std()


def test_a_mask_is_relions(tmp_path: Path) -> None:
    if shutil.which("relion_mask_create") is None:
        pytest.skip("relion_mask_create is not installed")
    volume = (soft_sphere(N, 9, 6) + 0.7 * soft_sphere(N, 6, 5).roll((6, -5, 4), (0, 1, 2))).numpy()
    write_volume(tmp_path / "map.mrc", volume, PIXEL)
    code, said = call("mask", tmp_path / "map.mrc", "--output", tmp_path / "ours.mrc", "--threshold", 0.3, "--low-pass", 9.6,
                      "--extend", 2, "--edge", 4)  # fmt: skip
    assert code == 0
    assert "of the box is density" in said
    subprocess.run(
        ["relion_mask_create", "--i", "map.mrc", "--o", "theirs.mrc", "--ini_threshold", "0.3", "--lowpass", "9.6",
         "--angpix", str(PIXEL), "--extend_inimask", "2", "--width_soft_edge", "4"],
        cwd=tmp_path, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    ours, theirs = (read_volume(tmp_path / f"{name}.mrc")[0] for name in ("ours", "theirs"))
    assert 0.02 < theirs.mean() < 0.5
    # Voxels whose grey value is the threshold to rounding may fall on either side.
    assert (np.abs(ours - theirs) > 1e-3).mean() < 1e-3
    assert call("mask", tmp_path / "map.mrc", "--output", tmp_path / "inverse.mrc", "--threshold", 0.3, "--low-pass", 9.6,
                "--extend", 2, "--edge", 4, "--invert")[0] == 0  # fmt: skip
    np.testing.assert_allclose(read_volume(tmp_path / "inverse.mrc")[0], 1.0 - ours, atol=1e-6)


def test_local_resolution_and_mask_follow_their_maps(noise: Path, tmp_path: Path) -> None:
    local = np.full((N, N, N), 5.0, np.float32)
    local[..., : N // 2] = 20.0
    write_volume(tmp_path / "local.mrc", local, PIXEL)
    write_volume(tmp_path / "mask.mrc", soft_sphere(N, 15, 3).numpy(), PIXEL)
    out = tmp_path / "out.mrc"
    code, said = call("filter", noise, "--output", out, "--local-resolution", tmp_path / "local.mrc", "--mask", tmp_path / "mask.mrc")  # fmt: skip
    assert code == 0, said
    made = read_volume(out)[0]
    inside = soft_sphere(N, 12, 0).numpy() > 0
    left = made[..., : N // 2][inside[..., : N // 2]].std()
    assert left < 0.3 * made[..., N // 2 :][inside[..., N // 2 :]].std()
    assert float(np.abs(made[0]).max()) == 0.0


def test_what_is_wrong_is_told_and_nothing_written(noise: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "small.mrc", np.random.default_rng(1).normal(size=(32, 32, 32)).astype(np.float32), PIXEL)
    out = tmp_path / "out.mrc"
    for arguments, words in (
        (("filter", noise), "expected one of --low-pass"),
        (("filter", noise, "--low-pass", 20, "--high-pass", 10), "expected a finer resolution than high_pass"),
        (("filter", noise, "--mask", tmp_path / "small.mrc"), "expected 48 pixels of 2 A, as the map"),
        (("filter", noise, "--mask", noise), "expected values from 0 to 1"),
        (("filter", noise, "--local-resolution", noise), "expected resolutions above 0 A"),
        (("filter", tmp_path / "none.mrc", "--low-pass", 10), "no such file"),
        (("mask", noise, "--threshold", 100), "expected density above 100"),
    ):
        code, said = call(*arguments, "--output", out)
        assert code == 2, said
        assert words in said
    assert not out.exists()
