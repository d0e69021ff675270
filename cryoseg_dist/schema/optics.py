"""The microscope as every stage needs it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Optics:
    """Physical constants of an image.

    Attributes
    ----------
    pixel_size : float
        A per pixel of the images at hand.
    voltage : float
        kV.
    spherical_aberration : float
        mm.
    amplitude_contrast : float
        Fraction in [0, 1).
    """

    pixel_size: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
