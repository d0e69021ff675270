"""Micrographs with known truth, as a detector records them: protein dark, in electron counts.

Protein, ice and carbon scatter as weak phase objects and are seen through the CTF; carbon film, crystals and
dirt also absorb. What leaves the lens is the expected dose of each pixel, which is drawn from a Poisson
distribution and blurred by the detector.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from scipy.fft import next_fast_len
from torch import Tensor

from cryoseg_dist.kernels.ctf import aberration_phase, ctf
from cryoseg_dist.kernels.fourier import shift, to_real
from cryoseg_dist.kernels.mask import distance_from_centre
from cryoseg_dist.kernels.slices import project
from cryoseg_dist.kernels.so3 import matrix_to_euler, random_rotations
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.simulate.scene import carbon_film, dirt, draw_views, place_particles, slow_field
from cryoseg_dist.simulate.specimen import Specimen

BACKGROUND, PARTICLE, CONTAMINATION, CARBON = range(4)
# Around the micrograph, where the frame's Fourier transform wraps, A.
MARGIN = 200.0
# Particles projected at once, and rows of the spectrum whose CTF is computed at once: they bound the memory.
BATCH, ROWS = 64, 512
# Views that the contrast is measured on.
REFERENCE_VIEWS = 32
# Expected counts stay above this share of the dose.
DARKEST = 0.02


class SimulateSettings(Settings):
    """Simulated micrographs."""

    n_micrographs: int = Field(default=8, ge=1)
    """How many."""
    width: int = Field(default=1024, ge=128)
    """Columns in pixels."""
    height: int = Field(default=1024, ge=128)
    """Rows in pixels."""
    particles: int = Field(default=100, ge=0)
    """Particles of a micrograph, as far as they fit; others reach in across its border."""
    spacing: float = Field(default=0.95, gt=0)
    """Closest distance of two particles in diameters; below about 0.9 their images overlap."""
    touching: float = Field(default=0.2, ge=0, le=1)
    """Share of particles that are put right beside another."""
    preferred: float = Field(default=0.0, ge=0)
    """Preference for views along z: 0 for none; the concentration of the viewing directions."""
    defocus_min: float = Field(default=10000.0, gt=0)
    """Smallest mean defocus in A."""
    defocus_max: float = Field(default=25000.0, gt=0)
    """Largest mean defocus in A."""
    astigmatism: float = Field(default=300.0, ge=0)
    """Standard deviation of defocus U minus V in A."""
    b_factor: float = Field(default=60.0, ge=0)
    """Envelope of the CTF in A^2."""
    snr: float = Field(default=0.1, gt=0)
    """Power of the protein's image over that of the shot noise, within a particle's disc, in a micrograph's pixels, at
    the mean defocus."""
    dose: float = Field(default=30.0, gt=1)
    """Mean electron counts of a pixel."""
    mtf_nyquist: float = Field(default=0.7, gt=0, le=1)
    """Transfer of the detector at the Nyquist frequency."""
    ice_noise: float = Field(default=0.3, ge=0)
    """Structure of the ice to 6 A, seen through the CTF, relative to the particles' contrast."""
    ice_gradient: float = Field(default=0.04, ge=0, le=0.3)
    """Standard deviation of the brightness across a micrograph, from the thickness of the ice, as a fraction."""
    carbon: float = Field(default=0.15, ge=0, le=1)
    """Share of micrographs with a carbon edge."""
    contamination: float = Field(default=0.5, ge=0)
    """Mean number of ice crystals or dirt of a micrograph."""
    hot_pixels: float = Field(default=3.0, ge=0)
    """Mean number of pixels of a micrograph with many times the dose."""
    seed: int = Field(default=0, ge=0)
    """Seed; micrograph i depends on the seed and i alone."""

    @model_validator(mode="after")
    def _defocus_range(self) -> "SimulateSettings":
        if self.defocus_min > self.defocus_max:
            raise ValueError("defocus_min must not exceed defocus_max")
        return self


@dataclass(frozen=True)
class SimulatedMicrograph:
    """A micrograph and its truth.

    Attributes
    ----------
    image : ndarray, uint16, shape (y, x)
    particles : DataFrame
        ``coordinate_x/y`` (px), ``rot, tilt, psi`` (degrees), ``origin_x/y`` (A, zero), CTF columns, of the
        particles whose centre lies on the micrograph, clear of carbon and dirt.
    mask : ndarray, uint8, shape (y, x)
        Background, particle (half a diameter around its centre), contamination, carbon.
    """

    image: np.ndarray
    particles: pd.DataFrame
    mask: np.ndarray


@dataclass(frozen=True, slots=True)
class Defocus:
    """Defocus U and V in A and the angle of U in degrees."""

    u: float
    v: float
    angle: float


