"""Conical FSC of maps whose resolution by direction is known."""

import math

import pytest
import torch

from cryoseg_dist.kernels.conical_fsc import conical_fsc, half_sphere_points
from cryoseg_dist.kernels.fourier import frequencies, radius, to_fourier
from cryoseg_dist.kernels.fsc import fsc


def white(n: int, seed: int) -> torch.Tensor:
    return to_fourier(torch.randn((n, n, n), generator=torch.Generator().manual_seed(seed)), 3)


@pytest.mark.parametrize("n", [15, 16])
def test_cones_match_a_plain_sum_over_the_full_transform(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((n, n, n), generator=generator, dtype=torch.float64) for _ in range(2))
    found = conical_fsc(to_fourier(a, 3), to_fourier(b, 3), n_axes=24)
    fa, fb = torch.fft.fftn(a), torch.fft.fftn(b)
    f = torch.fft.fftfreq(n, dtype=torch.float64) * n
    z, y, x = torch.meshgrid(f, f, f, indexing="ij")
    r = (x * x + y * y + z * z).sqrt()
    for axis, curve in zip(found.axes.double(), found.curves, strict=True):
        cosine = (x * axis[0] + y * axis[1] + z * axis[2]).abs() / r.clamp(min=1.0)
        for shell in (6, 7):
            # A Nyquist sample of an even grid stands for both signs of its frequency.
            s = (torch.round(r) == shell) & (cosine >= math.cos(math.radians(20.0)))
            cross = (fa[s] * fb[s].conj()).sum().real
            expected = cross / (fa[s].abs().square().sum() * fb[s].abs().square().sum()).sqrt()
            assert float(curve[shell]) == pytest.approx(float(expected), abs=1e-5)


def test_axes_cover_the_half_sphere_evenly() -> None:
    axes = half_sphere_points(256)
    assert float(axes[:, 2].min()) > 0
    torch.testing.assert_close(axes.T @ axes / 256, torch.eye(3) / 3.0, atol=0.02, rtol=0)


def test_equal_directions_are_called_equal() -> None:
    n = 48
    signal = white(n, 1)
    found = conical_fsc(*(signal + 0.5 * white(n, seed) for seed in (2, 3)))
    whole = fsc(*(signal + 0.5 * white(n, seed) for seed in (2, 3)))
    assert float((found.curves.mean(dim=0) - whole)[8:].abs().max()) < 0.01
    assert float(found.curves[:, 12:].mean()) == pytest.approx(0.8, abs=0.01)
    assert found.ratio > 0.85
    assert found.isotropic


@pytest.mark.parametrize("pole", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8)])
def test_a_direction_that_ends_early_is_found(pole: tuple[float, float, float]) -> None:
    n = 48
    fz, fy, fx = frequencies((n, n, n))
    r = radius((n, n, n))
    along = (fx * pole[0] + fy * pole[1] + fz * pole[2]).abs() / r.clamp(min=1e-9)
    # Signal to half of Nyquist within 35 degrees of the pole, to 0.9 of Nyquist elsewhere.
    limit = torch.where(along > math.cos(math.radians(35.0)), 0.25, 0.45)
    signal = white(n, 4) * (r < limit)
    found = conical_fsc(*(signal + 0.1 * white(n, seed) for seed in (5, 6)))
    assert abs(sum(p * q for p, q in zip(pole, found.worst_axis, strict=True))) > math.cos(math.radians(20.0))
    # Areas grow with the third power of the shell at which the signal ends.
    assert found.ratio == pytest.approx((0.25 / 0.45) ** 3, abs=0.05)
    # Three shells are read together: a sharp end is found a shell or two late.
    assert 12.0 < float(found.shells.min()) < 14.0
    assert not found.isotropic


def test_scatter_of_few_samples_is_not_called_anisotropy() -> None:
    n, ratios = 32, []
    fade = torch.exp(-100.0 * radius((n, n, n)).square())
    for seed in range(12):
        signal = 3.0 * fade * white(n, 10 + 3 * seed)
        found = conical_fsc(*(signal + white(n, 10 + 3 * seed + i) for i in (1, 2)))
        ratios.append(found.ratio)
        assert found.chance < 0.9
    assert sum(r >= found.chance for r in ratios) >= 10


def test_maps_without_agreement_have_no_area() -> None:
    found = conical_fsc(torch.zeros((16, 16, 9), dtype=torch.complex64), white(16, 1), n_axes=32)
    assert found.ratio == 0.0
    assert not found.curves[:, 1:].any()
