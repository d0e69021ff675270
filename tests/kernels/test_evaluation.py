import math

import numpy as np
import pytest

from cryoseg_dist.kernels.evaluation import match_centres


def test_nearest_pairs_first_and_one_to_one() -> None:
    truth = np.array([(0.0, 0.0), (10.0, 0.0), (50.0, 0.0)])
    picks = np.array([(4.0, 0.0), (9.0, 0.0), (10.0, 0.5), (100.0, 0.0)])
    matched = match_centres(picks, truth, 6.0)
    # The second pick near 10 is wrong: the truth at 0 is 9 away from it.
    assert matched.n_matched == 2
    assert matched.precision == 0.5
    assert matched.recall == pytest.approx(2 / 3)
    assert matched.f1 == pytest.approx(4 / 7)
    assert matched.rms_error == pytest.approx(math.sqrt((0.5**2 + 4.0**2) / 2))


def test_coincident_points_and_empty_sets() -> None:
    same = np.array([(1.0, 2.0)])
    assert match_centres(same, same, 3.0).f1 == 1.0
    nothing = np.zeros((0, 2))
    assert match_centres(nothing, same, 3.0).recall == 0.0
    assert match_centres(same, nothing, 3.0).precision == 0.0
    assert math.isnan(match_centres(nothing, same, 3.0).precision)
