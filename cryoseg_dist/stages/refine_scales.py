"""Grey scales of micrographs: ice and dose differ, so that one map fits the particles of one micrograph weaker than those of another.

The scale of a micrograph is that of the least squares fit of the references' slices to its images, weighted by the noise. What regularisation
takes from the references, it takes from all micrographs alike, so scales are told relative to their mean over the particles. Those of
the two half sets are measured apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Scales are expected to differ by so much; it tells how far to trust those of a few particles.
PRIOR_SD = 0.2
LEAST, LARGEST = 0.2, 5.0


def updated_scales(
    scales: np.ndarray,
    records: Sequence[Mapping[str, Any]],
    halves: Sequence[int],
    micrographs: Sequence[np.ndarray],
) -> np.ndarray:
    """Scales after an expectation.

    Parameters
    ----------
    scales : ndarray, shape (2, m)
        By half set and micrograph, those that the expectation worked with.
    records : sequence of Mapping
        Of its units: ``scale`` holds sums, over the particles of each of its micrographs, in their order, of images times slices and of
        slices squared, over the noise.
    halves : sequence of int
        Half set of each unit.
    micrographs : sequence of ndarray
        Micrographs of each unit's particles.

    Returns
    -------
    ndarray, shape (2, m)
    """
    cross, power, count = np.zeros((3, *scales.shape))
    for record, half, some in zip(records, halves, micrographs, strict=True):
        held, n = np.unique(some, return_counts=True)
        cross[half, held] += record["scale"][0]
        power[half, held] += record["scale"][1]
        count[half, held] += n
    fitted = np.where(power > 0, scales * cross / np.maximum(power, 1e-30), scales)
    fitted /= mean_scale(fitted, count)
    # How well a scale is known: slices of scale one, squared, over the noise.
    known, expected = power / np.square(scales), 1.0 / PRIOR_SD**2
    out = np.clip((fitted * known + expected) / (known + expected), LEAST, LARGEST)
    return out / mean_scale(out, count)


def mean_scale(scales: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean over the particles of each half set, not below the least scale; shape (2, 1)."""
    total = count.sum(axis=1, keepdims=True)
    mean = (scales * count).sum(axis=1, keepdims=True) / np.maximum(total, 1)
    return np.where(total > 0, np.maximum(mean, LEAST), 1.0)
