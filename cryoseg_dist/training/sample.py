"""A training patch and the meaning of its labels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLASSES = ("background", "particle", "contamination", "carbon")
BACKGROUND, PARTICLE, CONTAMINATION, CARBON = range(4)

PARTICLE_PX = 16.0
"""Diameter of a particle in pixels of the network's input."""

CORE = 0.33
"""Radius of the disc that marks a particle, in diameters: small enough that touching particles stay apart."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A training patch.

    Attributes
    ----------
    image : ndarray, float32, shape (y, x)
        As ``kernels.normalise.network_input`` gives it.
    labels : ndarray, int64, shape (y, x)
        Background, particle core, contamination, carbon.
    objects : ndarray, int32, shape (y, x)
        Particle numbers, 0 for none.
    valid : ndarray, bool, shape (y, x)
        False where the truth is unknown and the loss must not look.
    """

    image: np.ndarray
    labels: np.ndarray
    objects: np.ndarray
    valid: np.ndarray


SampleSource = Callable[[np.random.Generator, int], Sample]
"""Makes one patch of a given extent; the generator's state determines it."""


def draw_cores(
    centres: np.ndarray, labels: np.ndarray, objects: np.ndarray, first_number: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and objects with the core of a particle drawn at each centre.

    Parameters
    ----------
    centres : ndarray, shape (n, 2)
        Row and column in pixels.
    labels, objects : ndarray, int, shape (y, x)
        What is drawn over; they are not changed.
    first_number : int
        Number of the first particle.
    """
    labels, objects = labels.copy(), objects.copy()
    height, width = labels.shape
    radius = CORE * PARTICLE_PX
    reach = int(np.ceil(radius)) + 1
    for number, (cy, cx) in enumerate(centres, start=first_number):
        y0, y1 = max(0, int(cy) - reach), min(height, int(cy) + reach + 2)
        x0, x1 = max(0, int(cx) - reach), min(width, int(cx) + reach + 2)
        if y0 >= y1 or x0 >= x1:
            continue
        y, x = np.ogrid[y0:y1, x0:x1]
        core = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        labels[y0:y1, x0:x1][core] = PARTICLE
        objects[y0:y1, x0:x1][core] = number
    return labels, objects
