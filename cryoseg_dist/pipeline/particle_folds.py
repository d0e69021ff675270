"""Folds of particles whose poses are known."""

from typing import Any

import numpy as np

from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.schema.work import Read, Unit

# Images of a fold that are read at once.
PART_IMAGES = 256


def fold_of(key: str, particles: Particles, rows: np.ndarray, poses: np.ndarray, half: int = 0) -> Unit:
    """A fold over some rows, read in parts.

    Parameters
    ----------
    key : str
    particles : Particles
    rows : ndarray, int64, shape (n,)
    poses : ndarray, float32, shape (n, k, 12)
        Of these rows; see :class:`~cryoseg_dist.stages.reconstruct.FoldStage`.
    half : int
        Whose noise weights them.
    """
    reads: dict[str, Read] = {}
    parts: list[dict[str, Any]] = []
    for first in range(0, len(rows), PART_IMAGES):
        some = slice(first, first + PART_IMAGES)
        reads[f"images/{len(parts)}"], which = particles.read_of(rows[some])
        part = {"ctf": particles.transfer(rows[some]), "poses": poses[some]}
        parts.append(part if which is None else part | {"rows": which})
    return Unit(key, reads, {}, {"half": half, "parts": parts})
