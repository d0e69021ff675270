"""Assignment under capacities: full choices hold what they may, and nobody could do better by changing places."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from cryoseg_dist.kernels.capacity import LEAST_RISE, capacity_prices


@pytest.mark.parametrize("seed", range(4))
def test_prices_give_the_best_assignment(seed: int) -> None:
    """The total worth is that of the best assignment; what has a price is full."""
    generator = np.random.default_rng(seed)
    n, k, capacity = 120, 6, 30
    # One choice that all like best, two that are nearly alike.
    values = generator.normal(size=(n, k)) + np.array([4.0, 2.0, 2.0, 0.0, 0.0, -1.0])
    values[:, 2] = values[:, 1] + 0.2 * generator.normal(size=n)
    kept = values.copy()
    prices = capacity_prices(values, capacity)
    assert np.array_equal(values, kept)
    best = (values - prices).argmax(axis=1)
    counts = np.bincount(best, minlength=k)
    assert counts.max() <= capacity
    assert np.all(prices >= 0)
    # Those whose losses are within the least rise of each other leave together.
    assert np.all(counts[prices > 0] >= capacity - 2)
    rows, places = linear_sum_assignment(np.repeat(values, capacity, axis=1), maximize=True)
    optimum = values[rows, places // capacity].sum()
    assert optimum - n * k * LEAST_RISE <= values[np.arange(n), best].sum() <= optimum + 1e-9


def test_without_an_overfull_choice_nothing_costs() -> None:
    values = np.eye(4).repeat(5, axis=0)
    assert not capacity_prices(values, 5).any()


def test_too_little_room_is_refused() -> None:
    with pytest.raises(ValueError, match="hold 9"):
        capacity_prices(np.zeros((9, 2)), 4)
