"""Filters pass what they should, by the definition of their cut-offs."""

import math

import pytest
import torch

from cryoseg_dist.errors import SettingsError
from cryoseg_dist.kernels.filters import filtered, transmission


def wave(period_px: float, n: int = 256) -> torch.Tensor:
    return torch.cos(2 * math.pi * torch.arange(n, dtype=torch.float64) / period_px)[None, :].expand(n, n)


def amplitude(image: torch.Tensor) -> float:
    inner = image[64:192, 64:192]
    return float(inner.std() * math.sqrt(2))


@pytest.mark.parametrize("edge", ["butterworth", "cosine"])
def test_low_pass_keeps_coarse_and_removes_fine(edge):
    assert amplitude(filtered(wave(32), 2.0, low_pass=20.0, edge=edge)) == pytest.approx(1.0, abs=0.03)
    assert amplitude(filtered(wave(4), 2.0, low_pass=20.0, edge=edge)) < 0.03


@pytest.mark.parametrize("edge", ["butterworth", "cosine"])
def test_high_pass_is_the_opposite(edge):
    assert amplitude(filtered(wave(4), 2.0, high_pass=20.0, edge=edge)) == pytest.approx(1.0, abs=0.03)
    assert amplitude(filtered(wave(32), 2.0, high_pass=20.0, edge=edge)) < 0.03


def test_band_pass():
    kwargs = {"low_pass": 10.0, "high_pass": 40.0}
    assert amplitude(filtered(wave(8), 2.0, **kwargs)) == pytest.approx(1.0, abs=0.05)
    assert amplitude(filtered(wave(64), 2.0, **kwargs)) < 0.05
    assert amplitude(filtered(wave(3), 2.0, **kwargs)) < 0.05


def test_cut_offs_are_where_they_are_defined():
    # On 64 px of 1 A, sample 8 is 8 A.
    for keyword in ("low_pass", "high_pass"):
        assert float(transmission((64, 64), 1.0, **{keyword: 8.0}, edge="butterworth")[0, 8]) == pytest.approx(2**-0.5)
        assert float(transmission((64, 64), 1.0, **{keyword: 8.0}, edge="cosine")[0, 8]) == pytest.approx(0.5)


@pytest.mark.parametrize("edge", ["butterworth", "cosine"])
def test_low_and_high_pass_share_the_power_or_the_amplitude(edge):
    low = transmission((32, 48), 1.5, low_pass=9.0, edge=edge)
    high = transmission((32, 48), 1.5, high_pass=9.0, edge=edge)
    total = low**2 + high**2 if edge == "butterworth" else low + high
    torch.testing.assert_close(total, torch.ones_like(total))
    assert float(low[0, 0]) == 1.0
    assert float(high[0, 0]) == 0.0


def test_volumes_of_any_shape_and_half_precision():
    data = torch.randn(9, 12, 15, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    out = filtered(data, 1.0, low_pass=4.0, ndim=3)
    assert out.shape == data.shape
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()


def test_high_order_does_not_overflow():
    assert torch.isfinite(
        transmission((512, 512), 1.0, low_pass=500.0, high_pass=900.0, edge="butterworth", order=16)
    ).all()
    far = transmission((512, 512), 1.0, high_pass=900.0, edge="butterworth", order=16)
    assert float(far[0, 256]) == 1.0


def test_mirrored_borders_keep_a_ramp():
    ramp = torch.linspace(0, 1, 128)[None, :].expand(128, 128)
    padded = filtered(ramp, 1.0, low_pass=10.0)
    wrapped = filtered(ramp, 1.0, low_pass=10.0, pad=False)
    assert (padded - ramp).abs().max() < 0.05 < (wrapped - ramp).abs().max()


def test_every_impossible_setting_is_named():
    with pytest.raises(SettingsError) as caught:
        transmission((8, 8), 1.0, low_pass=-1.0, high_pass=0.0, order=0)
    assert len(caught.value.faults) == 3
    with pytest.raises(SettingsError, match="low_pass"):
        transmission((8, 8), 1.0, low_pass=40.0, high_pass=10.0)
