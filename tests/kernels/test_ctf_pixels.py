"""Transfer functions at single Fourier pixels."""

import torch

from cryoseg_dist.kernels.ctf import ctf, ctf_pixels, phase_factors
from cryoseg_dist.kernels.slices import disc_pixels, take_pixels


def test_pixels_are_those_of_the_whole_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    u = 5000 + 30000 * torch.rand(20, generator=generator)
    v = u - 3000 * torch.rand(20, generator=generator)
    angle = 180 * torch.rand(20, generator=generator)
    phase = 90 * torch.rand(20, generator=generator)
    optics = {"voltage": 200.0, "spherical_aberration": 1.4, "amplitude_contrast": 0.1}
    for size in (33, 64):
        ky, kx = disc_pixels(size, size / 2)
        expected = take_pixels(ctf(size, 1.7, u, v, angle, phase, **optics), ky, kx)
        assert torch.allclose(
            ctf_pixels(ky, kx, size, 1.7, phase_factors(u, v, angle, phase, **optics)), expected, atol=2e-4
        )
