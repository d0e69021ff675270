"""Losses of the segmentation."""

import torch
from torch import Tensor
from torch.nn import functional


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy averaged with a weight for each pixel.

    Parameters
    ----------
    logits : Tensor, shape (b, classes, y, x)
    labels : Tensor, int64, shape (b, y, x)
    weights : Tensor, shape (b, y, x)
        Zero leaves a pixel out.
    """
    loss = functional.cross_entropy(logits, labels, reduction="none")
    return (loss * weights).sum() / weights.sum().clamp(min=1e-6)


def dice_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """One minus the soft Dice coefficient over the batch, averaged over the classes present (Milletari et al. 2016)."""
    probability = torch.softmax(logits, dim=1)
    truth = functional.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).to(probability.dtype)
    used = (weights > 0).to(probability.dtype)[:, None]
    overlap = (probability * truth * used).sum((0, 2, 3))
    total = ((probability + truth) * used).sum((0, 2, 3))
    present = (truth * used).sum((0, 2, 3)) > 0
    dice = (2.0 * overlap + 1.0) / (total + 1.0)
    return 1.0 - dice[present].mean()


def segmentation_loss(logits: Tensor, labels: Tensor, weights: Tensor, dice_share: float) -> Tensor:
    """Weighted cross-entropy plus ``dice_share`` times the Dice loss."""
    loss = weighted_cross_entropy(logits, labels, weights)
    return loss + dice_share * dice_loss(logits, labels, weights) if dice_share else loss