def _draw_defocus(rng: np.random.Generator, settings: SimulateSettings) -> Defocus:
    mean = rng.uniform(settings.defocus_min, settings.defocus_max)
    half = 0.5 * abs(rng.normal(0, settings.astigmatism))
    return Defocus(mean + half, mean - half, float(rng.uniform(0, 180)))


def simulate_micrograph(
    specimen: Specimen, optics: Optics, settings: SimulateSettings, index: int
) -> SimulatedMicrograph:
    """Make micrograph number ``index``; the same for the same seed and index, in whatever order they are made.

    Parameters
    ----------
    specimen : Specimen
        On the micrographs' pixel size.
    optics : Optics
    settings : SimulateSettings
    index : int
    """
    # A stream for each thing drawn: more dirt does not move a particle.
    streams = np.random.SeedSequence([settings.seed, index]).spawn(6)
    where, views, lens, ice, matter, detector = (np.random.default_rng(s) for s in streams)
    shape = (settings.height, settings.width)
    diameter_px = specimen.diameter / optics.pixel_size
    centres, n_inside = place_particles(
        where, shape, settings.particles, diameter_px, settings.spacing * diameter_px, settings.touching
    )
    generator = torch.Generator().manual_seed(int(views.integers(1 << 62)))
    rotations = draw_views(len(centres), settings.preferred, generator)
    defocus = _draw_defocus(lens, settings)
    unit, contrast = _contrast(specimen, optics, settings)

    margin = math.ceil(MARGIN / optics.pixel_size) + specimen.volume.shape[-1]
    padded = tuple(next_fast_len(n + 2 * margin, real=True) for n in shape)
    inner = np.s_[margin : margin + shape[0], margin : margin + shape[1]]
    # White scattering has the same power at every frequency: that to 6 A is what the setting is about.
    grain = settings.ice_noise * 3.0 / optics.pixel_size
    frame = ice.standard_normal(padded, dtype=np.float32)
    frame *= grain
    mask = np.zeros(shape, dtype=np.uint8)
    _draw_discs(mask, centres, 0.5 * diameter_px)
    absorbed = np.zeros(shape, dtype=np.float32)
    if matter.random() < settings.carbon:
        film = carbon_film(matter, shape)
        frame[inner] += film * matter.standard_normal(shape, dtype=np.float32) * np.float32(3.0 * max(grain, 0.3))
        absorbed += film * np.float32(matter.uniform(0.08, 0.25))
        mask[film] = CARBON
    for _ in range(matter.poisson(settings.contamination)):
        piece = dirt(matter, shape, diameter_px)
        at = (piece.rows, piece.columns)
        frame[inner][at] += np.float32(matter.uniform(2.0, 8.0)) * piece.thickness
        absorbed[at] += np.float32(matter.uniform(0.1, 0.5)) * piece.thickness
        mask[at][piece.thickness > 0] = CONTAMINATION
    _add_views(frame, specimen, rotations, centres + margin, unit)

    expected = _through_lens(frame, optics, defocus, settings.b_factor)[inner]
    # Protein is white after the CTF and dark on the detector; what is absorbed is missing from the beam.
    expected = (1.0 - contrast * expected) * np.exp(-absorbed)
    expected *= 1.0 + settings.ice_gradient * slow_field(ice, shape)
    np.maximum(expected, DARKEST, out=expected)
    image = _record(detector, expected * np.float32(settings.dose), settings)

    truth = _truth(centres, rotations, defocus)[:n_inside]
    x, y = (np.rint(truth[c].to_numpy()).astype(int) for c in ("coordinate_x", "coordinate_y"))
    return SimulatedMicrograph(image, truth[mask[y, x] == PARTICLE].reset_index(drop=True), mask)


def _contrast(specimen: Specimen, optics: Optics, settings: SimulateSettings) -> tuple[float, float]:
    """What projections are divided by so that protein has unit contrast, and the beam's modulation by unit contrast.

    Shot noise has the variance of the dose ``d``, the image of particles the variance ``p`` for unit contrast, so that
    a modulation of ``sqrt(snr / (d p))`` has the wanted ratio. It is measured on the same views at the same defocus
    for every micrograph of the settings: dose and ice do not change from one to the next.
    """
    size = specimen.volume.shape[-1]
    rotations = random_rotations(REFERENCE_VIEWS, torch.Generator().manual_seed(0)).float()
    spectra = project(specimen.transform, rotations, size)
    views = to_real(spectra, size)
    inside = views[views.abs() > 0.05 * views.abs().max()]
    unit = float(inside.std()) or 1.0
    mean = torch.tensor([0.5 * (settings.defocus_min + settings.defocus_max)])
    transfer = ctf(
        size,
        optics.pixel_size,
        mean,
        mean,
        torch.zeros(1),
        b_factor=torch.tensor([settings.b_factor]),
        voltage=optics.voltage,
        spherical_aberration=optics.spherical_aberration,
        amplitude_contrast=optics.amplitude_contrast,
    )
    disc = distance_from_centre(size, 2) <= 0.5 * specimen.diameter / optics.pixel_size
    power = float(to_real(spectra * transfer, size)[:, disc].var()) / unit**2
    return unit, math.sqrt(settings.snr / (settings.dose * max(power, 1e-12)))


