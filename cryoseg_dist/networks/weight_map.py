"""The pixel weights that separate touching objects."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree


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
        Mean of the class weights is one.
    """
    counts = np.bincount(labels.ravel(), minlength=2).astype(float)
    # The square root keeps rare classes from drowning the rest.
    class_weight = np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1.0) / labels.size), 0.0)
    weights = class_weight[labels]
    weights /= max(float(weights.mean()), 1e-6)
    edges = (objects > 0) & (ndimage.grey_erosion(objects, size=3) != objects)
    points = np.argwhere(edges)
    ids = objects[edges]
    if len(np.unique(ids)) < 2:
        return weights.astype(np.float32)
    background = np.argwhere(labels == 0)
    distance, nearest = cKDTree(points).query(background, k=min(64, len(points)), distance_upper_bound=4 * sigma_px)
    known = np.append(ids, -1)[nearest]
    first = distance[:, 0]
    other = np.where((known != known[:, :1]) & (known >= 0), distance, np.inf).min(axis=1)
    ridge = np.zeros(len(background))
    close = np.isfinite(other)
    ridge[close] = border_weight * np.exp(-((first[close] + other[close]) ** 2) / (2.0 * sigma_px**2))
    weights[background[:, 0], background[:, 1]] += ridge
    return weights.astype(np.float32)
