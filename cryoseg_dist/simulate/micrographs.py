"""Micrographs with known truth, as a detector records them: protein dark, in electron counts."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from cryoseg_dist.kernels.ctf import aberration_phase
from cryoseg_dist.kernels.fourier import to_real
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.kernels.so3 import matrix_to_euler, random_rotations
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.simulate.specimen import Specimen

BACKGROUND, PARTICLE, CONTAMINATION, CARBON = range(4)
MARGIN = 64


class SimulateSettings(Settings):
    """Simulated micrographs."""

    n_micrographs: int = Field(default=8, ge=1)
    """How many."""
    width: int = Field(default=1024, ge=128)
    """Columns in pixels."""
    height: int = Field(default=1024, ge=128)
    """Rows in pixels."""
    particles: int = Field(default=100, ge=0)
    """Particles of a micrograph, as far as they fit."""
    spacing: float = Field(default=0.95, gt=0)
    """Closest distance of two particles in diameters; a share of them touches."""
    touching: float = Field(default=0.2, ge=0, le=1)
    """Share of particles that are put right beside another."""
    defocus_min: float = Field(default=10000.0, gt=0)
    """Smallest mean defocus in A."""
    defocus_max: float = Field(default=25000.0, gt=0)
    """Largest mean defocus in A."""
    astigmatism: float = Field(default=300.0, ge=0)
    """Standard deviation of defocus U minus V in A."""
    snr: float = Field(default=0.1, gt=0)
    """Signal power over noise power in a particle's projected area, at the micrograph's pixel size."""
    ice_noise: float = Field(default=0.3, ge=0)
    """Structure of the ice, seen through the CTF, relative to the particles' contrast."""
    b_factor: float = Field(default=60.0, ge=0)
    """Envelope of the CTF in A^2."""
    dose: float = Field(default=30.0, gt=0)
    """Mean counts of a pixel."""
    carbon: float = Field(default=0.15, ge=0, le=1)
    """Share of micrographs with a carbon edge."""
    contamination: float = Field(default=0.5, ge=0)
    """Mean number of ice crystals or dirt of a micrograph."""
    preferred: float = Field(default=0.0, ge=0)
    """Preference for views along z: 0 for none; the concentration of the viewing directions."""
    seed: int = 0
    """Seed; micrograph i depends on the seed and i alone."""


@dataclass(frozen=True)
class SimulatedMicrograph:
    """A micrograph and its truth.

    Attributes
    ----------
    image : ndarray, uint16, shape (y, x)
    particles : DataFrame
        ``coordinate_x/y`` (px), ``rot, tilt, psi`` (degrees), ``origin_x/y`` (A), CTF columns.
    mask : ndarray, uint8, shape (y, x)
        Background, particle (half a diameter around its centre), contamination, carbon.
    """

    image: np.ndarray
    particles: pd.DataFrame
    mask: np.ndarray


def _places(rng: np.random.Generator, settings: SimulateSettings, diameter_px: float) -> np.ndarray:
    """Centres (x, y) with whole windows inside the micrograph's border, none closer than allowed."""
    closest = settings.spacing * diameter_px
    edge = 0.5 * diameter_px
    limit = np.array([settings.width, settings.height]) - 1 - edge
    centres: list[np.ndarray] = []
    for _ in range(60 * settings.particles):
        if len(centres) >= settings.particles:
            break
        if centres and rng.random() < settings.touching:
            angle = rng.uniform(0, 2 * np.pi)
            step = 1.02 * closest * np.array((np.cos(angle), np.sin(angle)))
            candidate = centres[rng.integers(len(centres))] + step
        else:
            candidate = rng.uniform(edge, limit)
        inside = (candidate >= edge).all() and (candidate <= limit).all()
        if inside and all(np.hypot(*(candidate - c)) >= closest for c in centres):
            centres.append(candidate)
    return np.array(centres).reshape(-1, 2)


def _views(n: int, preferred: float, generator: torch.Generator) -> Tensor:
    """Orientations, uniform or crowded about views along z."""
    rotations = random_rotations(n, generator)
    if preferred <= 0 or n == 0:
        return rotations
    kept = torch.empty((0, 3, 3), dtype=rotations.dtype)
    while len(kept) < n:
        rotations = random_rotations(4 * n, generator)
        chance = torch.exp(preferred * (rotations[:, 2, 2].abs() - 1.0))
        kept = torch.cat((kept, rotations[torch.rand(4 * n, generator=generator) < chance]))
    return kept[:n]


def _carbon(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 3.0) * max(shape)
    reach = radius + rng.uniform(0.15, 0.45) * max(shape)
    cy, cx = shape[0] / 2 + reach * np.sin(angle), shape[1] / 2 + reach * np.cos(angle)
    return (y - cy) ** 2 + (x - cx) ** 2 < radius**2


