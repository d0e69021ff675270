"""Orientations of class averages: right ones are found and trusted, strangers are left out, noise is not trusted."""

import numpy as np
import pytest
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.alignment import align
from cryoseg_dist.kernels.fourier import shift, to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc, resolution
from cryoseg_dist.kernels.slices import project
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from cryoseg_dist.kernels.synchronization import align_orientations
from cryoseg_dist.simulate.specimen import Specimen, made_up
from cryoseg_dist.stages.common_lines import CommonLinesSettings, Confidence, first_map, orient, usable

SIZE, PIXEL = 64, 3.0


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return made_up(symmetry="C1", diameter=150.0, size=SIZE, pixel_size=PIXEL, seed=5)


def averages_of(specimen: Specimen, n: int, snr: float) -> tuple[np.ndarray, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    rotations = random_rotations(n, generator)
    moved = torch.randn((n, 2), generator=generator)
    images = to_real(shift(project(specimen.transform, rotations.float(), SIZE), moved, SIZE), SIZE)
    images = images / images.std() * snr**0.5 + torch.randn(images.shape, generator=generator)
    return images.numpy(), rotations


def test_averages_give_a_map_and_strangers_stay_out(specimen: Specimen) -> None:
    averages, rotations = averages_of(specimen, 36, 5.0)
    other, _ = averages_of(made_up(symmetry="C1", diameter=90.0, size=SIZE, pixel_size=PIXEL, seed=8), 4, 5.0)
    stack, counts = np.concatenate((averages, other)), np.full(40, 30)
    before = stack.copy()
    settings = CommonLinesSettings(starts=2)
    found = orient(stack, counts, PIXEL, specimen.diameter, settings)
    assert np.array_equal(stack, before)
    assert found.index.tolist() == list(range(40))
    aligned, _ = align_orientations(found.rotations[:36], rotations)
    error = angular_distance(aligned, rotations)
    assert error.median() < 3.0
    assert (error < 10.0).double().mean() > 0.9
    assert found.kept[:36].sum() >= 34
    assert not found.kept[36:].any()
    assert found.confidence.trusted
    assert found.confidence.consensus > 1.5
    assert found.confidence.line_share > 0.3
    assert found.confidence.starts == 3
    volume = first_map(stack, counts, found, PIXEL, specimen.diameter, settings)
    placed = align(volume, specimen.volume, SIZE * PIXEL / 20.0)
    curve = fsc(to_fourier(placed.volume, 3), to_fourier(specimen.volume, 3))
    assert placed.correlation > 0.9
    assert resolution(curve, SIZE, PIXEL, 0.5) < 18.0


def test_averages_of_nothing_are_not_trusted() -> None:
    noise = np.random.default_rng(0).normal(size=(20, SIZE, SIZE)).astype(np.float32)
    found = orient(noise, np.full(20, 10), PIXEL, 150.0, CommonLinesSettings(starts=1))
    assert not found.confidence.trusted
    assert found.confidence.line_share < 0.2


def test_trust_needs_lines_and_no_equal_rival() -> None:
    assert Confidence(2.0, 0.0, 3, 3, 0.25).trusted
    assert Confidence(2.0, 1.5, 2, 3, 0.25).trusted
    assert Confidence(2.0, 1.95, 2, 3, 0.4).trusted
    assert not Confidence(2.0, 1.95, 1, 3, 0.25).trusted
    assert not Confidence(2.0, 1.5, 1, 3, 0.15).trusted
    assert not Confidence(2.0, 0.0, 3, 3, 0.02).trusted


def test_the_largest_averages_are_used() -> None:
    counts = np.array([0, 100, 3, 50, 60, 70, 80, 90, 55, 65, 75, 85, 95])
    assert usable(counts, CommonLinesSettings()).tolist() == [1, *range(3, 13)]
    assert usable(counts, CommonLinesSettings(max_averages=10)).tolist() == [1, *range(4, 13)]
    with pytest.raises(BadInputError, match=r"at least 10 good class averages.*stochastic"):
        usable(counts[:9], CommonLinesSettings())
    with pytest.raises(BadInputError, match="at least 10"):
        usable(np.zeros(12, dtype=int), CommonLinesSettings())
