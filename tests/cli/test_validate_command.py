"""``cryoseg validate``: results, clear errors, and what others read of it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.formats.fsc_files import read_fsc
from cryoseg_dist.formats.mrc import read_volume, write_volume
from cryoseg_dist.formats.star import read_blocks
from cryoseg_dist.kernels.alignment import mirror
from cryoseg_dist.kernels.fourier import shells, to_fourier
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.simulate.specimen import from_model, made_up

N, PIXEL = 48, 3.0


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["validate", *arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two half maps of a known molecule, the molecule, its mirror image, and a mask."""
    where = tmp_path_factory.mktemp("halves")
    truth = made_up(diameter=100.0, size=N, pixel_size=PIXEL, resolution=7.0, seed=1).volume
    truth = truth / truth.std()
    generator = torch.Generator().manual_seed(0)
    for i in (1, 2):
        write_volume(where / f"half{i}.mrc", (truth + 4.0 * torch.randn((N,) * 3, generator=generator)).numpy(), PIXEL)
    write_volume(where / "truth.mrc", truth.numpy(), PIXEL)
    write_volume(where / "mirrored.mrc", mirror(truth).numpy(), PIXEL)
    write_volume(where / "mask.mrc", soft_sphere(N, 19, 4).numpy(), PIXEL)
    return where


def shell_correlation(a: torch.Tensor, b: torch.Tensor, some: torch.Tensor) -> float:
    """Correlation over some samples of two half spectra."""
    power = a[some].abs().square().sum() * b[some].abs().square().sum()
    return float((a * b.conj()).real[some].sum() / power.sqrt())


def halves(folder: Path) -> tuple[str, str]:
    return str(folder / "half1.mrc"), str(folder / "half2.mrc")


def test_everything_is_written_and_read_again(folder: Path, tmp_path: Path) -> None:
    code, text = call(*halves(folder), "--output", str(tmp_path), "--map", str(folder / "truth.mrc"))
    assert code == 0, text
    figures = json.loads((tmp_path / "validation.json").read_text())
    assert 6.0 < figures["resolution"] < 11.0
    assert 0.0 < figures["cfar"] <= 1.0
    assert figures["comparisons"][0]["in_place"]
    assert figures["comparisons"][0]["mean_fsc"] > 0.9
    assert "The half maps agree to" in text
    star, xml = read_fsc(tmp_path / "fsc.star"), read_fsc(tmp_path / "fsc.xml")
    np.testing.assert_allclose(star["corrected"], xml["corrected"], atol=1e-5)
    np.testing.assert_allclose(star["corrected"], figures["fsc"]["corrected"], atol=1e-4)
    assert list(read_blocks(tmp_path / "fsc.star")) == ["general", "fsc", "guinier"]
    local, pixel = read_volume(tmp_path / "local_resolution.mrc")
    assert local.shape == (N,) * 3
    assert pixel == pytest.approx(PIXEL)
    assert local.min() >= 2 * PIXEL - 0.01
    for name in (
        "map.mrc",
        "mask.mrc",
        "map_local_filtered.mrc",
        "compared_1.mrc",
        "fsc_compared_1.xml",
        "validation.html",
    ):
        assert (tmp_path / name).stat().st_size > 1000


def test_a_mirror_image_is_found_and_a_mask_is_used(folder: Path, tmp_path: Path) -> None:
    code, text = call(
        *halves(folder), "--output", str(tmp_path), "--map", str(folder / "mirrored.mrc"), "--mask", str(folder / "mask.mrc")
    )  # fmt: skip
    assert code == 0, text
    figures = json.loads((tmp_path / "validation.json").read_text())
    assert figures["comparisons"][0]["mirrored"]
    assert "wrong hand" in text
    assert figures["mask_fraction"] == pytest.approx(float(read_volume(folder / "mask.mrc")[0].mean()), rel=1e-4)


def test_a_model_is_compared_where_it_lies(shared_data: Path, tmp_path: Path) -> None:
    model = shared_data / "models" / "1igy.cif.gz"
    size, pixel = 56, 4.0
    truth = from_model(model, pixel_size=pixel, resolution=8.0, size=size).volume
    truth = truth / truth.std()
    generator = torch.Generator().manual_seed(0)
    for i in (1, 2):
        write_volume(
            tmp_path / f"h{i}.mrc", (truth + 0.3 * torch.randn((size,) * 3, generator=generator)).numpy(), pixel
        )
    code, text = call(
        str(tmp_path / "h1.mrc"), str(tmp_path / "h2.mrc"), "--output", str(tmp_path), "--model", str(model)
    )
    assert code == 0, text
    found = json.loads((tmp_path / "validation.json").read_text())["comparisons"][0]
    assert found["mean_fsc"] > 0.9
    assert found["mean_fsc"] > found["mean_fsc_other_hand"] + 0.05
    assert not found["mirrored"]
    assert found["resolution_half"] < 12.0


