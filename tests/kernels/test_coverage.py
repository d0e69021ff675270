"""Coverage of Fourier space by views with a known distribution."""

import math

import pytest
import torch

from cryoseg_dist.kernels.coverage import (
    coverage_verdict,
    empty_cells,
    point_spread_efficiency,
    relative_sampling,
    sphere_points,
    view_coverage,
)
from cryoseg_dist.kernels.views import view_axes


def even_views(count: int = 20_000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn((count, 3), generator=generator), dim=1)


def tilts(views: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(torch.acos(views[:, 2].abs().clamp(max=1.0)))


def onto(views: torch.Tensor, axis: tuple[float, float, float]) -> torch.Tensor:
    """Views turned so that z falls onto an axis."""
    z = torch.nn.functional.normalize(torch.tensor(axis), dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.3]), z), dim=0)
    return views @ torch.stack((x, torch.linalg.cross(z, x), z))


def test_even_views_are_even():
    found = view_coverage(sphere_points(4000))
    assert found.sampling_factor == pytest.approx(1.0, abs=0.02)
    assert found.efficiency > 0.97
    assert found.empty_fraction == 0.0
    assert coverage_verdict(found).kind == "even"


def test_side_views_still_sample_every_direction():
    angle = torch.linspace(0, 2 * torch.pi, 2001)[:-1]
    rim = torch.stack([torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)], dim=1)
    found = view_coverage(rim)
    assert found.empty_fraction == 0.0
    # Directions at angle t from z are sampled as 2 / (pi sin t): least at the equator, 0.64.
    assert found.worst_sampling == pytest.approx(0.64, abs=0.07)
    # The harmonic mean of that is (2 / pi) / <sin t> = (2 / pi) / (pi / 4).
    assert found.sampling_factor == pytest.approx(8 / math.pi**2, abs=0.03)
    assert 0.6 < found.efficiency < 0.9


@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.5, -0.3, 0.8)])
@pytest.mark.parametrize("limit", [30.0, 45.0, 60.0, 75.0])
def test_views_up_to_a_tilt_leave_a_cone_of_the_rest(limit, axis):
    views = even_views()
    found = view_coverage(onto(views[tilts(views) < limit], axis))
    assert found.empty_shape == "cone"
    assert found.empty_half_angle == pytest.approx(90.0 - limit, abs=2.0)
    unit = torch.nn.functional.normalize(torch.tensor(axis), dim=0)
    assert abs(float(torch.tensor(found.empty_axis) @ unit)) > math.cos(math.radians(2.0))
    sine = math.sin(math.radians(limit))
    assert found.elongation == pytest.approx(math.sqrt((3 - sine**2) / (2 * sine**2)), rel=0.06)
    verdict = coverage_verdict(found)
    assert verdict.kind == "cone"
    assert f"missing cone of half angle {found.empty_half_angle:.0f}°" in verdict.words
    assert ("the z axis" in verdict.words) == (axis[2] == 1.0)


@pytest.mark.parametrize("limit", [30.0, 60.0, 80.0])
def test_views_beyond_a_tilt_leave_no_cone(limit):
    views = even_views()
    found = view_coverage(views[tilts(views) > limit])
    assert found.empty_shape == "none"
    assert coverage_verdict(found).kind in ("even", "preferred")


@pytest.mark.parametrize("limit", [45.0, 60.0])
def test_a_single_axis_tilt_series_leaves_a_wedge(limit):
    angle = torch.deg2rad(torch.linspace(-limit, limit, 4001))
    found = view_coverage(torch.stack((angle.sin(), torch.zeros_like(angle), angle.cos()), dim=1))
    assert found.empty_shape == "wedge"
    assert found.empty_half_angle == pytest.approx(90.0 - limit, abs=2.5)
    assert abs(found.empty_axis[2]) > 0.99
    a = math.radians(limit)
    product = math.sin(a) * math.cos(a)
    assert found.elongation == pytest.approx(math.sqrt((a + product) / (a - product)), rel=0.08)
    assert coverage_verdict(found).kind == "wedge"


def test_efficiency_falls_as_the_cone_grows():
    views = even_views()
    held = [view_coverage(views[tilts(views) < limit]).efficiency for limit in (10.0, 30.0, 60.0, 91.0)]
    assert held == sorted(held)
    assert held[0] < 0.35
    assert held[3] > 0.95


def test_efficiency_of_a_known_point_spread_function():
    directions = sphere_points(2000)
    cosine = directions[:, 2].double()
    assert point_spread_efficiency(directions, torch.ones(2000)) == pytest.approx(1.0, abs=0.02)
    # Half of Fourier space about the z axis alone: a needle-shaped transfer makes a disc-shaped spread.
    polar = point_spread_efficiency(directions, (cosine.abs() > 0.5).double())
    assert polar < 0.8


def test_crowded_views_are_a_preferred_orientation():
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.tensor([[0.5, 0.3, 0.8]]), dim=1)
    crowd = torch.nn.functional.normalize(axis + 0.15 * torch.randn((6000, 3), generator=generator), dim=1)
    found = view_coverage(torch.cat((crowd, even_views(2500))))
    assert abs(float(torch.tensor(found.peak_axis) @ axis[0])) > math.cos(math.radians(8.0))
    assert found.peak_share > 5.0
    verdict = coverage_verdict(found)
    assert verdict.kind == "preferred"
    assert not verdict.even
    assert "tilt 36°" in verdict.words or "tilt 37°" in verdict.words or "tilt 35°" in verdict.words


def test_one_view_leaves_a_cone():
    generator = torch.Generator().manual_seed(0)
    cap = torch.nn.functional.normalize(
        torch.tensor([[0.0, 0.0, 1.0]]) + 0.05 * torch.randn(2000, 3, generator=generator)
    )
    found = view_coverage(cap)
    assert found.empty_fraction > 0.5
    assert found.sampling_factor < 0.1
    verdict = coverage_verdict(found)
    assert not verdict.even
    assert "hardly seen" in verdict.words


def test_gaps_of_no_form_are_named_by_their_share():
    # A few single views: slices with empty space between them everywhere.
    found = view_coverage(even_views(6, seed=3), half_width=0.02)
    verdict = coverage_verdict(found)
    assert verdict.kind == "gaps"
    assert f"{100 * found.empty_fraction:.0f} %" in verdict.words


def test_empty_cells_of_one_slice():
    # A slice a pixel thick covers the share 1 / (2 k) of the directions of shell k.
    assert empty_cells(torch.tensor([[0.0, 0.0, 1.0]]), 10.0) == pytest.approx(0.95, abs=0.005)
    assert empty_cells(even_views(5000), 10.0) == 0.0


def test_sampling_of_even_views_is_one_everywhere():
    sampling = relative_sampling(sphere_points(20_000), sphere_points(50))
    torch.testing.assert_close(sampling, torch.ones(50, dtype=torch.float64), atol=0.03, rtol=0)


def test_symmetry_spreads_views():
    orientations = torch.tensor([[10.0, 40.0], [20.0, 50.0]]).numpy()
    views = view_axes(orientations, "O")
    assert views.shape == (48, 3)
    torch.testing.assert_close(views.norm(dim=1), torch.ones(48))
    # Copies of one view under a point group sum to nothing.
    assert views.sum(dim=0).abs().max() < 1e-4
    assert view_axes(orientations, None).shape == (2, 3)
