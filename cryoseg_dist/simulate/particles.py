"""Particle images with known truth, as extraction gives them: protein white, background of mean 0 and deviation 1."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.fourier import shift, to_real
from cryoseg_dist.kernels.mask import distance_from_centre
from cryoseg_dist.kernels.slices import project
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.specimen import Specimen

# Images made at once. The noise of an image depends on the seed, on its number and on this.
BATCH = 128


def particle_batches(
    specimen: Specimen,
    rotations: Tensor,
    origins: Tensor,
    transfer: Tensor,
    optics: Optics,
    *,
    snr: float = math.inf,
    b_factor: float = 0.0,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield particle images in batches of :data:`BATCH`, in order.

    Parameters
    ----------
    specimen : Specimen
        On the images' pixel size; its box is that of the images.
    rotations : Tensor, shape (n, 3, 3)
        Orientation matrices.
    origins : Tensor, shape (n, 2)
        ``origin_x, origin_y`` in A: the shifts that, added to the images, centre the particles.
    transfer : Tensor, shape (n, 4)
        Defocus U, V (A), angle and phase shift (degrees).
    optics : Optics
    snr : float
        Power of the particle's image over that of the noise, within the particle's disc; over all views of the first
        batch. Infinite for images without noise, in which the signal has the scale of unit power.
    b_factor : float
        Envelope of the CTF, A^2.
    seed : int
        Of the noise.

    Yields
    ------
    Tensor, float32, shape (at most BATCH, size, size)
    """
    size = specimen.volume.shape[-1]
    disc = distance_from_centre(size, 2) <= 0.5 * specimen.diameter / optics.pixel_size
    scale: Tensor | None = None
    for first in range(0, len(rotations), BATCH):
        some = slice(first, first + BATCH)
        spectra = project(specimen.transform, rotations[some].float(), size)
        u, v, angle, phase = transfer[some].float().unbind(1)
        spectra *= ctf(
            size,
            optics.pixel_size,
            u,
            v,
            angle,
            phase,
            torch.full_like(u, b_factor),
            voltage=optics.voltage,
            spherical_aberration=optics.spherical_aberration,
            amplitude_contrast=optics.amplitude_contrast,
        )
        if scale is None:
            power = to_real(spectra, size)[:, disc].var()
            wanted = 1.0 if math.isinf(snr) else snr
            scale = (wanted / power.clamp(min=1e-20)).sqrt()
        images = to_real(shift(spectra, -origins[some].float() / optics.pixel_size, size), size) * scale
        if not math.isinf(snr):
            # Of a seed, torch takes the lower 32 bits alone.
            mixed = int(np.random.SeedSequence([seed, first]).generate_state(1)[0])
            generator = torch.Generator().manual_seed(mixed)
            images += torch.randn(images.shape, generator=generator)
        yield images


def simulate_particles(
    specimen: Specimen,
    rotations: Tensor,
    origins: Tensor,
    transfer: Tensor,
    optics: Optics,
    *,
    snr: float = math.inf,
    b_factor: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """All images of :func:`particle_batches` in one tensor, shape (n, size, size)."""
    size = specimen.volume.shape[-1]
    images = torch.empty((len(rotations), size, size), dtype=dtype)
    first = 0
    for batch in particle_batches(
        specimen, rotations, origins, transfer, optics, snr=snr, b_factor=b_factor, seed=seed
    ):
        images[first : first + len(batch)] = batch
        first += len(batch)
    return images