def _smooth(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), scale, mode="wrap")
    return field / max(float(field.std()), 1e-6)


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
    rng = np.random.default_rng([settings.seed, index])
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    diameter_px = specimen.diameter / optics.pixel_size
    centres = _places(rng, settings, diameter_px)
    rotations = _views(len(centres), settings.preferred, generator)
    box = specimen.volume.shape[0]
    reach = MARGIN + box
    frame = np.zeros((settings.height + 2 * reach, settings.width + 2 * reach), dtype=np.float32)
    signal = 1.0
    if len(centres):
        views = to_real(project(prepare_volume(specimen.volume), rotations.float(), box), box).numpy()
        inside = views[np.abs(views) > 0.05 * np.abs(views).max()]
        signal = float(inside.std()) or 1.0
        for (cx, cy), view in zip(centres, views, strict=True):
            ix, iy = math.floor(cx), math.floor(cy)
            moved = ndimage.shift(view, (cy - iy, cx - ix), order=1)
            top, left = iy + reach - box // 2, ix + reach - box // 2
            frame[top : top + box, left : left + box] += moved
    frame /= signal
    mask = np.zeros((settings.height, settings.width), dtype=np.uint8)
    y, x = np.meshgrid(np.arange(settings.height), np.arange(settings.width), indexing="ij")
    for cx, cy in centres:
        mask[(y - cy) ** 2 + (x - cx) ** 2 < (0.5 * diameter_px) ** 2] = PARTICLE
    inner = np.s_[reach:-reach, reach:-reach]
    if rng.random() < settings.carbon:
        film = _carbon(rng, mask.shape)
        frame[inner] += film * (2.0 + 1.2 * _smooth(rng, mask.shape, 1.5))
        mask[film] = CARBON
    for _ in range(rng.poisson(settings.contamination)):
        cy, cx = rng.uniform(0, settings.height), rng.uniform(0, settings.width)
        theta = np.arctan2(y - cy, x - cx)
        radius = diameter_px * rng.uniform(0.3, 1.2)
        lobes = sum(rng.normal(0, 0.12) * np.cos(k * theta + rng.uniform(0, 6.28)) for k in range(1, 5))
        depth = np.clip(1.0 - np.hypot(y - cy, x - cx) / (radius * (1.0 + lobes)), 0, 1)
        frame[inner] += 6.0 * np.sqrt(depth)
        mask[depth > 0] = CONTAMINATION
    frame += settings.ice_noise * _smooth(rng, frame.shape, 1.0)
    u, v, angle = _defocus(rng, settings)
    seen = _imaged(frame, optics, u, v, angle, settings.b_factor)[inner]
    # Particles have unit contrast before the CTF; what is left of it after defines the noise.
    clean = mask == PARTICLE
    power = float(seen[clean].var()) if clean.any() else 1.0
    noise = math.sqrt(power / settings.snr)
    field = seen + noise * rng.standard_normal(seen.shape, dtype=np.float32)
    gradient = 0.3 * noise * _smooth(rng, seen.shape, max(seen.shape) / 6)
    # The counts' own noise (Poisson, sqrt(dose)) stands for `noise`: the scale makes them equal.
    counts = settings.dose - (field + gradient) * math.sqrt(settings.dose) / noise
    table = _truth(centres, rotations, u, v, angle)
    kept = np.array([mask[round(cy), round(cx)] == PARTICLE for cx, cy in centres], dtype=bool)
    image = np.clip(np.round(counts), 0, 65535).astype(np.uint16)
    return SimulatedMicrograph(image, table[kept].reset_index(drop=True), mask)


def _defocus(rng: np.random.Generator, settings: SimulateSettings) -> tuple[float, float, float]:
    mean = rng.uniform(settings.defocus_min, settings.defocus_max)
    half = 0.5 * abs(rng.normal(0, settings.astigmatism))
    return mean + half, mean - half, float(rng.uniform(0, 180))


def _imaged(frame: np.ndarray, optics: Optics, u: float, v: float, angle: float, b_factor: float) -> np.ndarray:
    """A frame through the CTF and its envelope."""
    fy = torch.fft.fftfreq(frame.shape[0])[:, None]
    fx = torch.fft.rfftfreq(frame.shape[1])[None, :]
    k = torch.sqrt(fx * fx + fy * fy) / optics.pixel_size
    chi = aberration_phase(
        k,
        torch.atan2(fy, fx),
        torch.tensor(u),
        torch.tensor(v),
        torch.tensor(angle),
        torch.tensor(0.0),
        voltage=optics.voltage,
        spherical_aberration=optics.spherical_aberration,
        amplitude_contrast=optics.amplitude_contrast,
    )
    transfer = torch.sin(chi) * torch.exp(-0.25 * b_factor * k * k)
    return torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(frame)) * transfer, s=frame.shape).numpy()


def _truth(centres: np.ndarray, rotations: Tensor, u: float, v: float, angle: float) -> pd.DataFrame:
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
            "defocus_u": u,
            "defocus_v": v,
            "defocus_angle": angle,
            "phase_shift": 0.0,
        }
    )
