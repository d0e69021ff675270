"""Random deformations and grey values for training."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True, slots=True)
class Deformation:
    """Where each output pixel comes from.

    Attributes
    ----------
    rows, columns : ndarray, float32, shape (y, x)
        Source coordinates in pixels.
    """

    rows: np.ndarray
    columns: np.ndarray


def random_deformation(
    size: int,
    rng: np.random.Generator,
    *,
    elastic_px: float = 10.0,
    shift_px: float = 0.0,
    scale: float = 0.0,
    rotate: bool = True,
) -> Deformation:
    """Elastic deformation on a 3 x 3 grid with bicubic interpolation, rotation, shift, scale and flips.

    Parameters
    ----------
    size : int
        Extent of the square output.
    rng : numpy.random.Generator
    elastic_px : float
        Standard deviation of the grid's displacements in pixels (Ronneberger, Fischer & Brox 2015).
    shift_px : float
        Largest shift in pixels.
    scale : float
        Largest relative change of size.
    rotate : bool
        Rotate by any angle.
    """
    centre = (size - 1) / 2.0
    y, x = np.meshgrid(np.arange(size) - centre, np.arange(size) - centre, indexing="ij")
    angle = rng.uniform(0, 2 * np.pi) if rotate else 0.0
    factor = 1.0 + rng.uniform(-scale, scale)
    flip = rng.choice((-1.0, 1.0))
    c, s = np.cos(angle) * factor, np.sin(angle) * factor
    rows, columns = c * y - s * x, flip * (s * y + c * x)
    if elastic_px > 0:
        grid = np.linspace(0, 2, size)
        at = np.meshgrid(grid, grid, indexing="ij")
        rows = rows + ndimage.map_coordinates(rng.normal(0, elastic_px, (3, 3)), at, order=3, mode="nearest")
        columns = columns + ndimage.map_coordinates(rng.normal(0, elastic_px, (3, 3)), at, order=3, mode="nearest")
    rows = rows + rng.uniform(-shift_px, shift_px) + centre
    columns = columns + rng.uniform(-shift_px, shift_px) + centre
    return Deformation(rows.astype(np.float32), columns.astype(np.float32))


def warp_image(image: np.ndarray, deformation: Deformation) -> np.ndarray:
    """Resample grey values bilinearly, mirrored beyond the border."""
    at = (deformation.rows, deformation.columns)
    return ndimage.map_coordinates(image, at, order=1, mode="mirror").astype(np.float32)


def warp_labels(labels: np.ndarray, deformation: Deformation) -> np.ndarray:
    """Resample labels by the nearest pixel, mirrored beyond the border."""
    at = (deformation.rows, deformation.columns)
    return ndimage.map_coordinates(labels, at, order=0, mode="mirror")


def random_grey_values(image: np.ndarray, rng: np.random.Generator, noise: float = 0.3) -> np.ndarray:
    """Change gain, offset, gamma-like skew and add white and smooth noise."""
    out = image * rng.uniform(0.7, 1.4) + rng.normal(0, 0.2)
    out = out + rng.uniform(-0.05, 0.05) * out * np.abs(out)
    out = out + rng.normal(0, rng.uniform(0, noise), image.shape)
    smooth = ndimage.zoom(rng.normal(0, rng.uniform(0, 0.3), (4, 4)), np.array(image.shape) / 4, order=1)
    return (out + smooth).astype(np.float32)
