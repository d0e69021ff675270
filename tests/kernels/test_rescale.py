from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoseg_dist.kernels.fourier import resample
from cryoseg_dist.kernels.rescale import fourier_rescale, rescale_ratio, rescaled_shape


@given(st.floats(0.3, 20.0), st.floats(0.3, 20.0))
@settings(max_examples=200, deadline=None)
def test_ratio_is_near_the_wanted_one_and_cheap_to_transform(pixel: float, target: float) -> None:
    ratio = rescale_ratio(pixel, target)
    assert ratio.denominator <= 160
    if target / pixel <= 25:
        assert abs(float(ratio) * target / pixel - 1) < 0.02


def test_exact_ratio_of_the_apoferritin_micrographs() -> None:
    assert rescale_ratio(1.5, 8.0) == Fraction(3, 16)
    assert rescaled_shape((1200, 1240), Fraction(3, 16)) == (225, 233)


@pytest.mark.parametrize("shape", [(96, 160), (97, 161), (100, 75)])
@pytest.mark.parametrize("ratio", [Fraction(1, 2), Fraction(3, 16), Fraction(2, 5), Fraction(5, 4)])
def test_a_smooth_image_is_resampled_where_it_lies(shape: tuple[int, int], ratio: Fraction) -> None:
    # Blobs far from the borders, wide enough for the coarse grid: the sampled function is known everywhere.
    def blobs(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        centres = [(0.4 * shape[0] + 0.3, 0.5 * shape[1] - 0.2, 1.0), (0.55 * shape[0], 0.42 * shape[1], -0.6)]
        return sum(a * torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 6.0**2)) for cy, cx, a in centres)  # type: ignore[return-value]

    full = blobs(torch.arange(shape[0]).double()[:, None], torch.arange(shape[1]).double()[None])
    got = fourier_rescale(full, ratio)
    assert got.shape == rescaled_shape(shape, ratio)
    step = 1 / float(ratio)
    rows, columns = torch.arange(got.shape[0]).double() * step, torch.arange(got.shape[1]).double() * step
    want = blobs(rows[:, None], columns[None])
    # A sharp crop at the coarse Nyquist frequency leaves what little power the blobs have beyond it.
    inside = slice(4, -4)
    assert (got - want)[inside, inside].abs().max() < (0.03 if ratio < Fraction(1, 4) else 2e-3)


def test_a_band_limited_wave_is_exact() -> None:
    y, x = torch.arange(120).double()[:, None], torch.arange(90).double()[None]
    wave = torch.cos(2 * torch.pi * (5 * y / 120 + 3 * x / 90) + 0.4)
    got = fourier_rescale(wave, Fraction(1, 3))
    torch.testing.assert_close(got, wave[::3, ::3], atol=1e-12, rtol=0)


def test_square_images_agree_with_centred_resampling() -> None:
    images = torch.randn((2, 64, 64), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = fourier_rescale(images, Fraction(1, 2))
    # 64 // 2 is a multiple of the step, so both keep the same samples.
    torch.testing.assert_close(got, resample(images, 32), atol=1e-10, rtol=0)


def test_arguments_are_unchanged_and_one_is_identity() -> None:
    image = torch.randn((30, 41), generator=torch.Generator().manual_seed(1))
    before = image.clone()
    assert torch.equal(fourier_rescale(image, Fraction(1)), image)
    fourier_rescale(image, Fraction(1, 4))
    assert torch.equal(image, before)
