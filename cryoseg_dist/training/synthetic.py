"""Endless training patches with known truth, made at the network's own pixel size.

Random molecules of many shapes, crowded and touching, seen through the CTF in structured ice with shot noise, beside
carbon, ice crystals and dirt. A length here is in pixels of the network's input, where a particle measures
``PARTICLE_PX``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.normalise import network_input
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.symmetry import operators

PARTICLE_PX = 16.0
CORE = 0.33
BACKGROUND, PARTICLE, CONTAMINATION, CARBON = range(4)


@dataclass(frozen=True, slots=True)
class Sample:
    """A training patch.

    Attributes
    ----------
    image : ndarray, float32, shape (y, x)
        As ``kernels.normalise.network_input`` gives it.
    labels : ndarray, int64, shape (y, x)
        Background, particle core, contamination, carbon.
    objects : ndarray, int32, shape (y, x)
        Particle numbers, 0 for none.
    valid : ndarray, bool, shape (y, x)
        False where the truth is unknown and the loss must not look.
    """

    image: np.ndarray
    labels: np.ndarray
    objects: np.ndarray
    valid: np.ndarray


def random_molecule(rng: np.random.Generator, size: int = 24) -> np.ndarray:
    """A density of one of many shapes, ``PARTICLE_PX`` across, of unit projected contrast."""
    radius = PARTICLE_PX / 2
    kind = rng.choice(("globule", "shell", "chain", "barrel", "assembly"), p=(0.3, 0.2, 0.2, 0.12, 0.18))
    axis = np.arange(size) - size // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    r = np.sqrt(x**2 + y**2 + z**2)
    density = np.zeros((size,) * 3)

    def ball(centre: np.ndarray, sigma: float) -> np.ndarray:
        return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) / (2 * sigma**2))

    if kind == "shell":
        inner = rng.uniform(0.45, 0.75) * radius
        density = ((r < radius * 0.97) & (r > inner)).astype(float)
        for direction in random_rotations(12, torch.Generator().manual_seed(int(rng.integers(1 << 31)))).numpy():
            density -= rng.uniform(0, 0.6) * ball(direction[2] * radius * 0.85, rng.uniform(1.0, 2.0))
    elif kind == "barrel":
        outer, inner = rng.uniform(0.5, 0.75) * radius, rng.uniform(0.1, 0.35) * radius
        rho = np.sqrt(x**2 + y**2)
        density = ((rho < outer) & (rho > inner) & (np.abs(z) < radius * rng.uniform(0.6, 0.95))).astype(float)
        density *= 1.0 + rng.uniform(0, 0.6) * np.cos(2 * np.pi * z / rng.uniform(4, 8))
    elif kind == "chain":
        step, at = rng.normal(0, 1, 3), np.zeros(3)
        for _ in range(int(rng.integers(4, 10))):
            step = 0.6 * step + rng.normal(0, 1.6, 3)
            at = at + step
            density += ball(at, rng.uniform(1.3, 2.4))
    else:
        group = "C1" if kind == "globule" else str(rng.choice(("C2", "C3", "C4", "D2", "D3", "D7", "T", "O")))
        ops = operators(group).numpy()
        for _ in range(int(rng.integers(3, 12)) if kind == "globule" else int(rng.integers(1, 4))):
            centre = rng.normal(0, 1, 3)
            centre *= rng.uniform(0.1, 0.8) * radius / np.linalg.norm(centre)
            sigma = rng.uniform(1.0, 2.8)
            for s in ops:
                density += ball(s @ centre, sigma)
    density = ndimage.gaussian_filter(np.clip(density, 0, None), 0.7)
    return _fit_to_diameter(density, rng)


def _fit_to_diameter(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centre on the mass and scale so that the longest extent is about ``PARTICLE_PX``."""
    size = density.shape[0]
    solid = density > 0.2 * density.max()
    points = np.argwhere(solid) - np.argwhere(solid).mean(axis=0)
    extent = 2.0 * np.quantile(np.linalg.norm(points, axis=1), 0.98)
    zoom = np.clip(extent / PARTICLE_PX, 0.4, 2.5) / rng.uniform(0.85, 1.05)
    centre = np.array(ndimage.center_of_mass(density))
    out = ndimage.affine_transform(density, np.eye(3) * zoom, offset=centre - zoom * (size // 2), order=1)
    return (out / max(float(out.sum(axis=0).max()), 1e-6)).astype(np.float32)


def _place(rng: np.random.Generator, size: int) -> np.ndarray:
    """Centres (y, x), from sparse to crowded, some pairs touching."""
    density = rng.choice((0.05, 0.2, 0.5, 0.9))
    n = int(density * (size / PARTICLE_PX) ** 2 * 0.9)
    closest = PARTICLE_PX * rng.uniform(0.8, 1.1)
    centres: list[np.ndarray] = []
    for _ in range(4 * n):
        if len(centres) >= n:
            break
        if centres and rng.random() < 0.3:
            angle = rng.uniform(0, 2 * np.pi)
            candidate = centres[rng.integers(len(centres))] + closest * 1.02 * np.array((np.sin(angle), np.cos(angle)))
        else:
            candidate = rng.uniform(-PARTICLE_PX / 2, size + PARTICLE_PX / 2, 2)
        if all(np.hypot(*(candidate - c)) >= closest for c in centres):
            centres.append(candidate)
    return np.array(centres).reshape(-1, 2)


def _smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), scale, mode="wrap")
    return field / max(float(field.std()), 1e-6)


