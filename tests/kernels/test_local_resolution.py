"""Local resolution of maps whose halves end at known resolutions, and beside RELION's."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cryoseg_dist.formats.mrc import read_volume, write_volume
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.local_resolution import filter_locally, local_resolution, sampling_points
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.sharpen import low_pass_shell

N, PIXEL = 64, 2.5


def two_sided(noise: float = 0.12, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Truth that ends at 16 A for x < 0 and at 8 A for x > 0, its noisy halves, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    white = to_fourier(torch.randn((N,) * 3, generator=generator), 3)
    coarse, fine = (to_real(low_pass_shell(white, N * PIXEL / d), N, 3) for d in (16.0, 8.0))
    x = (torch.arange(N) - N // 2).float()
    share = 0.5 + 0.5 * torch.tanh(x / 2.0)
    truth = (coarse * (1 - share) + fine * share) * soft_sphere(N, 22, 3)
    halves = [truth + noise * torch.randn((N,) * 3, generator=generator) for _ in range(2)]
    return truth, halves, soft_sphere(N, 23, 4)


def test_each_side_has_its_own_resolution() -> None:
    _, halves, mask = two_sided()
    found = local_resolution(*halves, mask, PIXEL)
    x = (found.points[:, 2] - N // 2) * PIXEL
    left, right = found.values[x < -25], found.values[x > 25]
    # A window's edges blur its spectrum: the FSC passes 0.143 a little beyond the signal's end.
    assert 10.5 < float(left.median()) < 16.0
    assert 5.8 < float(right.median()) < 8.5
    assert float(left.min()) > float(right.max())


def test_the_map_passes_through_the_points_and_covers_the_box() -> None:
    _, halves, mask = two_sided()
    found = local_resolution(*halves, mask, PIXEL)
    at = found.volume[tuple(found.points.T)].double()
    torch.testing.assert_close(at, found.values, rtol=0.06, atol=0.0)
    assert bool(torch.isfinite(found.volume).all())
    assert float(found.volume.min()) >= float(found.values.min()) - 1e-3
    assert float(found.volume.max()) <= float(found.values.max()) + 1e-3


def test_noise_alone_has_the_coarsest_resolution() -> None:
    generator = torch.Generator().manual_seed(1)
    halves = [torch.randn((N,) * 3, generator=generator) for _ in range(2)]
    found = local_resolution(*halves, soft_sphere(N, 20, 3), PIXEL, coarsest=60.0)
    assert float(found.values.median()) > 30.0
    assert float(found.values.max()) <= 60.0


def test_a_coarser_grid_finds_the_same() -> None:
    _, halves, mask = two_sided()
    full = local_resolution(*halves, mask, PIXEL)
    fast = local_resolution(*halves, mask, PIXEL, finest=6.0)
    assert float(((fast.values - full.values).abs() / full.values).median()) < 0.03


def test_points_lie_in_the_mask_and_there_is_always_one() -> None:
    mask = soft_sphere(N, 10, 2)
    points = sampling_points(mask, 6.0)
    assert len(points) > 10
    assert bool((mask[tuple(points.T)] > 0.5).all())
    corner = torch.zeros((N,) * 3)
    corner[3, 5, 7] = 1.0
    assert sampling_points(corner, 6.0).tolist() == [[3, 5, 7]]


def test_beside_relion(tmp_path: Path) -> None:
    if shutil.which("relion_postprocess") is None:
        pytest.skip("relion_postprocess is not installed")
    truth, halves, mask = two_sided()
    for i, half in enumerate(halves):
        write_volume(tmp_path / f"run_half{i + 1}_class001_unfil.mrc", half.numpy(), PIXEL)
    write_volume(tmp_path / "mask.mrc", mask.numpy(), PIXEL)
    # It ends with an error where it finds no printer of histograms, after all maps are written.
    subprocess.run(
        ["relion_postprocess", "--i", "run_half1_class001_unfil.mrc", "--mask", "mask.mrc", "--locres", "--o", "relion",
         "--angpix", str(PIXEL), "--adhoc_bfac", "0"],
        cwd=tmp_path, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    theirs = torch.from_numpy(read_volume(tmp_path / "relion_locres.mrc")[0])
    ours = local_resolution(*halves, mask, PIXEL).volume
    inside = mask > 0.9
    difference = (ours - theirs)[inside]
    assert float(difference.abs().median()) < 0.5
    assert abs(float(difference.mean())) < 0.5
    assert float(torch.corrcoef(torch.stack((ours[inside], theirs[inside])))[0, 1]) > 0.9
    filtered = filter_locally(0.5 * (halves[0] + halves[1]), ours, PIXEL)
    known = to_fourier(truth * mask, 3)
    mine = fsc(to_fourier(filtered * mask, 3), known)
    relions = fsc(
        to_fourier(torch.from_numpy(read_volume(tmp_path / "relion_locres_filtered.mrc")[0]) * mask, 3), known
    )
    assert float((mine - relions)[:18].min()) > -0.03


def test_a_filter_of_one_resolution_is_a_low_pass() -> None:
    volume = torch.randn((32,) * 3, generator=torch.Generator().manual_seed(2))
    out = filter_locally(volume, torch.full((32,) * 3, 8.0), 2.0)
    torch.testing.assert_close(out, to_real(low_pass_shell(to_fourier(volume, 3), 8.0), 32, 3), atol=1e-5, rtol=1e-4)


def test_the_filter_follows_the_map() -> None:
    volume = torch.randn((32,) * 3, generator=torch.Generator().manual_seed(3))
    resolution = torch.full((32,) * 3, 8.0)
    resolution[..., 16:] = 16.0
    out = filter_locally(volume, resolution, 2.0)
    fine, coarse = (to_real(low_pass_shell(to_fourier(volume, 3), 64.0 / d), 32, 3) for d in (8.0, 16.0))
    torch.testing.assert_close(out[..., :16], fine[..., :16], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out[..., 16:], coarse[..., 16:], atol=1e-4, rtol=1e-3)