def test_relion_reads_the_star_file_and_the_mask(folder: Path, tmp_path: Path) -> None:
    if shutil.which("relion_postprocess") is None:
        pytest.skip("relion_postprocess is not installed")
    assert call(*halves(folder), "--output", str(tmp_path))[0] == 0
    said = subprocess.run(
        ["relion_star_printtable", str(tmp_path / "fsc.star"), "data_fsc", "rlnFourierShellCorrelationCorrected"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    printed = np.array([float(line) for line in said.split()])
    np.testing.assert_allclose(printed, read_fsc(tmp_path / "fsc.star")["corrected"], atol=1e-5)
    subprocess.run(
        ["relion_postprocess", "--i", halves(folder)[0], "--i2", halves(folder)[1], "--mask", str(tmp_path / "mask.mrc"),
         "--angpix", str(PIXEL), "--o", "again"],
        cwd=tmp_path, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    theirs = read_fsc(tmp_path / "again.star")
    ours = read_fsc(tmp_path / "fsc.star")
    maps = [torch.from_numpy(read_volume(Path(path))[0]) for path in halves(folder)]
    mask = torch.from_numpy(read_volume(tmp_path / "mask.mrc")[0])
    for name, factor in (("unmasked", torch.ones(())), ("masked", mask)):
        a, b = (to_fourier(volume * factor, 3) for volume in maps)
        # RELION counts the plane x = 0 twice as much as the rest: each sample that is stored, Friedel mate or not, once.
        once = [shell_correlation(a, b, shells(N, 3) == shell) for shell in range(1, N // 2 + 1)]
        np.testing.assert_allclose(once, theirs[name][1 : len(once) + 1], atol=1e-4)
        np.testing.assert_allclose(ours[name][1:], fsc(a, b)[1:], atol=1e-4)


def test_maps_that_do_not_belong_together_are_told(folder: Path, tmp_path: Path) -> None:
    first, second = halves(folder)
    rng = np.random.default_rng(0)
    write_volume(tmp_path / "small.mrc", rng.normal(size=(32, 32, 32)), PIXEL)
    write_volume(tmp_path / "pixel.mrc", rng.normal(size=(N, N, N)), 1.5)
    write_volume(tmp_path / "flat.mrc", np.zeros((N, N, N)), PIXEL)
    write_volume(tmp_path / "slab.mrc", rng.normal(size=(4, N, N)), PIXEL)
    for arguments, said in (
        ((first, str(tmp_path / "small.mrc")), "expected two maps of one size, got 48 and 32 pixels"),
        ((first, str(tmp_path / "pixel.mrc")), "expected two maps of one pixel size, got 3 and 1.5 A"),
        ((first, first), "the same map twice"),
        ((first, str(tmp_path / "flat.mrc")), "0 everywhere"),
        ((first, str(tmp_path / "slab.mrc")), "expected a cubic map, got 48 x 48 x 4"),
        ((first, str(tmp_path / "none.mrc")), "no such file"),
        ((first, second, "--mask", str(tmp_path / "small.mrc")), "expected 48 pixels of 3 A, as the map"),
        ((first, second, "--mask", first), "expected values from 0 to 1"),
        ((first, second, "--set", "validation.nothing=1"), "validation.nothing: unknown"),
        ((first, second, "--set", "mask=1"), "expected postprocess.NAME or validation.NAME"),
        ((first, second, "--symmetry", "Z3"), "Z3"),
        ((first, second, "--model", first), "an atomic model"),
    ):
        code, text = call(*arguments, "--output", str(tmp_path / "out"))
        assert code == 2, text
        assert said in text
    assert not (tmp_path / "out").exists()


def test_a_pixel_size_may_be_given(folder: Path, tmp_path: Path) -> None:
    code, _ = call(*halves(folder), "--output", str(tmp_path), "--pixel-size", "1.5")
    assert code == 0
    figures = json.loads((tmp_path / "validation.json").read_text())
    assert figures["pixel_size"] == 1.5
    assert read_volume(tmp_path / "map.mrc")[1] == pytest.approx(1.5)
