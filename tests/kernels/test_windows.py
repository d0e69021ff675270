import numpy as np
import pytest
import torch

from cryoseg_dist.kernels.windows import cut_windows, fast_even_size, normalise_background, remove_dust


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outside(size: int, radius: float) -> torch.Tensor:
    y, x = np.mgrid[:size, :size] - size // 2
    return torch.from_numpy(np.hypot(y, x) > radius)


@pytest.mark.parametrize(("wanted", "size"), [(1.0, 2), (15.2, 16), (97, 100), (127.9, 128), (245, 250), (250.5, 256)])
def test_fast_even_size(wanted: float, size: int) -> None:
    assert fast_even_size(wanted) == size


@pytest.mark.parametrize("size", [8, 9])
def test_window_has_its_centre_pixel_at_half_its_size(size: int) -> None:
    micrograph = torch.arange(40 * 50).reshape(40, 50).float()
    window = cut_windows(micrograph, torch.tensor([23]), torch.tensor([17]), size)[0]
    half = size // 2
    assert torch.equal(window, micrograph[17 - half : 17 - half + size, 23 - half : 23 - half + size])


@pytest.mark.parametrize(("x", "y"), [(2, 3), (49, 39), (0, 20), (25, 39)])
def test_windows_beyond_the_border_repeat_its_pixels(x: int, y: int) -> None:
    micrograph = noise(40, 50)
    wide = torch.from_numpy(np.pad(micrograph.numpy(), 8, mode="edge"))
    window = cut_windows(micrograph, torch.tensor([x]), torch.tensor([y]), 16)[0]
    assert torch.equal(window, wide[y : y + 16, x : x + 16])


def test_background_is_flat_with_mean_zero_and_deviation_one() -> None:
    size, radius = 64, 24.0
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ramps = torch.stack([500.0 + 3.0 * x - 2.0 * y, -20.0 - 0.5 * x + 0.0 * y])
    images = ramps + 7.0 * noise(2, size, size)
    images[:, 20:40, 20:40] += 300.0
    before = images.clone()
    out = normalise_background(images, radius)
    assert torch.equal(images, before)
    ground = out[:, outside(size, radius)].double()
    assert ground.mean(dim=1).abs().max() < 1e-4
    assert (ground.std(dim=1) - 1.0).abs().max() < 1e-4
    for axis in (x, y):
        slope = (ground * (axis[outside(size, radius)] - size // 2)).mean(dim=1)
        assert slope.abs().max() < 1e-3
    # The particle's own contrast is kept in units of the noise.
    assert out[:, 20:40, 20:40].mean() == pytest.approx(300.0 / 7.0, rel=0.05)


def test_a_constant_window_becomes_zero() -> None:
    assert torch.equal(normalise_background(torch.full((1, 16, 16), 9.0), 6.0), torch.zeros(1, 16, 16))


def test_dust_is_replaced_and_the_rest_kept() -> None:
    images = noise(3, 48, 48)
    images[1, 5, 6], images[2, 7, 8] = 90.0, -70.0
    out = remove_dust(images, 5.5, torch.Generator().manual_seed(0))
    changed = out != images
    assert changed.nonzero().tolist() == [[1, 5, 6], [2, 7, 8]]
    assert out[changed].abs().max() < 15.0
