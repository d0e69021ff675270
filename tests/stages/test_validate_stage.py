"""Validation of half maps with known resolution, and beside RELION's post-processing."""

import math
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.mrc import write_volume
from cryoseg_dist.formats.star import read_blocks
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.map_comparison import compare_maps
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.sharpen import apply_b_factor
from cryoseg_dist.simulate.specimen import made_up
from cryoseg_dist.stages.particle_curve import fitted, masked_resolution, nested_subsets, particle_curve
from cryoseg_dist.stages.postprocess import PostprocessSettings, postprocess
from cryoseg_dist.stages.validate import ValidateSettings, comparison_words, validate

N, PIXEL = 64, 2.0
FADE = 120.0


def halves(noise: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """A protein-like map faded by a B-factor, two noisy copies, and a mask."""
    volume = made_up(diameter=90.0, size=N, pixel_size=PIXEL, resolution=4.0, seed=2).volume
    volume = to_real(apply_b_factor(to_fourier(volume / volume.std(), 3), PIXEL, FADE), N, 3)
    generator = torch.Generator().manual_seed(seed)
    return (
        volume,
        [volume + noise * torch.randn((N,) * 3, generator=generator) for _ in range(2)],
        soft_sphere(N, 25, 5),
    )


def test_figures_of_an_even_map() -> None:
    _, pair, mask = halves()
    maps = postprocess(*pair, PIXEL, PostprocessSettings(), mask=mask)
    found = validate(*pair, maps, PIXEL, ValidateSettings())
    assert found.conical.isotropic
    poorest, best = found.direction_limits
    assert best <= maps.resolution <= poorest
    low, middle, high = found.local_range
    assert low <= middle <= high
    assert middle == pytest.approx(maps.resolution, rel=0.35)
    assert set(found.amplitudes) == {"inverse_square", "original", "weighted", "sharpened"}
    assert float(found.amplitudes["inverse_square"][-1]) == pytest.approx((0.5 / PIXEL) ** 2)
    assert all(w.endswith((".", ".)")) for w in found.words)
    assert f"{maps.resolution:.2f} Å" in found.words[0]


def test_post_processing_beside_relion(tmp_path: Path) -> None:
    if shutil.which("relion_postprocess") is None:
        pytest.skip("relion_postprocess is not installed")
    _, pair, mask = halves(noise=0.2)
    for i, half in enumerate(pair):
        write_volume(tmp_path / f"run_half{i + 1}_class001_unfil.mrc", half.numpy(), PIXEL)
    write_volume(tmp_path / "mask.mrc", mask.numpy(), PIXEL)
    done = subprocess.run(
        ["relion_postprocess", "--i", "run_half1_class001_unfil.mrc", "--mask", "mask.mrc", "--o", "relion",
         "--angpix", str(PIXEL), "--auto_bfac", "--autob_lowres", "15"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "relion.star").exists(), done.stdout + done.stderr
    tables = read_blocks(tmp_path / "relion.star")
    settings = PostprocessSettings(b_factor_low_resolution=15.0)
    ours = postprocess(*pair, PIXEL, settings, mask=mask)
    table = tables["fsc"]
    for name, label in (
        ("unmasked", "rlnFourierShellCorrelationUnmaskedMaps"),
        ("masked", "rlnFourierShellCorrelationMaskedMaps"),
    ):
        theirs = table[label].to_numpy(float)
        assert np.abs(ours.curves[name].numpy()[: len(theirs)] - theirs)[1:].max() < 0.02
    corrected = table["rlnFourierShellCorrelationCorrected"].to_numpy(float)
    mine = ours.curves["corrected"].numpy()[: len(corrected)]
    # Each program randomises phases of its own.
    assert np.abs(mine - corrected)[1 : int(N * PIXEL / ours.resolution) + 1].mean() < 0.05
    general = tables["general"]
    value = {k: float(general[k].iloc[0] if hasattr(general[k], "iloc") else general[k])
             for k in ("rlnFinalResolution", "rlnBfactorUsedForSharpening")}  # fmt: skip
    assert ours.resolution == pytest.approx(value["rlnFinalResolution"], rel=0.06)
    assert ours.b_factor == pytest.approx(value["rlnBfactorUsedForSharpening"], abs=25.0)


def test_words_on_a_comparison_name_the_hand() -> None:
    volume, pair, mask = halves()
    found = compare_maps(pair[0] + pair[1], volume, mask, 14.0)
    assert "in the same hand" in comparison_words(found, "model.cif", N, PIXEL)
    wrong = compare_maps(pair[0] + pair[1], volume.flip(0).roll(1, 0), mask, 14.0)
    assert "one of the two has the wrong hand" in comparison_words(wrong, "model.cif", N, PIXEL)


def test_subsets_are_nested_and_share_both_halves() -> None:
    half = (np.random.default_rng(0).random(1000) < 0.4).astype(int)
    subsets = nested_subsets(half, 5, 50)
    assert [len(s) for s in subsets] == [62, 125, 250, 500, 1000]
    for small, large in pairwise(subsets):
        assert set(small) <= set(large)
        assert np.mean(half[small]) == pytest.approx(np.mean(half), abs=0.03)
    with pytest.raises(BadInputError, match="at least 100"):
        nested_subsets(half[:60], 5, 50)


def test_the_line_finds_a_planted_b_factor() -> None:
    counts = (1000, 2000, 4000, 8000)
    b = 100.0
    resolutions = tuple((2.0 / b * math.log(n) - 0.1) ** -0.5 for n in counts)
    found = fitted(counts, resolutions, 0.5)
    assert found.b_factor == pytest.approx(b, rel=1e-6)
    assert found.expected(16000) == pytest.approx((2.0 / b * math.log(16000) - 0.1) ** -0.5)
    assert "would help" in found.words
    assert f"{found.expected(16000):.1f} Å" in found.words


@pytest.mark.parametrize(
    ("resolutions", "pixel", "said"),
    [((9.0, 8.9, 8.9, 8.9), 1.0, "hardly help"), ((6.0, 5.0, 4.1, 4.0), 2.0, "limit of the pixel size")],
)
def test_a_flat_curve_and_a_full_grid_are_told(resolutions: tuple[float, ...], pixel: float, said: str) -> None:
    assert said in fitted((500, 1000, 2000, 4000), resolutions, pixel).words


def test_a_curve_of_noisy_maps_finds_their_b_factor() -> None:
    mask = soft_sphere(N, 25, 5)
    white = torch.randn((N,) * 3, generator=torch.Generator().manual_seed(5)) * soft_sphere(N, 22, 4)
    # A molecule's form dominates its lowest frequencies.
    volume = to_real(apply_b_factor(to_fourier(white, 3), PIXEL, FADE), N, 3) + soft_sphere(N, 14, 12)

    def maps(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """What averaging that many noisy copies gives."""
        generator = torch.Generator().manual_seed(len(rows))
        noise = 24.0 / math.sqrt(len(rows))
        one, two = (volume + noise * torch.randn((N,) * 3, generator=generator) for _ in range(2))
        return one, two

    found = particle_curve(nested_subsets(np.arange(1600) % 2, 6, 50), maps, mask, PIXEL)
    assert found.counts == (50, 100, 200, 400, 800, 1600)
    assert found.resolutions[-1] < found.resolutions[0]
    # Amplitudes fade as exp(-B k^2 / 4): the particles needed grow as exp(B k^2 / 2).
    assert found.b_factor == pytest.approx(FADE, rel=0.25)
    assert "would help" in found.words
    assert found.resolutions[-1] == pytest.approx(masked_resolution(*maps(np.arange(1600)), mask, PIXEL))
