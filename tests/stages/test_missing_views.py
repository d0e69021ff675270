"""Views are taken away from simulated particles: the map is elongated, and the diagnosis says so."""

import math

import numpy as np
import pytest
import torch

from cryoseg_dist.kernels.conical_fsc import conical_fsc
from cryoseg_dist.kernels.coverage import coverage_verdict, view_coverage
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.mask import distance_from_centre, soft_sphere
from cryoseg_dist.kernels.so3 import matrix_to_euler, random_rotations
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.simulate.particles import simulate_particles
from cryoseg_dist.simulate.specimen import Specimen, made_up
from cryoseg_dist.stages.postprocess import PostprocessSettings, postprocess
from cryoseg_dist.stages.reconstruct import (
    FoldStage,
    ReconstructSettings,
    complete,
    damped_map,
    maps_of_sums,
    pose_table,
    solved_map,
    solver_words,
)
from cryoseg_dist.stages.validate import ValidateSettings, validate

N, PIXEL = 48, 3.0
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.1)


def rotations(keep: str, limit: float, count: int, seed: int = 0) -> torch.Tensor:
    """Random orientations whose view lies within (or beyond) a tilt of the z axis."""
    every = random_rotations(12 * count, torch.Generator().manual_seed(seed))
    tilt = torch.rad2deg(torch.acos(every[:, 2, 2].abs().clamp(max=1.0)))
    return every[tilt <= limit if keep == "within" else tilt >= limit][:count]


def half_maps(specimen: Specimen, turned: torch.Tensor, snr: float) -> list[torch.Tensor]:
    return maps_of_sums(sums(specimen, turned, snr), N, 2)


def sums(specimen: Specimen, turned: torch.Tensor, snr: float) -> list[torch.Tensor]:
    """Completed sums of both half sets."""
    n = len(turned)
    transfer = torch.tensor([[9000.0, 9000.0, 0.0, 0.0]]).repeat(n, 1)
    transfer[:, :2] += 6000.0 * torch.rand((n, 1), generator=torch.Generator().manual_seed(1))
    images = simulate_particles(specimen, turned, torch.zeros((n, 2)), transfer, OPTICS, snr=snr, seed=2).numpy()
    angles = [a.numpy() for a in matrix_to_euler(turned)]
    poses = pose_table(*angles, np.zeros(n), np.zeros(n), PIXEL)
    stage = FoldStage(OPTICS, N)
    totals = []
    for h in (0, 1):
        part = {"ctf": transfer.numpy()[h::2], "poses": poses[h::2]}
        unit = Unit(f"half{h}", {}, {}, {"half": h, "parts": [part]})
        totals.append(complete(stage.partial(unit, {"images/0": images[h::2]}), "C1", N, 2))
    return totals


def width(line: torch.Tensor) -> float:
    """Width of a peak in the middle, from its curvature."""
    middle = N // 2
    return float((line[middle] / (2 * line[middle] - line[middle - 1] - line[middle + 1])).sqrt())


@pytest.mark.parametrize("limit", [45.0, 60.0])
def test_a_missing_cone_elongates_a_ball_and_is_named(limit: float) -> None:
    radius = 2.5
    ball = torch.exp(-(distance_from_centre(N) ** 2) / (2 * radius**2))
    turned = rotations("within", limit, 1200)
    volume = sum(half_maps(Specimen(ball, PIXEL, "C1", 40.0), turned, math.inf))
    middle = N // 2

    along, across = width(volume[:, middle, middle]), width(volume[middle, middle, :])
    found = view_coverage(turned[:, 2].float())
    sine = math.sin(math.radians(limit))
    assert along / across == pytest.approx(math.sqrt((3 - sine**2) / (2 * sine**2)), rel=0.1)
    assert along / across == pytest.approx(found.elongation, rel=0.1)
    verdict = coverage_verdict(found)
    assert verdict.kind == "cone"
    assert found.empty_half_angle == pytest.approx(90.0 - limit, abs=3.0)
    assert f"elongated along that axis, about {found.elongation:.1f} times" in verdict.words


def test_half_maps_alone_tell_the_direction() -> None:
    specimen = made_up(diameter=100.0, size=N, pixel_size=PIXEL, resolution=8.0, seed=1)
    mask = soft_sphere(N, 19, 4)
    ratios = {}
    for name, turned in (
        ("all", rotations("within", 91.0, 1500)),
        ("cone", rotations("within", 40.0, 1500)),
        ("sides", rotations("beyond", 50.0, 1500)),
    ):
        spectra = [to_fourier(h * mask, 3) for h in half_maps(specimen, turned, 0.05)]
        found = conical_fsc(*spectra, filled=float(mask.mean()))
        ratios[name] = found.ratio
        if name == "cone":
            assert abs(found.worst_axis[2]) > math.cos(math.radians(25.0))
            assert not found.isotropic
        if name == "all":
            assert found.isotropic
    assert ratios["cone"] < 0.2
    # Side views reach every direction, if unevenly.
    assert ratios["cone"] < 0.5 * ratios["sides"]
    assert ratios["all"] > 2.0 * ratios["cone"]


def test_the_validation_says_so_in_words() -> None:
    specimen = made_up(diameter=100.0, size=N, pixel_size=PIXEL, resolution=8.0, seed=1)
    halves = half_maps(specimen, rotations("within", 40.0, 1500), 0.05)
    maps = postprocess(*halves, PIXEL, PostprocessSettings(), mask=soft_sphere(N, 19, 4))
    found = validate(*halves, maps, PIXEL, ValidateSettings())
    text = " ".join(found.words)
    assert "Resolution depends on direction" in text
    assert "along the z axis" in text or "tilt" in text
    assert found.direction_limits[0] > 1.3 * found.direction_limits[1]


def test_the_solver_says_what_it_restores_and_leaves_the_rest_elongated() -> None:
    ball = torch.exp(-(distance_from_centre(N) ** 2) / (2 * 2.5**2))
    turned = rotations("within", 45.0, 1200)
    totals = sums(Specimen(ball, PIXEL, "C1", 40.0), turned, math.inf)
    middle, curve = N // 2, torch.full((N // 2 + 1,), 0.99)
    stretched = {}
    settings = ReconstructSettings(solver="cg", cg_tolerance=1e-4)
    for name, volume in (
        ("direct", damped_map(totals, curve, N, 2)),
        ("cg", solved_map(totals, curve, N, 2, None, soft_sphere(N, 19, 4), settings).volume),
    ):
        stretched[name] = width(volume[:, middle, middle]) / width(volume[middle, middle, :])
    coverage = view_coverage(turned[:, 2].float())
    assert stretched["cg"] == pytest.approx(stretched["direct"], rel=0.12)
    assert stretched["cg"] > 0.5 * (1.0 + coverage.elongation)
    words = solver_words(coverage, N, PIXEL, 114.0)
    assert f"missing cone of half angle {coverage.empty_half_angle:.0f}° about the z axis" in words
    assert "is not restored" in words
    assert f"elongated, about {coverage.elongation:.1f} times" in words
    coarse = N * PIXEL / (N * PIXEL / 114.0 / math.sin(math.radians(coverage.empty_half_angle)))
    assert f"features coarser than {coarse:.0f} A alone" in words
    even = view_coverage(rotations("within", 91.0, 1200)[:, 2].float())
    assert "leave no direction empty" in solver_words(even, N, PIXEL, 114.0)
