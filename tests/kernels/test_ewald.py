"""The Ewald sphere: a thick specimen whose every atom has the defocus of its height."""

import math

import pytest
import torch

from cryoseg_dist.kernels.ctf import wavelength
from cryoseg_dist.kernels.ewald import curvature, overlap, weigh_sheets
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels, put_pixels
from cryoseg_dist.kernels.so3 import matrix_to_euler, random_rotations
from cryoseg_dist.kernels.weighing import weigh_torch
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.stages.reconstruct import EwaldSphere, FoldStage, complete, maps_of_sums, pose_table

# Slow electrons: what a virus needs 300 kV and thousands of A for is seen in a small box.
N, PIXEL, VOLTAGE, RADIUS, IMAGES = 48, 1.0, 2.0, 18.0, 600
OPTICS = Optics(PIXEL, VOLTAGE, 0.0, 0.1)


def specimen() -> torch.Tensor:
    """Atoms (n, 3), xyz in A, in a ball."""
    points = torch.randn((400, 3), generator=torch.Generator().manual_seed(0))
    return (
        points[:60] / points[:60].norm(dim=1, keepdim=True) * RADIUS * torch.linspace(0.1, 1.0, 60)[:, None] ** (1 / 3)
    )


def thick_images(points: torch.Tensor, rotations: torch.Tensor, defocus: torch.Tensor) -> torch.Tensor:
    """Images whose atoms are each out of focus by their own height along the viewing direction."""
    ky, kx = disc_pixels(N, N / 2)
    y, x = ky / (N * PIXEL), kx / (N * PIXEL)
    square = x * x + y * y
    lam = wavelength(VOLTAGE)
    out = []
    for r, focus in zip(rotations, defocus, strict=True):
        moved = points @ r.T
        chi = math.pi * lam * square * (focus + moved[:, 2, None]) + math.asin(0.1)
        place = torch.polar(torch.ones(()), -2.0 * math.pi * (moved[:, 0, None] * x + moved[:, 1, None] * y))
        out.append((torch.sin(chi) * place).sum(dim=0))
    return to_real(put_pixels(torch.stack(out), ky, kx, N), N)


def test_sheets_that_are_one_add_up_to_a_flat_slice() -> None:
    """Of images whose transfer functions are scaled and fade, in a particle so large that defocus does not part the sheets."""
    g = torch.Generator().manual_seed(3)
    ky, kx = disc_pixels(N, N / 2)
    microscope = Microscope(Optics(2.0, 300.0, 2.7, 0.1), N, ky, kx)
    defocus = 1e4 + 1e3 * torch.rand((5, 2), generator=g)
    columns = torch.cat((defocus, torch.zeros((5, 3)), torch.tensor((0.7, 120.0)).expand(5, 2)), dim=1)
    images, noise = torch.randn((5, N, N), generator=g), 1.0 + torch.rand(len(ky), generator=g)
    above, below, weights = weigh_sheets(images, microscope, columns, noise, ky, kx, 1e12)
    data, flat = weigh_torch(images, microscope, columns, noise, ky, kx)
    torch.testing.assert_close(above + below, data, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(2.0 * weights, flat, rtol=1e-3, atol=1e-5)
    envelope = 0.7 * torch.exp(-30.0 * (ky * ky + kx * kx) / (2.0 * N) ** 2)
    torch.testing.assert_close(microscope.ctf(columns), microscope.ctf(columns[:, :5]) * envelope)


def truth_of(points: torch.Tensor) -> torch.Tensor:
    """Transform of the atoms' map, band-limited exactly."""
    f = torch.fft.fftfreq(N, PIXEL), torch.fft.rfftfreq(N, PIXEL)
    out = torch.zeros((N, N, N // 2 + 1), dtype=torch.complex64)
    for px, py, pz in points:
        turns = f[0][:, None, None] * pz + f[0][None, :, None] * py + f[1][None, None, :] * px
        out += torch.polar(torch.ones(()), -2.0 * math.pi * turns)
    return out


def test_a_thick_specimen_is_resolved_by_the_right_curvature_alone() -> None:
    points = specimen()
    rotations = random_rotations(IMAGES, torch.Generator().manual_seed(1)).float()
    defocus = 300.0 + 1200.0 * torch.rand(IMAGES, generator=torch.Generator().manual_seed(2))
    images = thick_images(points, rotations, defocus).numpy()
    columns = torch.stack((defocus, defocus, torch.zeros(IMAGES), torch.zeros(IMAGES)), dim=1).numpy()
    zeros = torch.zeros(IMAGES).numpy()
    poses = pose_table(*(a.numpy() for a in matrix_to_euler(rotations)), zeros, zeros, PIXEL)
    unit = Unit("all", {}, {}, {"half": 0, "parts": [{"ctf": columns, "poses": poses}]})
    truth, found = truth_of(points), {}
    for ewald in EwaldSphere:
        stage = FoldStage(OPTICS, N, ewald=ewald, diameter=2 * RADIUS)
        total = complete(stage.partial(unit, {"images/0": images}), "C1", N, 2)
        found[ewald] = fsc(to_fourier(maps_of_sums([total], N, 2)[0], 3), truth)
    low, fine = slice(2, 6), slice(16, 22)
    assert float(found[EwaldSphere.POSITIVE][low].min()) > 0.95
    right, flat, wrong = (
        float(found[e][fine].mean()) for e in (EwaldSphere.POSITIVE, EwaldSphere.FLAT, EwaldSphere.NEGATIVE)
    )
    assert right > 0.97
    assert flat < right - 0.1
    assert wrong < flat - 0.5


def test_weights_of_both_sheets_are_those_of_one_where_they_overlap() -> None:
    """At low frequency, where nothing is moved apart, the sheets share all; far out nothing, and each takes half of the mean."""
    frequency = torch.tensor([0.0, 0.01, 0.4])
    shared = overlap(torch.tensor([10000.0]), frequency, 300.0, 150.0)[0]
    assert float(shared[0]) == pytest.approx(1.0)
    assert 0.0 < float(shared[1]) < 1.0
    assert float(shared[2]) == 0.0


def test_curvature_is_half_the_wavelength() -> None:
    """The depth at a frequency of 1 / 2 A, in 1/A, for 300 kV."""
    shell = 256 * 1.0 / 2.0
    depth = curvature(300.0, 256, 1.0) * shell**2 / 256
    assert depth == pytest.approx(0.5 * 0.019687 * 0.25, rel=1e-4)
