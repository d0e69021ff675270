"""The Ewald sphere: what an image of a thick specimen holds is two curved sheets of its transform.

An image's transform at a frequency ``k`` is ``(e^(-i theta) F(k, s) + e^(i theta) F(k, -s)) / 2`` with ``theta = chi - pi / 2`` and
``s = wavelength k^2 / 2``, up to the curvature's sign (DeRosier 2000; Russo & Henderson 2018). A flat sheet, ``s = 0``, gives ``sin(chi) F``.
"""

import torch
from torch import Tensor

from cryoseg_dist.kernels.ctf import wavelength
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import take_pixels

# Images transformed at once: few, for the cache.
TRANSFORMED = 32
QUARTER_TURN = 90.0


def curvature(voltage: float, size: int, pixel_size: float) -> float:
    """Depth of the sheet over the square of the radius, both in Fourier pixels of a box of ``size``.

    Parameters
    ----------
    voltage : float
        kV.
    size : int
    pixel_size : float
        A.
    """
    return wavelength(voltage) / (2.0 * size * pixel_size)


def overlap(defocus: Tensor, frequency: Tensor, voltage: float, diameter: float) -> Tensor:
    """How much of one sheet's copy of a round particle lies on the other's, which defocus moves apart.

    ``(2 / pi) (acos a - a sqrt(1 - a^2))``, that of two discs, ``a = 2 defocus wavelength k / diameter``.

    Parameters
    ----------
    defocus : Tensor, shape (n,)
        A.
    frequency : Tensor, shape (p,)
        1/A.
    voltage : float
        kV.
    diameter : float
        A.

    Returns
    -------
    Tensor, shape (n, p)
    """
    a = (2.0 * wavelength(voltage) / diameter * defocus.abs()[:, None] * frequency).clamp(max=1.0)
    return (2.0 / torch.pi) * (torch.acos(a) - a * torch.sqrt(1.0 - a * a))


def weigh_sheets(
    images: Tensor,
    microscope: Microscope,
    columns: Tensor,
    inverse_noise: Tensor,
    ky: Tensor,
    kx: Tensor,
    diameter: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Transform images and turn the phase of either sheet back, for two insertions.

    Parameters
    ----------
    images : Tensor, shape (b, size, size)
    microscope : Microscope
    columns : Tensor, shape (b, 4, 5 or 7)
    inverse_noise : Tensor, float32, shape (p,)
    ky, kx : Tensor, int64, shape (p,)
    diameter : float
        Of the particle, A.

    Returns
    -------
    above, below : Tensor, complex64, shape (b, p)
        For the sheets at ``s`` and ``-s``.
    weights : Tensor, float32, shape (b, p)
        Of each, ``(1 + A (2 CTF^2 - 1)) / 4``, ``A`` being the overlap of the sheets: they add up to ``CTF^2`` where the sheets are one.
    """
    size, group = images.shape[-1], microscope.groups[0]
    above = torch.empty((len(images), len(ky)), dtype=torch.complex64)
    below, weights = torch.empty_like(above), torch.empty(above.shape)
    frequency = torch.sqrt((ky * ky + kx * kx).float()) / (size * group.pixel_size)
    turned = columns.clone()
    turned[:, 3] += QUARTER_TURN
    for first in range(0, len(images), TRANSFORMED):
        some = slice(first, first + TRANSFORMED)
        spectra = take_pixels(to_fourier(images[some].to(torch.float32)), ky, kx)
        spectra = microscope.in_phase(spectra, columns[some]) * (0.5 * inverse_noise)
        sine, cosine = microscope.sine(columns[some]), microscope.sine(turned[some])
        turn = torch.complex(sine, -cosine)
        torch.mul(spectra, turn, out=above[some])
        torch.mul(spectra, turn.conj(), out=below[some])
        shared = overlap(columns[some, :2].mean(dim=1), frequency, group.voltage, diameter)
        torch.mul(1.0 + shared * (2.0 * sine * sine - 1.0), 0.25 * inverse_noise, out=weights[some])
        microscope.dampen(weights[some], columns[some], above[some], below[some])
    return above, below, weights
