"""Weights drawn towards their shell's mean: even ones stay, poor ones are damped."""

import torch

from cryoseg_dist.kernels.accumulator import enforce_friedel
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.slices import prepare_volume
from cryoseg_dist.simulate.specimen import made_up

N = 32


def accumulator(weight: torch.Tensor, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums that hold a map seen with these weights, and the map."""
    volume = made_up(symmetry="C1", diameter=90.0, size=N, pixel_size=4.0, seed=2).volume
    volume = volume / volume.std()
    spectrum = prepare_volume(volume, 2)
    generator = torch.Generator().manual_seed(0)
    sd = noise * weight.sqrt() * spectrum.abs().square().mean().sqrt()
    both = torch.view_as_real(spectrum) * weight[..., None]
    both = both + sd[..., None] * torch.randn(both.shape, generator=generator)
    total = torch.cat((both, weight[..., None]), dim=-1)
    # Each mate of the plane x = 0 was seen on one side.
    total[:, :, 0] *= 0.5
    return enforce_friedel(total), volume


def even() -> torch.Tensor:
    return torch.ones(2 * N, 2 * N, N + 1)


def test_even_weights_leave_the_map_as_it_is() -> None:
    total, _ = accumulator(even(), 0.0)
    drawn = finish(total, N, shrinkage=torch.linspace(0.0, 50.0, N // 2 + 1))
    torch.testing.assert_close(drawn, finish(total, N), atol=1e-3, rtol=0.0)


def test_poorly_seen_voxels_bring_less_noise() -> None:
    weight = even()
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0.02
    total, volume = accumulator(weight, 0.5)
    truth = to_fourier(volume, 3)
    before, after = (fsc(to_fourier(finish(total, N, shrinkage=s), 3), truth) for s in (None, torch.ones(N // 2 + 1)))
    noisy = slice(4, N // 2 - 1)
    assert bool((after[noisy] > before[noisy]).all())
    assert float((after - before)[noisy].mean()) > 0.05
