import pytest
import torch

from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.fourier import shift, to_fourier, to_real
from cryoseg_dist.kernels.mask import distance_from_centre
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.particles import BATCH, particle_batches, simulate_particles
from cryoseg_dist.simulate.specimen import Specimen, made_up

OPTICS = Optics(pixel_size=4.0, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)
SIZE = 40


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return made_up(diameter=110.0, size=SIZE, pixel_size=4.0)


def poses(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    u = 12000.0 + 8000.0 * torch.rand(n, generator=g)
    transfer = torch.stack((u, u - 300.0, 180.0 * torch.rand(n, generator=g), torch.zeros(n)), dim=1)
    return random_rotations(n, g), 5.0 * torch.randn((n, 2), generator=g), transfer


def test_images_do_not_depend_on_how_many_are_made(specimen: Specimen) -> None:
    rotations, origins, transfer = poses(BATCH + 40)
    every = simulate_particles(specimen, rotations, origins, transfer, OPTICS, snr=0.2, seed=3)
    batches = list(particle_batches(specimen, rotations, origins, transfer, OPTICS, snr=0.2, seed=3))
    assert [len(b) for b in batches] == [BATCH, 40]
    assert torch.equal(every, torch.cat(batches))
    assert torch.equal(every, simulate_particles(specimen, rotations, origins, transfer, OPTICS, snr=0.2, seed=3))
    other = simulate_particles(specimen, rotations, origins, transfer, OPTICS, snr=0.2, seed=4)
    assert not torch.equal(every, other)
    assert not torch.equal(every[0] - every[1], every[BATCH] - every[BATCH + 1])


def test_origin_centres_the_particle(specimen: Specimen) -> None:
    rotations, origins, transfer = poses(30)
    moved = simulate_particles(specimen, rotations, origins, transfer, OPTICS)
    centred = simulate_particles(specimen, rotations, torch.zeros_like(origins), transfer, OPTICS)
    back = to_real(shift(to_fourier(moved), origins / 4.0, SIZE), SIZE)
    assert (back - centred).abs().max() < 0.02 * centred.abs().max()
    assert (moved - centred).abs().max() > 0.5 * centred.abs().max()


def test_protein_is_white_and_seen_through_its_ctf(specimen: Specimen) -> None:
    rotations, origins, transfer = poses(40)
    nothing = torch.zeros_like(origins)
    images = simulate_particles(specimen, rotations, nothing, transfer, OPTICS)
    near = distance_from_centre(SIZE, 2) < 6
    assert (images[:, near].mean(dim=1) > images[:, ~near].mean(dim=1)).float().mean() > 0.9
    u, v, angle, phase = transfer.unbind(1)
    value = ctf(SIZE, 4.0, u, v, angle, phase, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)
    power = to_fourier(images).abs().square()
    assert power[value.abs() < 0.02].mean() < 1e-3 * power[value.abs() > 0.9].mean()


def test_noise_has_unit_deviation_and_the_ratio_asked(specimen: Specimen) -> None:
    rotations, origins, transfer = poses(BATCH)
    clean = simulate_particles(specimen, rotations, 0 * origins, transfer, OPTICS)
    noisy = simulate_particles(specimen, rotations, 0 * origins, transfer, OPTICS, snr=0.1)
    noise = noisy - clean * 0.1**0.5
    assert float(noise.std()) == pytest.approx(1.0, rel=0.01)
    disc = distance_from_centre(SIZE, 2) <= 0.5 * specimen.diameter / 4.0
    assert float(clean[:, disc].var()) == pytest.approx(1.0, rel=1e-3)
    half = simulate_particles(specimen, rotations, 0 * origins, transfer, OPTICS, snr=0.1, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert (half.float() - noisy).abs().max() < 0.01
