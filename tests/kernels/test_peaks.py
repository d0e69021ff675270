import numpy as np
import pytest
import torch

from cryoseg_dist.kernels.evaluation import match_centres
from cryoseg_dist.kernels.peaks import automatic_threshold, disc_mean, find_peaks, suppress_close

DIAMETER = 16.0
CORE = 0.33 * DIAMETER


def core_map(centres: np.ndarray, shape: tuple[int, int], height: float = 0.95) -> torch.Tensor:
    """Antialiased particle cores of radius 0.33 diameters, centres (x, y)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    out = np.zeros(shape, dtype=np.float32)
    for cx, cy in centres:
        out = np.maximum(out, np.clip(0.33 * DIAMETER + 0.5 - np.hypot(x - cx, y - cy), 0, 1) * height)
    return torch.from_numpy(out.astype(np.float32))


def touching_pairs(rng: np.random.Generator, gap: float) -> np.ndarray:
    """Pairs of touching particles, far from one another: (n, 2) as (x, y)."""
    centres = []
    for row in range(6):
        for column in range(6):
            middle = np.array((40 + 56 * column, 40 + 56 * row)) + rng.uniform(-4, 4, 2)
            angle = rng.uniform(0, np.pi)
            half = 0.5 * DIAMETER * (1 + gap) * np.array((np.cos(angle), np.sin(angle)))
            centres += [middle - half, middle + half]
    return np.array(centres)


@pytest.mark.parametrize("gap", [0.0, 0.05, -0.1])
def test_touching_particles_stay_apart(gap: float) -> None:
    rng = np.random.default_rng(3)
    truth = touching_pairs(rng, gap)
    probability = core_map(truth, (360, 372)) + 0.04 * torch.from_numpy(rng.random((360, 372)).astype(np.float32))
    found = find_peaks(probability, CORE, 0.7 * DIAMETER, 0.2)
    matched = match_centres(torch.stack((found.x, found.y), dim=1).numpy(), truth, DIAMETER / 4)
    assert matched.recall == 1.0
    assert matched.precision == 1.0
    assert matched.rms_error < 0.3


def test_centres_are_subpixel_and_scores_follow_the_probability() -> None:
    truth = np.array([(40.3, 50.7), (90.5, 44.25)])
    probability = core_map(truth[:1], (100, 130)) + core_map(truth[1:], (100, 130), 0.4)
    before = probability.clone()
    found = find_peaks(probability, CORE, 0.7 * DIAMETER, 0.2)
    np.testing.assert_allclose(torch.stack((found.x, found.y), dim=1).numpy(), truth, atol=0.15)
    assert 0.8 < found.score[0] <= 0.95
    assert 0.3 < found.score[1] <= 0.4
    assert torch.equal(probability, before)


def test_an_empty_map_has_no_peaks() -> None:
    found = find_peaks(torch.full((64, 64), 0.02), CORE, 0.7 * DIAMETER, 0.2)
    assert len(found.x) == len(found.y) == len(found.score) == 0


def test_a_plateau_is_one_peak() -> None:
    probability = torch.zeros(64, 64)
    probability[20:44, 20:44] = 1.0
    found = find_peaks(probability, CORE, 2 * DIAMETER, 0.2)
    assert len(found.x) == 1


def test_disc_mean_of_a_constant_is_the_constant_at_the_border_too() -> None:
    torch.testing.assert_close(disc_mean(torch.full((20, 31), 0.7), CORE), torch.full((20, 31), 0.7))


def test_suppression_keeps_the_best_of_a_cluster() -> None:
    x = torch.tensor([3.0, 6.0, 0.0, 20.0])
    assert suppress_close(torch.zeros(4), x, 4.0).tolist() == [0, 3]


def test_threshold_of_calibrated_scores_is_near_the_best() -> None:
    rng = np.random.default_rng(0)
    for a, b in ((0.6, 0.6), (2.0, 5.0), (0.3, 0.8)):
        scores = rng.beta(a, b, 20_000)
        right = rng.random(20_000) < scores

        def f1(t: float, scores: np.ndarray = scores, right: np.ndarray = right) -> float:
            kept = scores >= t
            return 2.0 * np.count_nonzero(right & kept) / (np.count_nonzero(kept) + np.count_nonzero(right))

        best = max(f1(t) for t in np.linspace(0.02, 0.95, 94))
        assert f1(automatic_threshold(torch.from_numpy(scores), 0.0, 1.0)) > best - 0.005


def test_threshold_leaves_a_clean_set_whole_and_keeps_its_bounds() -> None:
    clean = torch.linspace(0.75, 0.95, 50)
    assert automatic_threshold(clean, 0.2, 0.5) == 0.5
    assert automatic_threshold(0.4 * clean, 0.2, 0.5) == pytest.approx(0.3)
    assert automatic_threshold(torch.zeros(0), 0.2, 0.5) == 0.2
