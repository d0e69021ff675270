"""Endless training patches with known truth, made at the network's own pixel size.

Random molecules, sparse to crowded and touching, seen through the CTF in structured ice with coloured shot noise,
beside carbon film, ice crystals, aggregates, debris and hot pixels. Lengths are in pixels of the network's input,
grey values in units of a molecule's projected contrast until the network's normalisation.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.normalise import network_input
from cryoseg_dist.training.molecules import paste_views, random_molecule
from cryoseg_dist.training.sample import CARBON, CONTAMINATION, PARTICLE_PX, Sample, draw_cores

MARGIN = 32  # Cut off each side, where the frame's Fourier transforms wrap around.


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _frequency(size: int) -> np.ndarray:
    """Length of the frequency vector of a half spectrum, cycles a pixel."""
    return np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])


def _smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Gaussian noise smoothed over ``scale`` pixels, of unit variance."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-2.0 * (np.pi * scale * _frequency(size)) ** 2)
    field = np.fft.irfft2(spectrum, s=(size, size))
    return field / max(float(field.std()), 1e-9)


def _shot_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Detector noise of unit variance: white, less its loss at high frequency, plus some at low frequency."""
    f = _frequency(size)
    loss = np.exp(-rng.uniform(0.0, 4.0) * f * f)
    low = 1.0 + rng.choice((0.0, 1.0)) * rng.uniform(0.0, 2.0) / (1.0 + (f * rng.uniform(6.0, 30.0)) ** 2)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * loss * low, s=(size, size))
    return field / float(field.std())


def place_particles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Centres (row, column) from none to as many as fit, many of them touching a neighbour."""
    filling = rng.choice((0.0, 0.05, 0.2, 0.5, 0.9), p=(0.06, 0.17, 0.25, 0.27, 0.25))
    wanted = int(filling * (size / PARTICLE_PX) ** 2)
    closest = PARTICLE_PX * rng.uniform(0.72, 1.05)
    clustered = rng.uniform(0.0, 0.6)
    centres = np.zeros((wanted, 2))
    n = 0
    for _ in range(4 * wanted):
        if n == wanted:
            break
        if n and rng.random() < clustered:
            angle = rng.uniform(0, 2 * np.pi)
            candidate = centres[rng.integers(n)] + 1.01 * closest * np.array((np.sin(angle), np.cos(angle)))
        else:
            candidate = rng.uniform(-PARTICLE_PX / 2, size + PARTICLE_PX / 2, 2)
        apart = ((centres[:n] - candidate) ** 2).sum(axis=1).min(initial=np.inf) >= closest**2
        if apart and bool(np.all(np.abs(candidate - size / 2) <= size / 2 + PARTICLE_PX)):
            centres[n] = candidate
            n += 1
    return centres[:n]


def carbon_film(rng: np.random.Generator, size: int) -> np.ndarray:
    """Where the film is: beyond or inside a circle whose edge runs through the patch."""
    y, x = np.ogrid[:size, :size]
    radius = rng.uniform(0.5, 10.0) * size
    angle = rng.uniform(0, 2 * np.pi)
    distance = radius + rng.uniform(-0.38, 0.38) * (size - 2 * MARGIN)
    centre = size / 2 + distance * np.array((np.sin(angle), np.cos(angle)))
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    return inside if rng.random() < 0.5 else ~inside


def dirt(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ice crystals and aggregates: their thickness in units of a molecule's, and where they are."""
    grey, where = np.zeros((size, size)), np.zeros((size, size), dtype=bool)
    y, x = np.ogrid[:size, :size]
    for _ in range(int(rng.integers(1, 5))):
        cy, cx = rng.uniform(MARGIN / 2, size - MARGIN / 2, 2)
        distance, theta = np.hypot(y - cy, x - cx), np.arctan2(y - cy, x - cx)
        radius = PARTICLE_PX * _log_uniform(rng, 0.5, 3.5)
        rough = rng.uniform(0.0, 0.2)
        outline = 1.0 + sum(rng.normal(0, rough) * np.cos(k * theta + rng.uniform(0, 6.28)) for k in range(1, 6))
        depth = np.clip(1.0 - distance / (radius * np.clip(outline, 0.3, None)), 0.0, 1.0)
        profile = rng.choice(("dome", "plate", "rim", "grain"))
        shape = {
            "dome": np.sqrt(depth),
            "plate": (depth > 0) * 1.0,
            "rim": (depth > 0) * np.exp(-4.0 * depth),
            "grain": (depth > 0) * np.abs(_smooth_noise(rng, size, rng.uniform(1.0, 4.0))),
        }[str(profile)]
        sign = 1.0 if rng.random() < 0.85 else -1.0
        texture = 1.0 + rng.uniform(0, 0.4) * _smooth_noise(rng, size, rng.uniform(0.7, 3))
        grey += sign * _log_uniform(rng, 1.2, 8.0) * shape * texture
        where |= depth > 0
    return grey, where


