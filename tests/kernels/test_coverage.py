"""Coverage of Fourier space by views with a known distribution."""

import pytest
import torch

from cryoseg_dist.kernels.coverage import sphere_points, view_coverage
from cryoseg_dist.report.figures_orientations import coverage_words, view_axes


def test_even_views_are_even():
    found = view_coverage(sphere_points(4000))
    assert found.sampling_factor == pytest.approx(1.0, abs=0.02)
    assert found.empty_fraction == 0.0
    assert coverage_words(found)[0]


def test_side_views_still_sample_every_direction():
    angle = torch.linspace(0, 2 * torch.pi, 2001)[:-1]
    rim = torch.stack([torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)], dim=1)
    found = view_coverage(rim)
    assert found.empty_fraction == 0.0
    # Directions at angle t from z are sampled as 2 / (pi sin t): least at the equator, 0.64.
    assert found.worst_sampling == pytest.approx(0.64, abs=0.07)


def test_one_view_leaves_a_cone():
    generator = torch.Generator().manual_seed(0)
    cap = torch.nn.functional.normalize(
        torch.tensor([[0.0, 0.0, 1.0]]) + 0.05 * torch.randn(2000, 3, generator=generator)
    )
    found = view_coverage(cap)
    assert found.empty_fraction > 0.5
    assert found.sampling_factor < 0.1
    even, words = coverage_words(found)
    assert not even
    assert "hardly seen" in words


def test_symmetry_spreads_views():
    orientations = torch.tensor([[10.0, 40.0], [20.0, 50.0]]).numpy()
    views = torch.from_numpy(view_axes(orientations, "O"))
    assert views.shape == (48, 3)
    torch.testing.assert_close(views.norm(dim=1), torch.ones(48))
    # Copies of one view under a point group sum to nothing.
    assert views.sum(dim=0).abs().max() < 1e-4
    assert view_axes(orientations, None).shape == (2, 3)
