import math

import numpy as np
import torch
from scipy.spatial import cKDTree

from cryoseg_dist.networks.losses import dice_loss, segmentation_loss, weighted_cross_entropy
from cryoseg_dist.networks.weight_map import separation_weights, two_nearest_distances


def test_cross_entropy_counts_pixels_by_weight() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = math.log(3.0)  # Probabilities 1/4, 3/4 and 1/2, 1/2.
    labels = torch.tensor([[[1, 0]]])
    loss = weighted_cross_entropy(logits, labels, torch.tensor([[[3.0, 1.0]]]))
    assert math.isclose(float(loss), (3 * math.log(4 / 3) + math.log(2)) / 4, rel_tol=1e-6)
    left_out = weighted_cross_entropy(logits, labels, torch.tensor([[[1.0, 0.0]]]))
    assert math.isclose(float(left_out), math.log(4 / 3), rel_tol=1e-6)


def test_dice_is_zero_for_the_truth_and_large_for_its_opposite() -> None:
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    truth = 50.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    ones = torch.ones(2, 16, 16)
    assert float(dice_loss(truth, labels, ones)) < 1e-4
    wrong = truth.roll(1, dims=1)
    assert float(dice_loss(wrong, labels, ones)) > 0.95
    # A pixel of no weight plays no part.
    spoilt = truth.clone()
    spoilt[:, :, :4] = -truth[:, :, :4]
    ones[:, :4] = 0
    assert float(dice_loss(spoilt, labels, ones)) < 1e-4
    assert math.isclose(
        float(segmentation_loss(wrong, labels, ones, 0.5)),
        float(weighted_cross_entropy(wrong, labels, ones) + 0.5 * dice_loss(wrong, labels, ones)),
        rel_tol=1e-6,
    )


def test_distances_to_the_two_nearest_objects_against_brute_force() -> None:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:60, :70]
    objects = np.zeros((60, 70), dtype=np.int32)
    for number in range(1, 9):
        objects[np.hypot(y - rng.uniform(0, 60), x - rng.uniform(0, 70)) < rng.uniform(2, 7)] = number
    first, second = two_nearest_distances(objects, 12.0)
    pixels = np.stack((y.ravel(), x.ravel()), axis=1)
    numbers = [n for n in range(1, 9) if (objects == n).any()]
    every = np.sort([cKDTree(np.argwhere(objects == n)).query(pixels)[0] for n in numbers], axis=0)
    every = np.where(every > 12.0, np.inf, every).astype(np.float32)
    np.testing.assert_allclose(first.ravel(), every[0], rtol=1e-6)
    np.testing.assert_allclose(second.ravel(), every[1], rtol=1e-6)


def test_the_ridge_stands_between_touching_objects() -> None:
    objects = np.zeros((40, 60), dtype=np.int32)
    objects[15:25, 10:20] = 1
    objects[15:25, 22:32] = 2
    labels = (objects > 0).astype(np.int64)
    plain = separation_weights(labels, np.zeros_like(objects), border_weight=10.0, sigma_px=3.0)
    assert math.isclose(float(plain.mean()), 1.0, rel_tol=1e-5)
    assert plain[20, 15] > plain[5, 50]
    ridge = separation_weights(labels, objects, border_weight=10.0, sigma_px=3.0) - plain
    # Distances of the gap's pixels to the two objects are 1 and 2.
    assert math.isclose(float(ridge[20, 20]), 10.0 * math.exp(-(3.0**2) / 18.0), rel_tol=1e-4)
    assert ridge[20, 15] == 0.0
    assert ridge[20, 50] == 0.0


def test_weights_of_a_single_class_are_one() -> None:
    nothing = np.zeros((8, 8), dtype=np.int64)
    np.testing.assert_allclose(separation_weights(nothing, nothing.astype(np.int32)), 1.0)
