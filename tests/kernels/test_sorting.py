import pytest
import torch

from cryoseg_dist.kernels.sorting import FEATURES, outlier_scores, particle_statistics

RADIUS, SIZE = 12.0, 32


def particles(n: int, seed: int = 0) -> torch.Tensor:
    """Blobs of varied contrast in noise."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE) - SIZE // 2
    blob = torch.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 5.0**2))
    contrast = 1.0 + 0.1 * torch.randn((n, 1, 1), generator=generator)
    return contrast * blob + torch.randn((n, SIZE, SIZE), generator=generator)


def test_statistics_are_the_moments() -> None:
    images = particles(5)
    table = particle_statistics(images, RADIUS)
    assert table.shape == (5, len(FEATURES))
    one = images[3].double()
    standard = ((one - one.mean()) / one.std()).flatten()
    at = dict(zip(FEATURES, table[3].tolist(), strict=True))
    assert at["skewness"] == pytest.approx(float(standard.pow(3).mean()), abs=1e-4)
    assert at["kurtosis"] == pytest.approx(float(standard.pow(4).mean()) - 3.0, abs=1e-4)
    assert at["extreme"] == pytest.approx(float(standard.abs().max()), abs=1e-4)


def test_planted_junk_scores_high_and_particles_low() -> None:
    images = particles(400)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images[7] += 8.0 * (x > 20)  # an edge of carbon
    images[70] += 30.0 * torch.exp(-((x - 9) ** 2 + (y - 9) ** 2) / 8.0)  # a gold bead
    images[170] *= 6.0  # a crystal
    images[270] = 0.0  # a blank
    scores = outlier_scores(particle_statistics(images, RADIUS))
    junk = torch.zeros(400, dtype=torch.bool)
    junk[[7, 70, 170, 270]] = True
    assert scores[junk].min() > 7.0
    assert (scores[~junk] > 7.0).float().mean() < 0.01


def test_a_column_without_spread_is_ignored() -> None:
    table = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [40.0, 9.0]])
    scores = outlier_scores(table)
    assert scores.argmax() == 3
    assert torch.isfinite(scores).all()
    assert torch.equal(outlier_scores(torch.ones(4, 2)), torch.zeros(4))