def _transfer(rng: np.random.Generator, size: int, pixel_size: float) -> Tensor:
    """A random contrast transfer function with its envelope."""
    mean = _log_uniform(rng, 0.4e4, 4.5e4)
    astigmatism = abs(rng.normal(0, 0.02)) * mean
    transfer = ctf(
        size,
        pixel_size,
        torch.tensor([mean + astigmatism]),
        torch.tensor([mean - astigmatism]),
        torch.tensor([float(rng.uniform(0, 180))]),
        torch.tensor([90.0 if rng.random() < 0.05 else 0.0]),
        torch.tensor([_log_uniform(rng, 30.0, 600.0)]),
        voltage=float(rng.choice((200.0, 300.0))),
        spherical_aberration=2.7,
        amplitude_contrast=float(rng.uniform(0.07, 0.2)),
    )[0]
    return transfer.abs() if rng.random() < 0.12 else transfer


def synthetic_sample(rng: np.random.Generator, size: int, snr: float | None = None) -> Sample:
    """A patch, determined by the generator's state.

    Parameters
    ----------
    rng : numpy.random.Generator
    size : int
        Side of the patch in pixels.
    snr : float, optional
        Variance of a molecule's image over that of the noise, at the network's pixel size; drawn between 0.06 and
        10 when not given. Binning by ``b`` raises it by up to ``b**2``: 0.06 is about 0.001 at 1 A per pixel for
        a molecule of 128 A.
    """
    frame = size + 2 * MARGIN
    molecule = random_molecule(rng)
    centres = place_particles(rng, frame)
    particles = paste_views(molecule, centres, rng.uniform(0.8, 1.2, len(centres)), frame, rng)
    transfer = _transfer(rng, frame, _log_uniform(rng, 70.0, 350.0) / PARTICLE_PX)

    def imaged(image: np.ndarray) -> np.ndarray:
        return to_real(to_fourier(torch.from_numpy(image.astype(np.float32))) * transfer, frame).numpy()

    # The contrast that noise is measured against: of one view in focus of its own CTF, whatever the crowding.
    middle = np.full((1, 2), frame / 2)
    single = imaged(paste_views(molecule, middle, np.ones(1), frame, rng))
    half = int(PARTICLE_PX / 2)
    window = np.s_[frame // 2 - half : frame // 2 + half, frame // 2 - half : frame // 2 + half]
    contrast = float(single[window].std())

    blank = np.zeros((frame, frame), dtype=np.int64)
    labels, objects = draw_cores(centres, blank, blank.astype(np.int32))
    scattering = particles + rng.uniform(0.0, 0.12) * _smooth_noise(rng, frame, rng.uniform(0.5, 1.5))
    absorbed = np.zeros((frame, frame))
    if rng.random() < 0.25:
        scattering = scattering + _debris(rng, frame)
    if rng.random() < 0.15:
        film = carbon_film(rng, frame)
        texture = _smooth_noise(rng, frame, rng.uniform(0.3, 1.0)) * rng.uniform(0.15, 0.6)
        scattering = np.where(film, rng.uniform(0.5, 1.0) * scattering + texture + rng.uniform(0.3, 3.0), scattering)
        absorbed = absorbed + film * rng.uniform(0.5, 6.0) * contrast
        labels[film], objects[film] = CARBON, 0
    if rng.random() < 0.35:
        grey, where = dirt(rng, frame)
        scattering = scattering + grey
        absorbed = absorbed + grey * rng.uniform(0.0, 1.5) * contrast
        covered = ndimage.binary_dilation(where, iterations=2)
        labels[covered], objects[covered] = CONTAMINATION, 0
    drawn = _log_uniform(rng, 0.06, 10.0)
    noise = contrast / np.sqrt(drawn if snr is None else snr)
    seen = imaged(scattering) + absorbed + noise * _shot_noise(rng, frame)
    gradient = _smooth_noise(rng, frame, frame / rng.uniform(3.5, 7.0))
    seen = (seen + rng.uniform(0.0, 1.5) * noise * gradient) * (1.0 + rng.uniform(0.0, 0.1) * gradient)
    if rng.random() < 0.2:
        hot = rng.integers(0, frame, (int(rng.integers(1, 6)), 2))
        seen[hot[:, 0], hot[:, 1]] += rng.choice((-1, 1)) * rng.uniform(5, 40) * noise
    prepared = network_input(torch.from_numpy(seen.astype(np.float32)), PARTICLE_PX, protein_dark=False).numpy()
    inner = np.s_[MARGIN : MARGIN + size, MARGIN : MARGIN + size]
    return Sample(
        np.ascontiguousarray(prepared[inner]),
        np.ascontiguousarray(labels[inner]),
        np.ascontiguousarray(objects[inner]),
        np.ones((size, size), dtype=bool),
    )


def _debris(rng: np.random.Generator, size: int) -> np.ndarray:
    """Fragments much smaller than a particle, which belong to the background."""
    n = int(rng.uniform(0.02, 0.4) * (size / PARTICLE_PX) ** 2)
    points = np.zeros((size, size))
    at = rng.integers(0, size, (n, 2))
    points[at[:, 0], at[:, 1]] = rng.uniform(0.2, 0.8, n)
    sigma = PARTICLE_PX * rng.uniform(0.05, 0.12)
    return 2.0 * np.pi * sigma**2 * ndimage.gaussian_filter(points, sigma)