def _add_views(frame: np.ndarray, specimen: Specimen, rotations: Tensor, centres: np.ndarray, unit: float) -> None:
    """Add the projections of the specimen to a frame, in place."""
    size = specimen.volume.shape[-1]
    for first in range(0, len(centres), BATCH):
        some = centres[first : first + BATCH]
        whole = np.floor(some).astype(int)
        rest = torch.from_numpy((some - whole).astype(np.float32))
        spectra = project(specimen.transform, rotations[first : first + BATCH].float(), size)
        views = to_real(shift(spectra, rest, size), size).numpy() / np.float32(unit)
        for (x, y), view in zip(whole - size // 2, views, strict=True):
            frame[y : y + size, x : x + size] += view


def _draw_discs(mask: np.ndarray, centres: np.ndarray, radius: float) -> None:
    """Mark the particles in a mask, in place."""
    reach = math.ceil(radius) + 1
    for cx, cy in centres:
        rows = slice(max(0, int(cy) - reach), max(0, int(cy) + reach + 1))
        columns = slice(max(0, int(cx) - reach), max(0, int(cx) + reach + 1))
        part = mask[rows, columns]
        y, x = np.ogrid[rows.start : rows.start + part.shape[0], columns.start : columns.start + part.shape[1]]
        part[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = PARTICLE


def _through_lens(frame: np.ndarray, optics: Optics, defocus: Defocus, b_factor: float) -> np.ndarray:
    """A frame of scattering through the CTF and its envelope."""
    spectrum = torch.fft.rfft2(torch.from_numpy(frame))
    fy = torch.fft.fftfreq(frame.shape[0])[:, None] / optics.pixel_size
    fx = torch.fft.rfftfreq(frame.shape[1])[None, :] / optics.pixel_size
    for first in range(0, len(fy), ROWS):
        rows = fy[first : first + ROWS]
        k = torch.sqrt(fx * fx + rows * rows)
        chi = aberration_phase(
            k,
            torch.atan2(rows, fx),
            torch.tensor(defocus.u),
            torch.tensor(defocus.v),
            torch.tensor(defocus.angle),
            torch.tensor(0.0),
            voltage=optics.voltage,
            spherical_aberration=optics.spherical_aberration,
            amplitude_contrast=optics.amplitude_contrast,
        )
        spectrum[first : first + ROWS] *= torch.sin(chi) * torch.exp(-0.25 * b_factor * k * k)
    return torch.fft.irfft2(spectrum, s=frame.shape).numpy()


def _record(rng: np.random.Generator, expected: np.ndarray, settings: SimulateSettings) -> np.ndarray:
    """Counts of the detector for an expected dose: shot noise, blur, hot pixels; uint16."""
    counts = torch.from_numpy(rng.poisson(expected).astype(np.float32))
    if settings.mtf_nyquist < 1.0:
        decay = -4.0 * math.log(settings.mtf_nyquist)
        fy, fx = torch.fft.fftfreq(counts.shape[0])[:, None], torch.fft.rfftfreq(counts.shape[1])[None, :]
        spectrum = torch.fft.rfft2(counts)
        spectrum *= torch.exp(-decay * fy * fy) * torch.exp(-decay * fx * fx)
        counts = torch.fft.irfft2(spectrum, s=counts.shape)
    image = counts.numpy()
    n_hot = rng.poisson(settings.hot_pixels)
    at = rng.integers(0, image.size, n_hot)
    image.reshape(-1)[at] = settings.dose * rng.uniform(5.0, 50.0, n_hot)
    return np.clip(np.rint(image), 0, 65535).astype(np.uint16)


def _truth(centres: np.ndarray, rotations: Tensor, defocus: Defocus) -> pd.DataFrame:
    rot, tilt, psi = (a.numpy() for a in matrix_to_euler(rotations))
    return pd.DataFrame(
        {
            "coordinate_x": centres[:, 0],
            "coordinate_y": centres[:, 1],
            "optics_group": 1,
            "rot": rot,
            "tilt": tilt,
            "psi": psi,
            "origin_x": 0.0,
            "origin_y": 0.0,
            "defocus_u": defocus.u,
            "defocus_v": defocus.v,
            "defocus_angle": defocus.angle,
            "phase_shift": 0.0,
        }
    )