def _carbon(rng: np.random.Generator, size: int) -> np.ndarray:
    """The side of a straight or curved edge where the film is."""
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    radius = rng.uniform(3, 40) * size / 4
    angle = rng.uniform(0, 2 * np.pi)
    near = rng.uniform(-0.3, 0.4) * size
    cy, cx = size / 2 + (radius + near) * np.sin(angle), size / 2 + (radius + near) * np.cos(angle)
    inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    return inside if rng.random() < 0.5 or radius < size else ~inside


def _dirt(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ice crystals and aggregates: their grey values and where they are."""
    grey, where = np.zeros((size, size)), np.zeros((size, size), dtype=bool)
    for _ in range(int(rng.integers(1, 5))):
        y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
        cy, cx = rng.uniform(0, size, 2)
        theta = np.arctan2(y - cy, x - cx)
        radius = PARTICLE_PX * rng.uniform(0.35, 3.0)
        lobes = sum(rng.normal(0, 0.15) * np.cos(k * theta + rng.uniform(0, 6.28)) for k in range(1, 6))
        depth = 1.0 - np.hypot(y - cy, x - cx) / (radius * (1.0 + lobes))
        inside = depth > 0
        # A dome, a plate, or a crystal with a bright rim.
        profile = rng.choice(("dome", "plate", "rim"))
        shape = {
            "dome": np.sqrt(np.clip(depth, 0, 1)),
            "plate": inside * 1.0,
            "rim": inside * np.exp(-4 * np.clip(depth, 0, 1)),
        }[profile]
        sign = 1.0 if rng.random() < 0.75 else -1.0
        grey += sign * rng.uniform(1.5, 6.0) * shape * (1.0 + 0.3 * _smooth_noise(rng, size, rng.uniform(0.7, 3)))
        where |= inside
    return grey, where


def synthetic_sample(rng: np.random.Generator, size: int) -> Sample:
    """A patch, determined by the generator's state."""
    frame = size + 64
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    diameter = np.exp(rng.uniform(np.log(70.0), np.log(350.0)))
    pixel_size = diameter / PARTICLE_PX
    molecule = random_molecule(rng)
    box = molecule.shape[0]
    centres = _place(rng, frame)
    specimen = np.zeros((frame + 2 * box, frame + 2 * box), dtype=np.float32)
    labels = np.zeros((frame, frame), dtype=np.int64)
    objects = np.zeros((frame, frame), dtype=np.int32)
    rows, columns = np.meshgrid(np.arange(frame), np.arange(frame), indexing="ij")
    if len(centres):
        reference = prepare_volume(torch.from_numpy(molecule))
        rotations = random_rotations(len(centres), generator).float()
        views = to_real(project(reference, rotations, box), box).numpy()
        for number, ((cy, cx), view) in enumerate(zip(centres, views, strict=True), start=1):
            iy, ix = int(np.floor(cy)), int(np.floor(cx))
            moved = ndimage.shift(view, (cy - iy, cx - ix), order=1)
            top, left = iy + box - box // 2, ix + box - box // 2
            if 0 <= top <= frame + box and 0 <= left <= frame + box:
                specimen[top : top + box, left : left + box] += moved
            y0, y1 = max(0, iy - 8), min(frame, iy + 9)
            x0, x1 = max(0, ix - 8), min(frame, ix + 9)
            if y0 < y1 and x0 < x1:
                near = np.s_[y0:y1, x0:x1]
                core = (rows[near] - cy) ** 2 + (columns[near] - cx) ** 2 <= (CORE * PARTICLE_PX) ** 2
                labels[near][core] = PARTICLE
                objects[near][core] = number
    image = specimen[box : box + frame, box : box + frame]
    snr = np.exp(rng.uniform(np.log(0.5), np.log(30.0)))
    ice = _smooth_noise(rng, frame, rng.uniform(0.5, 1.2)) * rng.uniform(0.1, 0.35)
    if rng.random() < 0.3:
        film = _carbon(rng, frame)
        texture = _smooth_noise(rng, frame, rng.uniform(0.6, 2.5)) * rng.uniform(0.2, 0.9)
        image = image + film * (rng.uniform(0.2, 3.0) + texture)
        labels[film], objects[film] = CARBON, 0
    if rng.random() < 0.35:
        grey, where = _dirt(rng, frame)
        image = image + grey
        near = ndimage.binary_dilation(where, iterations=2)
        labels[near], objects[near] = CONTAMINATION, 0
    seen = _through_ctf(image + ice, pixel_size, rng)
    # Both standard deviations are those of a patch full of particles, whatever the crowding.
    noise = 0.3 / np.sqrt(snr)
    seen = seen + noise * rng.normal(0, 1, seen.shape)
    seen = seen + rng.uniform(0, 3) * _smooth_noise(rng, frame, frame / rng.uniform(3, 6))
    if rng.random() < 0.2:
        hot = rng.integers(0, frame, (int(rng.integers(1, 6)), 2))
        seen[hot[:, 0], hot[:, 1]] += rng.choice((-1, 1)) * rng.uniform(5, 40)
    prepared = network_input(torch.from_numpy(seen.astype(np.float32)), PARTICLE_PX, protein_dark=False).numpy()
    inner = np.s_[32 : 32 + size, 32 : 32 + size]
    return Sample(
        np.ascontiguousarray(prepared[inner]),
        np.ascontiguousarray(labels[inner]),
        np.ascontiguousarray(objects[inner]),
        np.ones((size, size), dtype=bool),
    )


def _through_ctf(image: np.ndarray, pixel_size: float, rng: np.random.Generator) -> np.ndarray:
    """Apply a random transfer function, sometimes with the phases flipped, scaled to keep the contrast."""
    mean = np.exp(rng.uniform(np.log(0.4e4), np.log(4.5e4)))
    astigmatism = abs(rng.normal(0, 0.02)) * mean
    size = image.shape[0]
    transfer = ctf(
        size,
        pixel_size,
        torch.tensor([mean + astigmatism]),
        torch.tensor([mean - astigmatism]),
        torch.tensor([float(rng.uniform(0, 180))]),
        voltage=float(rng.choice((200.0, 300.0))),
        spherical_aberration=2.7,
        amplitude_contrast=float(rng.uniform(0.07, 0.2)),
    )[0]
    if rng.random() < 0.15:
        transfer = transfer.abs()
    blur = np.exp(rng.uniform(np.log(0.02), np.log(0.6)))
    fy = torch.fft.fftfreq(size)[:, None]
    fx = torch.fft.rfftfreq(size)[None, :]
    envelope = torch.exp(-blur * 8 * (fx * fx + fy * fy))
    seen = to_real(to_fourier(torch.from_numpy(image.astype(np.float32))) * transfer * envelope, size)
    gain = 1.0 / max(float(transfer[: size // 2, : size // 8].abs().mean()), 0.15)
    return seen.numpy() * min(gain, 3.0) * 0.6
