"""What a page shows of Fourier shell correlation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class FscView:
    """Fourier shell correlation curves of one box.

    Attributes
    ----------
    curves : Mapping of str to ndarray, shape (shells,)
        Any of ``unmasked``, ``masked``, ``randomised``, ``corrected``.
    box : int
        Pixels.
    pixel_size : float
        A.
    resolution, resolution_half : float, optional
        A at 0.143 and 0.5.
    """

    curves: Mapping[str, np.ndarray]
    box: int
    pixel_size: float
    resolution: float | None = None
    resolution_half: float | None = None
