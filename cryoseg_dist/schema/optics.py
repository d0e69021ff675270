"""The microscope as every stage needs it."""

from dataclasses import dataclass

# The matrix of an image whose magnification is one in all directions.
NOT_MAGNIFIED = (1.0, 0.0, 0.0, 1.0)


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
    beam_tilt : tuple of float
        x and y, mrad.
    odd_aberrations, even_aberrations : tuple of float
        Zernike coefficients in RELION's order, rad.
    magnification : tuple of float
        RELION's matrix by rows: an image's frequency (x, y) times it is that of the specimen.
    """

    pixel_size: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    beam_tilt: tuple[float, float] = (0.0, 0.0)
    odd_aberrations: tuple[float, ...] = ()
    even_aberrations: tuple[float, ...] = ()
    magnification: tuple[float, float, float, float] = NOT_MAGNIFIED
