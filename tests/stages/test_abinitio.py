import numpy as np
import pytest

from cryoseg_dist.stages.abinitio import AbinitioSettings, sampling, schedule_for, settled, step, surviving
from cryoseg_dist.stages.refine import RefineSettings, initial_low_pass


@pytest.mark.parametrize(("symmetry", "n"), [("C1", 8), ("C2", 4), ("D2", 4), ("D7", 4), ("O", 8), ("I", 8)])
def test_little_symmetry_and_balls_need_more_starts(symmetry: str, n: int) -> None:
    assert schedule_for(symmetry, 130.0, AbinitioSettings()).starts == n
    assert schedule_for(symmetry, 130.0, AbinitioSettings(starts=3)).starts == 3


def test_resolution_and_batches_grow_and_a_batch_is_the_same_for_all_starts() -> None:
    settings = AbinitioSettings(iterations=20, batch=100)
    plan = schedule_for("D2", 150.0, settings)
    steps = [step(i, 1000, 64, 3.0, plan, settings) for i in range(30)]
    shells = [s.max_shell for s in steps]
    assert shells == sorted(shells)
    assert shells[0] == pytest.approx(64 * 3.0 / 35.0)
    assert shells[19] == shells[29] == pytest.approx(64 * 3.0 / 15.0)
    assert [len(s.particles) for s in (steps[0], steps[19], steps[29])] == [100, 300, 300]
    assert steps[0].memory == 0.0
    assert steps[1].memory == settings.memory
    again = step(7, 1000, 64, 3.0, plan, settings)
    np.testing.assert_array_equal(again.particles, steps[7].particles)
    assert len(np.unique(again.particles)) == len(again.particles)
    assert len(step(0, 40, 64, 3.0, plan, settings).particles) == 40


def test_a_second_pass_comes_with_the_resolution_that_needs_it() -> None:
    settings = AbinitioSettings()
    plan = schedule_for("C1", 150.0, settings)
    passes = [sampling(step(i, 500, 64, 3.0, plan, settings), 64, 3.0, 150.0, settings) for i in (0, 39)]
    assert [s.two_passes for s in passes] == [False, True]
    # The edge of the particle moves by 19.6 A in a step of 15 degrees.
    assert 64 * 3.0 / passes[0].max_shell > 19.6 > 64 * 3.0 / passes[1].max_shell


def test_a_ball_starts_where_its_symmetry_shows() -> None:
    plan = schedule_for("O", 130.0, AbinitioSettings())
    # A step of 7.5 degrees moves the rim of 130 A by 8.5 A.
    assert plan.last_resolution == pytest.approx(8.51, abs=0.01)
    assert plan.first_resolution == pytest.approx(14.89, abs=0.01)
    assert plan.batch < schedule_for("C1", 130.0, AbinitioSettings()).batch
    given = AbinitioSettings(first_resolution=20.0, last_resolution=12.0, batch=50, starts=2)
    assert schedule_for("O", 130.0, given) == schedule_for("C1", 130.0, given)
    assert initial_low_pass("O", 130.0, RefineSettings()) == pytest.approx(11.9, abs=0.05)
    assert initial_low_pass("D2", 130.0, RefineSettings()) == 40.0
    assert initial_low_pass("I", 130.0, RefineSettings(initial_low_pass=25.0)) == 25.0


def test_half_of_the_starts_are_given_up_at_a_time() -> None:
    settings = AbinitioSettings(iterations=20)
    likelihoods = [[1.0, 2.0], [1.0, 4.0], [1.0, 3.0], [1.0, 5.0], [1.0, 0.0]]
    assert surviving(5, likelihoods, settings) == [0, 1, 2, 3, 4]
    assert surviving(6, likelihoods, settings) == [1, 2, 3]
    assert surviving(9, likelihoods[:3], settings) == [1, 2]
    assert surviving(12, likelihoods, settings) == [3]
    assert surviving(17, likelihoods, settings) == [3]
    # Equal starts: the first.
    assert surviving(12, [[1.0], [1.0]], settings) == [0]
    # Few are given up late: what tells right from wrong is not seen before.
    assert surviving(6, likelihoods[:4], settings) == [0, 1, 2, 3]
    assert surviving(9, likelihoods[:4], settings) == [1, 3]
    assert surviving(9, likelihoods[:2], settings) == [0, 1]


def test_iterations_go_on_while_the_likelihood_grows() -> None:
    settings = AbinitioSettings(iterations=20)
    growing = [10.0 + i for i in range(40)]
    flat = [10.0] * 40
    assert not settled(flat[:19], settings)
    assert settled(flat[:20], settings)
    assert not settled(growing[:20], settings)
    assert settled(growing, settings)
    falling = growing[:20] + [20.0] * 10
    assert settled(falling, settings)
