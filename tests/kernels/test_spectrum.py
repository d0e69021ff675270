"""Tile spectra and polar averages."""

import numpy as np
import pytest
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.spectrum import (
    background,
    flattened,
    from_centred,
    mean_amplitudes,
    polar_average,
    tile_starts,
    to_centred,
)


@pytest.mark.parametrize(
    ("extent", "tile", "overlap"), [(1240, 512, 0.5), (4096, 512, 0.5), (512, 512, 0.0), (300, 512, 0.5)]
)
def test_tiles_cover_an_axis(extent, tile, overlap):
    starts = tile_starts(extent, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, extent - tile)
    gaps = np.diff(starts)
    assert (gaps <= tile * (1 - overlap) + 1).all()


def test_white_noise_is_flat_and_arguments_stay():
    image = torch.randn(700, 900, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    amplitudes = mean_amplitudes(image, 128, 128)
    assert torch.equal(image, before)
    polar = polar_average(amplitudes, 1.0, 30.0, 2.2)
    rings = (polar.values * polar.counts).sum(0) / polar.counts.sum(0)
    assert np.std(rings) / np.mean(rings) < 0.02


def test_a_wave_shows_at_its_frequency():
    x = torch.arange(600, dtype=torch.float32)
    image = torch.cos(2 * torch.pi * 0.125 * x)[None, :].expand(500, 600)
    amplitudes = mean_amplitudes(image, 128, 128)
    row, column = np.unravel_index(int(amplitudes.argmax()), amplitudes.shape)
    assert (row, column) == (0, 16)


def test_cropped_spectrum_of_larger_tiles_has_the_same_frequencies():
    y = torch.arange(900, dtype=torch.float32)
    image = torch.cos(2 * torch.pi * 0.125 * y)[:, None].expand(900, 800)
    amplitudes = mean_amplitudes(image, 256, 128)
    assert amplitudes.shape == (128, 65)
    row, column = np.unravel_index(int(amplitudes.argmax()), amplitudes.shape)
    assert column == 0
    assert row in (32, 96)


@pytest.mark.parametrize("size", [8, 9])
def test_centred_and_half_spectra_are_the_same(size):
    full = torch.fft.fftshift(torch.fft.fft2(torch.randn(size, size, generator=torch.Generator().manual_seed(1))).abs())
    torch.testing.assert_close(to_centred(from_centred(full), size), full)


def test_polar_sectors_follow_the_azimuth():
    size = 128
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    azimuth = torch.atan2(fy, fx)
    polar = polar_average(2.0 + torch.cos(2 * (azimuth - 0.7)), 1.0, 20.0, 2.2, n_sectors=36)
    expected = 2.0 + np.cos(2 * (polar.azimuth - 0.7))
    full = polar.counts > 3
    assert np.abs(polar.values - expected[:, None])[full].max() < 0.15


def test_background_of_a_smooth_spectrum_leaves_nothing():
    size = 256
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    k = torch.sqrt(fx * fx + fy * fy)
    polar = polar_average(0.2 + torch.exp(-k / 0.08), 1.0, 30.0, 2.2)
    assert background(polar).shape == polar.frequency.shape
    assert np.abs(flattened(polar).values).max() < 0.08


@pytest.mark.parametrize("image", [torch.zeros(64, 64), torch.full((64, 64), float("nan")), torch.rand(3, 64, 64)])
def test_useless_images_are_refused(image):
    with pytest.raises(BadInputError, match="micrograph"):
        mean_amplitudes(image, 64, 64)
