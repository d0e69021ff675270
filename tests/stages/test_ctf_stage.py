"""The CTF stage from pixels to a record, and its verdicts."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.ctf import aberration_phase
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.stages.ctf import PICTURE, CtfSettings, CtfStage, array_specs, plan

OPTICS = Optics(1.2, 300.0, 2.7, 0.1)


def micrograph(
    shape=(1400, 1700), defocus=(15000.0, 14500.0, 30.0), *, drift=0.0, b_factor=60.0, signal=1.0, seed=0
) -> np.ndarray:
    """White specimen seen through a transfer function, with noise; ``drift`` in A along x."""
    generator = torch.Generator().manual_seed(seed)
    fy, fx = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])[None, :]
    k = torch.sqrt(fx * fx + fy * fy) / OPTICS.pixel_size
    u, v, angle = (torch.tensor(value) for value in defocus)
    chi = aberration_phase(
        k,
        torch.atan2(fy, fx),
        u,
        v,
        angle,
        torch.tensor(0.0),
        voltage=OPTICS.voltage,
        spherical_aberration=OPTICS.spherical_aberration,
        amplitude_contrast=OPTICS.amplitude_contrast,
    )
    transfer = torch.sin(chi) * torch.exp(-0.25 * b_factor * k * k) * torch.sinc(drift * fx / OPTICS.pixel_size)
    specimen = torch.fft.rfft2(torch.randn(shape, generator=generator))
    image = torch.fft.irfft2(specimen * transfer, s=shape)
    return (100.0 + signal * image + 0.5 * torch.randn(shape, generator=generator)).numpy()


def run(image: np.ndarray, settings: CtfSettings | None = None, optics: Optics = OPTICS):
    stage = CtfStage(optics, settings or CtfSettings())
    unit = plan("ctf-1", "ingest-1", [7], image.shape)[0]
    before = image.copy()
    result = stage.compute(unit, {"image": image[None]}, stage.setup({}, "cpu"))
    np.testing.assert_array_equal(image, before)
    assert result.arrays["spectrum"].shape == unit.writes["spectrum"].shape == (1, PICTURE, PICTURE)
    assert result.arrays["spectrum"].dtype == np.float16
    json.dumps(result.record, allow_nan=False)
    return result.record


def test_good_micrograph_is_accepted():
    record = run(micrograph())
    assert record["accepted"] is True
    assert record["reasons"] == []
    assert 0.5 * (record["defocus_u"] + record["defocus_v"]) == pytest.approx(14750.0, abs=50.0)
    assert record["ctf_astigmatism"] == pytest.approx(record["defocus_u"] - record["defocus_v"])
    assert record["ctf_astigmatism"] == pytest.approx(500.0, abs=150.0)
    assert record["ctf_max_resolution"] < 6.0
    lengths = {len(record[f"curve_{name}"]) for name in ("frequency", "spectrum", "model", "agreement")}
    assert len(lengths) == 1
    assert lengths.pop() <= 256


def test_noise_is_rejected_not_refused():
    record = run(np.random.default_rng(0).normal(size=(1200, 1300)).astype(np.float32))
    assert record["accepted"] is False
    assert "no Thon rings" in record["reasons"][0]


def test_smooth_structure_without_rings_is_rejected():
    # A Gaussian blur, as denoising leaves: a strongly shaped spectrum without any ring.
    generator = torch.Generator().manual_seed(3)
    shape = (1500, 1500)
    fy, fx = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])[None, :]
    shape_of_spectrum = torch.exp(-(((fx * fx + fy * fy) / 0.15**2) ** 2)) + 0.02
    image = torch.fft.irfft2(torch.fft.rfft2(torch.randn(shape, generator=generator)) * shape_of_spectrum, s=shape)
    record = run(image.numpy())
    assert record["accepted"] is False
    assert "no Thon rings" in record["reasons"][0]


def test_drift_is_named_with_its_direction():
    record = run(micrograph(drift=9.0))
    assert record["accepted"] is False
    assert any(reason.startswith("drift") for reason in record["reasons"])
    assert min(record["drift_angle"], 180.0 - record["drift_angle"]) < 15.0
    still = run(micrograph())
    assert still["drift_ratio"] > 0.7


def test_astigmatism_is_judged_by_the_setting():
    image = micrograph(defocus=(17000.0, 13000.0, 100.0))
    assert any("astigmatism" in reason for reason in run(image)["reasons"])
    assert run(image, CtfSettings(max_astigmatism=5000.0))["accepted"] is True


def test_lost_high_resolution_is_named():
    record = run(micrograph(b_factor=900.0, defocus=(25000.0, 25000.0, 0.0)), CtfSettings(max_resolution=6.0))
    assert any("high-resolution" in reason or "Thon" in reason for reason in record["reasons"])


def test_crystalline_ice_shows_as_spots():
    image = micrograph()
    y, x = np.indices(image.shape)
    spot = 0.12 * np.cos(2 * math.pi * OPTICS.pixel_size / 3.67 * (0.8 * x + 0.6 * y))
    record = run((image + spot).astype(np.float32))
    assert any("crystalline ice" in reason for reason in record["reasons"])


def test_ice_is_not_judged_beyond_nyquist():
    coarse = Optics(2.0, 300.0, 2.7, 0.1)
    record = run(np.random.default_rng(1).normal(size=(700, 700)).astype(np.float32), optics=coarse)
    assert record["ice_ring"] is None


def test_near_focus_and_small_micrographs():
    record = run(micrograph(defocus=(3600.0, 3400.0, 10.0), signal=2.0))
    assert 0.5 * (record["defocus_u"] + record["defocus_v"]) == pytest.approx(3500.0, abs=100.0)
    run(micrograph(shape=(300, 420)))


def test_plans_cover_disjoint_whole_shards():
    units = plan("ctf-1", "ingest-1", [0, 2, 5], (1200, 1240))
    (spec,) = array_specs("ctf-1", 6)
    starts = [unit.writes["spectrum"].start for unit in units]
    assert starts == [(0, 0, 0), (2, 0, 0), (5, 0, 0)]
    assert all(unit.writes["spectrum"].shape == spec.shards for unit in units)
    assert all(unit.writes["spectrum"].array == spec.name for unit in units)


def test_constant_micrograph_is_bad_input():
    with pytest.raises(BadInputError):
        run(np.full((600, 600), 3.0, dtype=np.float32))


@pytest.mark.parametrize("faulty", [{"low_resolution": 4.0}, {"defocus_max": 1000.0}, {"tile_size": 511}])
def test_impossible_settings_are_refused(faulty):
    with pytest.raises(ValidationError):
        CtfSettings(**faulty)
