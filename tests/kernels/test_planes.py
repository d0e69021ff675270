"""Rotated class averages: sampling, insertion, and the sign of angle and origin."""

import torch

from cryoseg_dist.kernels.fourier import shift, to_fourier, to_real
from cryoseg_dist.kernels.planes import (
    complete_planes,
    empty_planes,
    finish_planes,
    insert_planes,
    plane_weights,
    prepare_planes,
    sample_planes,
)
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels, put_pixels, take_pixels
from cryoseg_dist.kernels.so3 import euler_to_matrix

SIZE = 32


def blobs(*at: tuple[float, float, float]) -> torch.Tensor:
    axis = torch.arange(SIZE, dtype=torch.float32) - SIZE // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return sum((m * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 5.0) for a, b, m in at), torch.zeros(()))


PICTURE = blobs((6.0, 1.0, 1.0), (-2.0, 5.0, 2.0), (-4.0, -5.0, 1.5))


def test_samples_agree_with_slices_of_a_flat_volume() -> None:
    """A class average is the slice at rot = tilt = 0 of a volume, so psi has RELION's sign."""
    volume = torch.zeros((SIZE, SIZE, SIZE))
    volume[SIZE // 2] = PICTURE
    psi = torch.tensor([0.0, 37.0, 120.0, -95.0])
    ky, kx = disc_pixels(SIZE, 10)
    ours = sample_planes(prepare_planes(PICTURE[None]), torch.zeros(4, dtype=torch.int64), psi, ky, kx)
    zero = torch.zeros(4)
    theirs = project_pixels(prepare_volume(volume), euler_to_matrix(zero, zero, psi), ky, kx)
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


def test_a_quarter_turn_is_exact() -> None:
    """At psi = 90 degrees the image's x axis is the average's y axis."""
    ky, kx = disc_pixels(SIZE, 15)
    planes = prepare_planes(PICTURE[None])
    turned = sample_planes(planes, torch.zeros(1, dtype=torch.int64), torch.tensor([90.0]), ky, kx)
    image = to_real(put_pixels(turned, ky, kx, SIZE), SIZE)[0]
    assert torch.allclose(image[16, 16 + 5], PICTURE[16 + 5, 16], atol=0.05)
    assert torch.allclose(image[16 - 6, 16 + 1], PICTURE[16 + 1, 16 + 6], atol=0.05)


def test_insertion_gives_the_average_back() -> None:
    """Rotated, shifted images inserted with their poses give the picture, on its grey scale, in their class."""
    generator = torch.Generator().manual_seed(1)
    n = 200
    psi = 360.0 * torch.rand(n, generator=generator)
    origin = 4.0 * torch.rand((n, 2), generator=generator) - 2.0
    ky, kx = disc_pixels(SIZE, SIZE / 2)
    clean = sample_planes(prepare_planes(PICTURE[None]), torch.zeros(n, dtype=torch.int64), psi, ky, kx)
    images = take_pixels(shift(put_pixels(clean, ky, kx, SIZE), -origin, SIZE), ky, kx)
    total = empty_planes(3, SIZE)
    one = torch.ones(n)
    weights = torch.ones_like(images.real)
    which = torch.full((n,), 1)
    insert_planes(total, images, weights, torch.arange(n), which, psi, origin, one, ky, kx, size=SIZE)
    whole = complete_planes(total)
    out = finish_planes(whole, SIZE)
    assert (out[1] - PICTURE).abs().max() < 0.05 * PICTURE.max()
    assert out[[0, 2]].abs().max() == 0
    # Every pixel of an image counts once.
    assert torch.allclose(plane_weights(whole)[1, 3:13], torch.tensor(float(n)), rtol=0.1)


def test_noise_of_an_average_is_one_over_its_weight() -> None:
    """The variance that the filter counts on."""
    generator = torch.Generator().manual_seed(2)
    n = 300
    ky, kx = disc_pixels(SIZE, SIZE / 2)
    images = take_pixels(to_fourier(torch.randn((n, SIZE, SIZE), generator=generator)), ky, kx)
    variance = 0.5 * SIZE**2
    weights = torch.full_like(images.real, 1.0 / variance)
    psi = 360.0 * torch.rand(n, generator=generator)
    total = empty_planes(1, SIZE)
    shifts = torch.zeros((n, 2))
    insert_planes(
        total,
        images / variance,
        weights,
        torch.arange(n),
        torch.zeros(n, dtype=torch.int64),
        psi,
        shifts,
        torch.ones(n),
        ky,
        kx,
        size=SIZE,
    )
    whole = complete_planes(total)
    spectrum = take_pixels(to_fourier(finish_planes(whole, SIZE)), ky, kx)[0]
    radius = torch.hypot(ky.float(), kx.float())
    ring = (radius > 3) & (radius < 13)
    measured = 0.5 * spectrum[ring].abs().square().mean()
    expected = 1.0 / plane_weights(whole)[0, 4:13].mean()
    assert 0.75 < float(measured / expected) < 1.3
