"""Half maps with known signal and noise through post-processing."""

import pytest
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.sharpen import apply_b_factor, low_pass_shell
from cryoseg_dist.stages.postprocess import PostprocessSettings, postprocess

N, PIXEL = 48, 2.0


def halves(noise: float, cutoff: float = 12.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A blobby molecule in a ball, faded by a B-factor, band-limited to a shell, plus independent noise."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randn((N, N, N), generator=generator).abs() * soft_sphere(N, 12, 2)
    spectrum = low_pass_shell(apply_b_factor(to_fourier(blobs, 3), PIXEL, 100.0), cutoff)
    truth = to_real(spectrum, N, 3)
    return truth, *(truth + noise * torch.randn((N, N, N), generator=generator) for _ in range(2))


def test_resolution_ends_where_the_signal_ends() -> None:
    _, half1, half2 = halves(noise=0.005)
    result = postprocess(half1, half2, PIXEL, PostprocessSettings(), diameter=60.0)
    assert result.resolution == pytest.approx(N * PIXEL / 12.0, rel=0.2)
    assert result.resolution_half >= result.resolution
    assert 0.02 < result.mask_fraction < 0.5
    assert set(result.curves) == {"unmasked", "masked", "randomised", "corrected"}


def test_more_noise_never_gives_a_better_resolution() -> None:
    limits = []
    for noise in (0.005, 0.05, 0.3):
        _, half1, half2 = halves(noise)
        limits.append(postprocess(half1, half2, PIXEL, PostprocessSettings(), diameter=60.0).resolution)
    assert limits == sorted(limits)
    assert limits[2] > limits[0]


def test_a_given_b_factor_and_mask_are_used() -> None:
    _, half1, half2 = halves(noise=0.005)
    mask = soft_sphere(N, 15, 4)
    result = postprocess(half1, half2, PIXEL, PostprocessSettings(b_factor=-77.0), mask=mask)
    assert result.b_factor == -77.0
    assert torch.equal(result.mask, mask)
    flat = postprocess(half1, half2, PIXEL, PostprocessSettings(b_factor=0.0), mask=mask)
    assert float(result.sharpened.std()) > float(flat.sharpened.std())


def test_pure_noise_has_no_resolution() -> None:
    generator = torch.Generator().manual_seed(1)
    half1, half2 = (torch.randn((N, N, N), generator=generator) for _ in range(2))
    result = postprocess(half1, half2, PIXEL, PostprocessSettings(), diameter=60.0)
    assert result.resolution > 20.0


def test_bad_half_maps_are_refused() -> None:
    settings = PostprocessSettings()
    with pytest.raises(BadInputError, match="two cubes of one size"):
        postprocess(torch.zeros(4, 4, 4), torch.zeros(5, 5, 5), 1.0, settings)
    bad = torch.zeros(4, 4, 4)
    bad[0, 0, 0] = torch.nan
    with pytest.raises(BadInputError, match="finite"):
        postprocess(bad, torch.zeros(4, 4, 4), 1.0, settings)
