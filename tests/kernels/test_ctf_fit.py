"""Defocus estimation on real spectra with two third-party fits each, real micrographs and simulated ones."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.ctf import ctf as transfer_function
from cryoseg_dist.kernels.ctf_fit import CtfParameters, CtfSearch, fit_ctf
from cryoseg_dist.kernels.fit_resolution import (
    equiphase_average,
    equiphase_frequency,
    figure_of_merit,
    fit_resolution,
    ring_curves,
    thon_ring_picture,
)
from cryoseg_dist.kernels.spectrum import from_centred, mean_amplitudes, tile_extent
from cryoseg_dist.schema.optics import Optics

BGAL = Optics(pixel_size=1.3995524644851685, voltage=200.0, spherical_aberration=1.4, amplitude_contrast=0.1)
KRIOS = Optics(pixel_size=1.4, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)

# Mean defocus in A of May08_<name>.mrc, from the README beside the data.
APOFERRITIN = {"03.05.02": 19450.0, "03.15.02": 22450.0, "07.30.46": 15550.0}


def angle_between(a: float, b: float) -> float:
    """Degrees between two axes."""
    return abs((a - b + 90.0) % 180.0 - 90.0)


def simulated(optics: Optics, u: float, v: float, angle: float, phase: float = 0.0, noise: float = 1.0, seed: int = 0):
    """Half spectrum of amplitudes with Thon rings, a falling background and speckle of a hundred tiles."""
    size = 512
    one = torch.ones(1)
    rings = transfer_function(
        size,
        optics.pixel_size,
        u * one,
        v * one,
        angle * one,
        phase * one,
        60.0 * one,
        voltage=optics.voltage,
        spherical_aberration=optics.spherical_aberration,
        amplitude_contrast=optics.amplitude_contrast,
    )[0]
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    k = torch.sqrt(fx * fx + fy * fy) / optics.pixel_size
    mean = torch.sqrt(rings**2 + 1.0) * (0.3 + torch.exp(-k / 0.05))
    generator = torch.Generator().manual_seed(seed)
    return mean * (1.0 + 0.05 * noise * torch.randn(mean.shape, generator=generator)).clamp(min=0.1)


def shared_spectra(folder: Path):
    with (folder / "bgal_empiar10204" / "ps_ctf_truth_shared.csv").open() as stream:
        for row in csv.DictReader(stream):
            path = folder / "bgal_empiar10204" / "power_spectra" / f"{row['micrograph']}_frameImage_PS.mrc"
            yield row, from_centred(torch.from_numpy(mrcfile.read(path).copy()))


def test_real_spectra_agree_with_both_third_party_fits(shared_data):
    rows = list(shared_spectra(shared_data))
    assert len(rows) == 12
    for row, amplitudes in rows:
        found = fit_ctf(amplitudes, replace(BGAL, pixel_size=float(row["ps_apix"])), CtfSearch())
        for tool in ("relion31", "emtestdata"):
            u, v = float(row[f"{tool}_dU"]), float(row[f"{tool}_dV"])
            assert abs(found.mean_defocus - 0.5 * (u + v)) < 30.0, row["micrograph"]
            assert abs(found.astigmatism - (u - v)) < 60.0, row["micrograph"]
            assert angle_between(found.defocus_angle, float(row[f"{tool}_ang"])) < 5.0, row["micrograph"]
        # The rings end where the other fit says, to within a fifth.
        limit = fit_resolution(ring_curves(amplitudes, found, BGAL))
        assert limit == pytest.approx(float(row["relion31_maxres"]), rel=0.2)


def test_failed_third_party_fit_is_told_from_a_good_one(shared_data):
    row, amplitudes = next(iter(shared_spectra(shared_data)))
    u, v, angle = (float(row[f"WRONG_sppractice_{name}"]) for name in ("dU", "dV", "ang"))
    wrong = CtfParameters(u, v, angle, 0.0, 0.0)
    right = fit_ctf(amplitudes, BGAL, CtfSearch())
    assert figure_of_merit(amplitudes, right, BGAL, 30.0, 5.0) > 0.15
    assert figure_of_merit(amplitudes, wrong, BGAL, 30.0, 5.0) < 0.03
    assert fit_resolution(ring_curves(amplitudes, right, BGAL)) < 6.0
    bad = fit_resolution(ring_curves(amplitudes, wrong, BGAL))
    assert bad is None or bad > 10.0


@pytest.mark.parametrize("name", sorted(APOFERRITIN))
def test_real_micrographs(shared_data, name):
    path = shared_data / "apoferritin_empiar10146" / "micrographs" / f"May08_{name}.mrc"
    image = torch.from_numpy(mrcfile.read(path).astype(np.float32))
    found = fit_ctf(mean_amplitudes(image, 512, 512), Optics(1.5, 300.0, 2.7, 0.07), CtfSearch())
    assert abs(found.mean_defocus - APOFERRITIN[name]) < 300.0
    assert found.significance > 15.0


@pytest.mark.parametrize(
    ("u", "v", "angle"),
    [(15000.0, 15000.0, 0.0), (16000.0, 15500.0, 30.0), (20000.0, 15000.0, 135.0), (24000.0, 16000.0, 95.0)],
)
def test_astigmatism_up_to_thousands_of_angstrom(u, v, angle):
    found = fit_ctf(simulated(KRIOS, u, v, angle), KRIOS, CtfSearch(astigmatism_max=10000.0))
    assert found.defocus_u >= found.defocus_v
    assert 0.0 <= found.defocus_angle < 180.0
    assert found.mean_defocus == pytest.approx(0.5 * (u + v), abs=60.0)
    assert found.astigmatism == pytest.approx(u - v, abs=150.0)
    if u > v:
        assert angle_between(found.defocus_angle, angle) < 45.0 * 200.0 / (u - v) + 0.5


@pytest.mark.parametrize("defocus", [3000.0, 6000.0, 12000.0, 30000.0, 55000.0])
def test_range_of_defocus(defocus):
    search = CtfSearch(high_resolution=3.75 if defocus < 5000 else 5.0)
    found = fit_ctf(simulated(KRIOS, defocus + 150.0, defocus - 150.0, 60.0), KRIOS, search)
    assert found.mean_defocus == pytest.approx(defocus, abs=60.0)


def test_coarse_pixels():
    optics = Optics(3.54, 200.0, 1.4, 0.1)
    found = fit_ctf(simulated(optics, 21000.0, 20000.0, 10.0), optics, CtfSearch())
    assert found.mean_defocus == pytest.approx(20500.0, abs=60.0)
    assert found.astigmatism == pytest.approx(1000.0, abs=150.0)


@pytest.mark.parametrize("phase", [30.0, 90.0, 150.0])
def test_phase_shift(phase):
    amplitudes = simulated(KRIOS, 9000.0, 8600.0, 20.0, phase)
    free = fit_ctf(amplitudes, KRIOS, CtfSearch(phase_shift=True))
    assert free.phase_shift == pytest.approx(phase, abs=8.0)
    assert free.mean_defocus == pytest.approx(8800.0, abs=150.0)
    known = fit_ctf(amplitudes, KRIOS, CtfSearch(fixed_phase_shift=phase))
    assert known.mean_defocus == pytest.approx(8800.0, abs=50.0)
    assert known.phase_shift == phase


def test_noise_has_no_significant_fit():
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        amplitudes = mean_amplitudes(torch.randn(1240, 1200, generator=generator), 512, 512)
        assert fit_ctf(amplitudes, KRIOS, CtfSearch()).significance < 8.0


def test_too_coarse_a_spectrum_is_refused():
    with pytest.raises(BadInputError, match="rings"):
        fit_ctf(torch.rand(32, 17) + 1.0, Optics(4.0, 300.0, 2.7, 0.1), CtfSearch())


def test_equiphase_frequency_holds_the_phase():
    fit = CtfParameters(18000.0, 14000.0, 25.0, 0.0, 0.0)
    k = np.linspace(0.03, 0.3, 40)
    azimuth = np.linspace(-1.5, 1.5, 40)
    from cryoseg_dist.kernels.ctf_fit import chi

    mean = CtfParameters(16000.0, 16000.0, 0.0, 0.0, 0.0)
    moved = equiphase_frequency(k, azimuth, fit, KRIOS)
    np.testing.assert_allclose(chi(k, azimuth, fit, KRIOS), chi(moved, np.zeros(1), mean, KRIOS), rtol=1e-9)


def test_equiphase_average_keeps_rings_that_a_plain_average_blurs():
    u, v, angle = 20000.0, 15000.0, 50.0
    amplitudes = simulated(KRIOS, u, v, angle, noise=0.2)
    fit = CtfParameters(u, v, angle, 0.0, 0.0)
    blind = CtfParameters(0.5 * (u + v), 0.5 * (u + v), 0.0, 0.0, 0.0)
    band = slice(80, 140)

    def contrast(curve: np.ndarray) -> float:
        t = np.arange(len(curve[band]))
        return float((curve[band] - np.polyval(np.polyfit(t, curve[band], 4), t)).std())

    assert contrast(equiphase_average(amplitudes, fit, KRIOS)) > 3.0 * contrast(
        equiphase_average(amplitudes, blind, KRIOS)
    )


def test_picture_shows_data_and_fit():
    amplitudes = simulated(KRIOS, 16000.0, 15000.0, 30.0, noise=0.2)
    picture = thon_ring_picture(amplitudes, CtfParameters(16000.0, 15000.0, 30.0, 0.0, 0.0), KRIOS, 6.0)
    assert picture.shape == (256, 256)
    assert picture.dtype == np.float16
    assert 0.0 <= picture.min() <= picture.max() <= 1.0
    # The spectrum is point symmetric, so the two halves agree where the fit does.
    left = picture[1:, 1:128].astype(float)
    right = picture[:0:-1, :128:-1].astype(float)
    rows, columns = np.indices(left.shape)
    ring = np.hypot(rows - 127, columns - 127) > 40
    assert np.corrcoef(left[ring], right[ring])[0, 1] > 0.6


def test_small_pixels_get_larger_tiles():
    assert tile_extent(1.5, 512) == 512
    tile = tile_extent(0.6, 512)
    assert tile % 2 == 0
    assert math.isclose(0.6 * tile / 512, 1.4, rel_tol=0.03)
