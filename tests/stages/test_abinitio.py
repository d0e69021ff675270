import numpy as np
import pytest

from cryoseg_dist.stages.abinitio import AbinitioSettings, n_starts, sampling, settled, step, surviving


@pytest.mark.parametrize(("symmetry", "n"), [("C1", 8), ("C2", 4), ("D2", 2), ("D7", 1), ("O", 1), ("I", 1)])
def test_the_less_symmetry_the_more_starts(symmetry: str, n: int) -> None:
    assert n_starts(symmetry, AbinitioSettings()) == n
    assert n_starts(symmetry, AbinitioSettings(starts=3)) == 3


def test_resolution_and_batches_grow_and_a_batch_is_the_same_for_all_starts() -> None:
    settings = AbinitioSettings(iterations=20, batch=100)
    steps = [step(i, 1000, 64, 3.0, settings) for i in range(30)]
    shells = [s.max_shell for s in steps]
    assert shells == sorted(shells)
    assert shells[0] == pytest.approx(64 * 3.0 / 35.0)
    assert shells[19] == shells[29] == pytest.approx(64 * 3.0 / 15.0)
    assert [len(s.particles) for s in (steps[0], steps[19], steps[29])] == [100, 300, 300]
    assert steps[0].memory == 0.0
    assert steps[1].memory == settings.memory
    again = step(7, 1000, 64, 3.0, settings)
    np.testing.assert_array_equal(again.particles, steps[7].particles)
    assert len(np.unique(again.particles)) == len(again.particles)
    assert len(step(0, 40, 64, 3.0, settings).particles) == 40


def test_a_second_pass_comes_with_the_resolution_that_needs_it() -> None:
    settings = AbinitioSettings()
    passes = [sampling(step(i, 500, 64, 3.0, settings), 64, 3.0, 150.0, settings) for i in (0, 39)]
    assert [s.two_passes for s in passes] == [False, True]
    # The edge of the particle moves by 19.6 A in a step of 15 degrees.
    assert 64 * 3.0 / passes[0].max_shell > 19.6 > 64 * 3.0 / passes[1].max_shell


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
