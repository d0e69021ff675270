"""Fourier shell correlation against what it must be for known signal and noise."""

import pytest
import torch

from cryoseg_dist.kernels.fourier import resize_spectrum, shells, to_fourier, to_real
from cryoseg_dist.kernels.fsc import corrected_fsc, crossing, fsc, randomise_phases, resolution
from cryoseg_dist.kernels.mask import soft_sphere, solvent_mask
from cryoseg_dist.kernels.sharpen import apply_b_factor, guinier, weight_by_fsc


def volume(n: int, seed: int) -> torch.Tensor:
    return torch.randn((n, n, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [16, 17])
def test_fsc_of_identical_and_scaled_maps_is_one(n: int) -> None:
    a = to_fourier(volume(n, 0), 3)
    torch.testing.assert_close(fsc(a, 3.0 * a), torch.ones(n // 2 + 1, dtype=torch.float64))
    torch.testing.assert_close(fsc(a, -a), -torch.ones(n // 2 + 1, dtype=torch.float64))


def test_fsc_equals_snr_over_snr_plus_one() -> None:
    n = 48
    signal = volume(n, 1)
    halves = [to_fourier(signal + volume(n, seed), 3) for seed in (2, 3)]
    curve = fsc(*halves)
    assert abs(float(curve[10:].mean()) - 0.5) < 0.02


def test_fsc_matches_a_plain_sum_over_the_full_transform() -> None:
    n = 12
    a, b = volume(n, 4).double(), volume(n, 5).double()
    fa, fb = torch.fft.fftn(a), torch.fft.fftn(b)
    f = torch.fft.fftfreq(n, dtype=torch.float64) * n
    r = torch.round((f[:, None, None] ** 2 + f[None, :, None] ** 2 + f[None, None, :] ** 2).sqrt())
    curve = fsc(to_fourier(a, 3), to_fourier(b, 3))
    for shell in range(n // 2 + 1):
        s = r == shell
        expected = (fa[s] * fb[s].conj()).sum().real / (
            (fa[s].abs().square().sum() * fb[s].abs().square().sum()).sqrt()
        )
        assert abs(float(curve[shell] - expected)) < 1e-10


def test_crossing_interpolates_and_ignores_shell_zero() -> None:
    curve = torch.tensor([0.0, 1.0, 0.8, 0.2, 0.0])
    assert crossing(curve, 0.5) == pytest.approx(2.5)
    assert crossing(torch.ones(9), 0.143) == 8.0
    assert resolution(curve, 8, 2.0, 0.5) == pytest.approx(16 / 2.5)


def test_randomised_phases_keep_amplitudes_and_low_shells() -> None:
    n = 24
    a = volume(n, 6)
    random = randomise_phases(a, 5, torch.Generator().manual_seed(0))
    fa, fr = to_fourier(a, 3), to_fourier(random, 3)
    index = shells(n, 3)
    torch.testing.assert_close(fa[index < 5], fr[index < 5], atol=1e-3, rtol=1e-4)
    curve = fsc(fa, fr)
    assert float(curve[7:].abs().max()) < 0.3
    inner = (index > 5) & (index < 11)
    torch.testing.assert_close(fa.abs()[inner], fr.abs()[inner], atol=2e-3, rtol=1e-3)


def test_corrected_fsc_removes_the_correlation_of_a_tight_mask() -> None:
    n = 48
    mask = soft_sphere(n, 9, 3)
    signal = resize_spectrum(resize_spectrum(to_fourier(volume(n, 7), 3), n, 14, 3), 14, n, 3)
    signal_map = to_real(signal, n, 3) * mask
    halves = [signal_map * 12 + volume(n, seed) for seed in (8, 9)]
    unmasked = fsc(*(to_fourier(h, 3) for h in halves))
    masked = fsc(*(to_fourier(h * mask, 3) for h in halves))
    start = int(crossing(unmasked, 0.8)) + 1
    generators = (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    random = fsc(
        *(to_fourier(randomise_phases(h, start, g) * mask, 3) for h, g in zip(halves, generators, strict=True))
    )
    true = corrected_fsc(masked, random, start)
    assert float(true[14:].abs().mean()) < 0.2
    assert float(true[3]) > 0.9


def test_solvent_mask_covers_the_molecule_and_not_the_specks() -> None:
    n = 32
    ball = soft_sphere(n, 6, 0)
    noisy = ball.clone()
    noisy[2, 2, 2] = 5.0
    mask = solvent_mask(noisy, 0.5, 2, 3)
    assert float(mask[ball > 0].min()) == 1.0
    assert float(mask[2, 2, 2]) == 0.0
    assert 0.0 < float(mask[n // 2, n // 2, n // 2 + 9]) < 1.0
    assert float(solvent_mask(noisy, 9.0, 2, 3).sum()) == 0.0


def test_guinier_finds_a_planted_b_factor_and_sharpening_undoes_it() -> None:
    n, pixel_size = 64, 1.5
    flat = to_fourier(volume(n, 10), 3)
    faded = apply_b_factor(flat, pixel_size, 120.0)
    fit = guinier(faded, pixel_size, 10.0, 3.2)
    assert fit is not None
    assert fit.b_factor == pytest.approx(-120.0, abs=6.0)
    torch.testing.assert_close(apply_b_factor(faded, pixel_size, -120.0), flat, rtol=1e-3, atol=1e-2)
    assert guinier(faded, pixel_size, 10.0, 9.9) is None


def test_fsc_weight_is_zero_beyond_the_signal() -> None:
    n = 16
    spectrum = torch.ones((n, n, n // 2 + 1), dtype=torch.complex64)
    curve = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 0.3, 0.0, 0.0, 0.0], dtype=torch.float64)
    out = weight_by_fsc(spectrum, curve).real
    index = shells(n, 3)
    assert float(out[index == 1].min()) == 1.0
    assert float(out[index == 3][0]) == pytest.approx((2 * 0.5 / 1.5) ** 0.5)
    assert float(out[index >= 4].abs().max()) == 0.0
