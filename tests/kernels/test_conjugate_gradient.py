"""Maps solved for on the normal equations, from even and uneven views of a known molecule."""

import math
from functools import cache

import pytest
import torch

from cryoseg_dist.kernels.conjugate_gradient import NormalEquations, solve
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import frequencies, shell_mean, to_fourier
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.mask import distance_from_centre, soft_sphere
from cryoseg_dist.kernels.so3 import matrix_to_euler, random_rotations
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.simulate.particles import simulate_particles
from cryoseg_dist.simulate.specimen import Specimen, made_up
from cryoseg_dist.stages.reconstruct import FoldStage, complete, damped_map, maps_of_sums, noise_to_signal, pose_table

N, PIXEL = 32, 4.0
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.1)
SUPPORT = soft_sphere(N, 12, 3)


@cache
def molecule() -> Specimen:
    return made_up(diameter=90.0, size=N, pixel_size=PIXEL, resolution=9.0, seed=1)


def turned(within: float, count: int, beyond: float = 0.0) -> torch.Tensor:
    """Random orientations whose view lies between two tilts of the z axis."""
    every = random_rotations(14 * count, torch.Generator().manual_seed(3))
    tilt = torch.rad2deg(torch.acos(every[:, 2, 2].abs().clamp(max=1.0)))
    return every[(tilt <= within) & (tilt >= beyond)][:count]


def sums(specimen: Specimen, rotations: torch.Tensor, snr: float) -> list[torch.Tensor]:
    """Completed sums of both half sets."""
    n = len(rotations)
    transfer = torch.tensor([[9000.0, 9000.0, 0.0, 0.0]]).repeat(n, 1)
    transfer[:, :2] += 6000.0 * torch.rand((n, 1), generator=torch.Generator().manual_seed(1))
    origins = torch.zeros((n, 2))
    images = simulate_particles(specimen, rotations, origins, transfer, OPTICS, snr=snr, seed=2).numpy()
    poses = pose_table(*(a.numpy() for a in matrix_to_euler(rotations)), *origins.T.numpy(), PIXEL)
    stage, out = FoldStage(OPTICS, N), []
    for h in (0, 1):
        part = {"ctf": transfer.numpy()[h::2], "poses": poses[h::2]}
        unit = Unit(f"half{h}", {}, {}, {"half": h, "parts": [part]})
        out.append(complete(stage.partial(unit, {"images/0": images[h::2]}), "C1", N, 2))
    return out


def agreement(volume: torch.Tensor, first: int = 1, last: int = 12) -> float:
    """Mean FSC with the molecule."""
    curve = fsc(to_fourier(volume * SUPPORT, 3), to_fourier(molecule().volume * SUPPORT, 3))
    return float(curve[first : last + 1].mean())


def test_the_system_is_symmetric_and_positive_and_a_constant_weight_scales() -> None:
    accumulator = sums(molecule(), turned(40.0, 200), 0.1)[0]
    equations = NormalEquations(accumulator, N, 2)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((N,) * 3, generator=generator) for _ in range(2))
    assert float((a * equations.apply(b)).sum()) == pytest.approx(float((equations.apply(a) * b).sum()), rel=1e-3)
    assert float((a * equations.apply(a)).sum()) > 0
    accumulator[..., 2] = 3.0
    torch.testing.assert_close(NormalEquations(accumulator, N, 2).apply(a), 3.0 * a, rtol=1e-4, atol=1e-4)


def test_the_convolution_is_that_of_the_summed_slices() -> None:
    """Back-projected projections of a map, against the map convolved with the kernel."""
    rotations = turned(90.0, 300)
    specimen = molecule()
    equations = NormalEquations(sum(sums(specimen, rotations, math.inf)), N, 2)
    inside = specimen.volume * SUPPORT
    made, given = equations.apply(inside * equations.profile) * SUPPORT, equations.right_hand_side * SUPPORT
    # Images have a grey scale of their own.
    correlation = torch.corrcoef(torch.stack((made.flatten(), given.flatten())))[0, 1]
    assert float(correlation) > 0.998


def test_even_views_without_noise_give_the_map_back() -> None:
    totals = sums(molecule(), turned(90.0, 600), math.inf)
    found = solve(NormalEquations(totals[0] + totals[1], N, 2), torch.full((N // 2 + 1,), 1e-3), SUPPORT)
    assert agreement(found.volume) > 0.999
    assert all(later < earlier for earlier, later in zip(found.errors, found.errors[1:], strict=False))


def test_uneven_noisy_views_gain_and_iterating_on_does_no_harm() -> None:
    rotations = torch.cat((turned(25.0, 570), turned(90.0, 30, beyond=45.0)))
    totals = sums(molecule(), rotations, 0.1)
    plain = maps_of_sums(totals, N, 2)
    curve = fsc(*(to_fourier(h * SUPPORT, 3) for h in plain))
    equations = NormalEquations(totals[0] + totals[1], N, 2)
    ratio = noise_to_signal(curve, 2)
    stopped = solve(equations, ratio, SUPPORT)
    longer = solve(equations, ratio, SUPPORT, tolerance=1e-9, max_iterations=60)
    undamped, damped = agreement(finish(totals[0] + totals[1], N)), agreement(damped_map(totals, curve, N, 2))
    solved = agreement(stopped.volume)
    assert 1 <= stopped.iterations < 15
    assert longer.iterations > 2 * stopped.iterations
    assert agreement(longer.volume) == pytest.approx(solved, abs=0.01)
    assert solved > damped > undamped + 0.02


def test_amplitudes_stay_for_even_views() -> None:
    totals = sums(molecule(), turned(90.0, 600), 0.3)
    ratio = torch.full((N // 2 + 1,), 0.5)
    solved = solve(NormalEquations(totals[0] + totals[1], N, 2), ratio, SUPPORT).volume
    direct = finish(totals[0] + totals[1], N, shrinkage=ratio) * SUPPORT
    power = [shell_mean(to_fourier(v, 3).abs().square(), N, 3)[2:12] for v in (solved, direct)]
    torch.testing.assert_close(power[0], power[1], rtol=0.25, atol=0.0)


def test_a_missing_cone_stays_missing() -> None:
    ball = torch.exp(-(distance_from_centre(N) ** 2) / (2 * 2.0**2))
    rotations = turned(45.0, 600)
    totals = sums(Specimen(ball, PIXEL, "C1", 40.0), rotations, math.inf)
    equations = NormalEquations(totals[0] + totals[1], N, 2)
    solved = solve(equations, torch.full((N // 2 + 1,), 0.01), SUPPORT, tolerance=1e-4).volume
    direct = finish(totals[0] + totals[1], N)

    def cone_power(volume: torch.Tensor) -> float:
        """Amplitude within 30 degrees of z relative to the truth, shells 5 to 10."""
        spectrum, truth = to_fourier(volume, 3).abs(), to_fourier(ball, 3).abs()
        fz, fy, fx = frequencies((N,) * 3)
        r = (fz * fz + fy * fy + fx * fx).sqrt()
        ring = (r * N >= 4.5) & (r * N < 8.5)
        cone, out = ring & (fz.abs() > math.cos(math.radians(30.0)) * r), ring & (fz.abs() < 0.5 * r)
        scale = float(spectrum[out].sum() / truth[out].sum())
        return float(spectrum[cone].sum() / truth[cone].sum()) / scale

    assert cone_power(direct) < 0.5
    assert cone_power(solved) < 0.5


def test_padding_one_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 or more"):
        NormalEquations(torch.zeros((N, N, N // 2 + 1, 3)), N, 1)
