"""What a page shows of a map's validation: plain arrays and values, every part optional."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cryoseg_dist.report.data_fsc import FscView


@dataclass(frozen=True, slots=True)
class DirectionView:
    """Conical FSC.

    Attributes
    ----------
    axes : ndarray, shape (a, 3)
        Unit vectors, xyz.
    curves : ndarray, shape (a, shells)
    areas : ndarray, shape (a,)
        Weighted area under each curve.
    box : int
        Pixels.
    pixel_size : float
        A.
    words : str
    good : bool
    """

    axes: np.ndarray
    curves: np.ndarray
    areas: np.ndarray
    box: int
    pixel_size: float
    words: str
    good: bool


@dataclass(frozen=True, slots=True)
class LocalView:
    """Local resolution.

    Attributes
    ----------
    density, resolution, mask : ndarray, shape (n, n, n)
        The map, its local resolution in A, and where it counts.
    pixel_size : float
        A.
    words : str
    """

    density: np.ndarray
    resolution: np.ndarray
    mask: np.ndarray
    pixel_size: float
    words: str


@dataclass(frozen=True, slots=True)
class GuinierView:
    """Logarithms of amplitudes against the square of the frequency.

    Attributes
    ----------
    inverse_square, original, weighted, sharpened : ndarray, shape (shells,)
        1/A^2 and natural logarithms.
    resolution : float
        A: nothing finer is drawn of the weighted and sharpened map.
    slope, intercept : float, optional
        Of the fitted line.
    fitted_from : float
        Low-resolution end of the fit, A.
    words : str
    """

    inverse_square: np.ndarray
    original: np.ndarray
    weighted: np.ndarray
    sharpened: np.ndarray
    resolution: float
    slope: float | None
    intercept: float | None
    fitted_from: float
    words: str


@dataclass(frozen=True, slots=True)
class ParticleCurveView:
    """Resolution against the number of particles.

    Attributes
    ----------
    counts, resolutions : sequence
        Particles, A.
    slope, intercept : float
        Of ``1 / d^2`` over the logarithm of the count.
    pixel_size : float
        A.
    words : str
    """

    counts: Sequence[int]
    resolutions: Sequence[float]
    slope: float
    intercept: float
    pixel_size: float
    words: str


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """A map beside another or beside a model.

    Attributes
    ----------
    name : str
        Of the other.
    fsc : FscView
        In both hands.
    words : str
    good : bool
    """

    name: str
    fsc: FscView
    words: str
    good: bool


@dataclass(frozen=True, slots=True)
class ValidationView:
    """All that is known of a map's worth beyond its FSC; parts that are ``None`` or empty are left out.

    Attributes
    ----------
    direction : DirectionView, optional
    local : LocalView, optional
    guinier : GuinierView, optional
    particles : ParticleCurveView, optional
    comparisons : sequence of ComparisonView
    resolution_words : str
    """

    direction: DirectionView | None = None
    local: LocalView | None = None
    guinier: GuinierView | None = None
    particles: ParticleCurveView | None = None
    comparisons: Sequence[ComparisonView] = ()
    resolution_words: str = ""
