"""The pixel weights that separate touching objects."""

import math

import numpy as np
from scipy import ndimage


def two_nearest_distances(objects: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each pixel to the nearest and the second nearest object.

    Parameters
    ----------
    objects : ndarray, int, shape (y, x)
        Instance number of each pixel, 0 for none.
    reach : float
        Pixels; larger distances are given as infinite.

    Returns
    -------
    tuple of ndarray, float32, shape (y, x)
    """
    first = np.full(objects.shape, np.inf, dtype=np.float32)
    second = first.copy()
    grow = math.ceil(reach)
    for number, box in enumerate(ndimage.find_objects(objects), start=1):
        if box is None:
            continue
        window = tuple(slice(max(0, s.start - grow), s.stop + grow) for s in box)
        distance = ndimage.distance_transform_edt(objects[window] != number).astype(np.float32)
        distance[distance > reach] = np.inf
        nearest = first[window]
        second[window] = np.minimum(second[window], np.maximum(nearest, distance))
        first[window] = np.minimum(nearest, distance)
    return first, second


def separation_weights(
    labels: np.ndarray, objects: np.ndarray, *, border_weight: float = 10.0, sigma_px: float = 5.0
) -> np.ndarray:
    """Class-balancing weights plus a ridge between neighbouring objects.

    ``w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2))`` with the distances to the nearest and second nearest object
    (Ronneberger, Fischer & Brox 2015); the ridge applies to the background.

    Parameters
    ----------
    labels : ndarray, int, shape (y, x)
        Class of each pixel, 0 the background.
    objects : ndarray, int, shape (y, x)
        Instance number of each pixel, 0 for none.
    border_weight : float
        ``w0``.
    sigma_px : float

    Returns
    -------
    ndarray, float32, shape (y, x)
        The mean is one, the ridge not counted.
    """
    counts = np.bincount(labels.ravel(), minlength=2).astype(float)
    # The square root keeps rare classes from drowning the rest.
    class_weight = np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1.0) / labels.size), 0.0)
    weights = class_weight[labels]
    weights /= weights.mean()
    # Beyond four sigma the ridge is below 4e-4 of its height.
    first, second = two_nearest_distances(objects, 4.0 * sigma_px)
    ridge = border_weight * np.exp(-((first + second) ** 2) / (2.0 * sigma_px**2))
    return (weights + ridge * (labels == 0)).astype(np.float32)
