"""Alignment of one map to another: rotation, hand and shift."""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.orientation_grid import angular_step, neighbours, orientation_grid
from cryoseg_dist.kernels.slices import prepare_volume


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a map falls onto another.

    Attributes
    ----------
    rotation : Tensor, float64, shape (3, 3)
        The aligned map at ``x`` is the (mirrored) map at ``rotation @ x``.
    mirrored : bool
        The map was mirrored first: it has the other hand.
    shift_px : tuple of float
        (x, y, z), applied last.
    correlation : float
        Over the Fourier shells that were compared.
    volume : Tensor, float32, shape (n, n, n)
        The aligned map.
    """

    rotation: Tensor
    mirrored: bool
    shift_px: tuple[float, float, float]
    correlation: float
    volume: Tensor


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sample(reference: np.ndarray, rotations: np.ndarray, points: np.ndarray, padding: int, out: np.ndarray) -> None:
    m = reference.shape[0]
    limit = m // 2 - 1
    for b in range(rotations.shape[0]):
        r = rotations[b]
        for p in range(points.shape[0]):
            px, py, pz = points[p, 0] * padding, points[p, 1] * padding, points[p, 2] * padding
            x = r[0, 0] * px + r[0, 1] * py + r[0, 2] * pz
            y = r[1, 0] * px + r[1, 1] * py + r[1, 2] * pz
            z = r[2, 0] * px + r[2, 1] * py + r[2, 2] * pz
            flip = x < 0.0
            if flip:
                x, y, z = -x, -y, -z
            x0, y0, z0 = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
            if x0 > limit or abs(y0) > limit or abs(z0) > limit:
                out[b, p] = 0.0
                continue
            dx, dy, dz = x - x0, y - y0, z - z0
            value = np.complex64(0.0)
            for iz in range(2):
                wz = dz if iz else 1.0 - dz
                zz = (z0 + iz) % m
                for iy in range(2):
                    wzy = wz * (dy if iy else 1.0 - dy)
                    yy = (y0 + iy) % m
                    value += wzy * ((1.0 - dx) * reference[zz, yy, x0] + dx * reference[zz, yy, x0 + 1])
            out[b, p] = value.conjugate() if flip else value


def sample_rotated(reference: Tensor, rotations: Tensor, points: Tensor, padding: int = 2) -> Tensor:
    """A volume's transform at rotated Fourier points.

    Parameters
    ----------
    reference : Tensor, complex64
        From ``slices.prepare_volume``.
    rotations : Tensor, shape (b, 3, 3)
        Point ``p`` is sampled at ``rotation @ p``.
    points : Tensor, shape (p, 3)
        xyz in unpadded Fourier pixels.

    Returns
    -------
    Tensor, complex64, shape (b, p)
    """
    out = torch.empty((rotations.shape[0], points.shape[0]), dtype=torch.complex64)
    r, p = rotations.float().contiguous(), points.float().contiguous()
    _sample(reference.contiguous().numpy(), r.numpy(), p.numpy(), padding, out.numpy())
    return out


def mirror(volume: Tensor) -> Tensor:
    """The map of the other hand: z reversed about the centre."""
    n = volume.shape[0]
    return volume.flip(0).roll(1 - n % 2, 0)


def ball_points(max_shell: float) -> Tensor:
    """Half of the Fourier points (xyz) within a radius but the zero frequency, each Friedel pair once."""
    top = int(max_shell)
    axis = torch.arange(-top, top + 1)
    z, y, x = torch.meshgrid(axis, axis, torch.arange(0, top + 1), indexing="ij")
    half = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    keep = half & (x * x + y * y + z * z <= max_shell * max_shell)
    return torch.stack((x[keep], y[keep], z[keep]), dim=1).float()


def best_shift(aligned: Tensor, target: Tensor) -> tuple[tuple[float, float, float], Tensor]:
    """Whole-pixel shift (x, y, z) of the highest cross-correlation, and the shifted map."""
    n = target.shape[0]
    cross = to_fourier(target, 3) * to_fourier(aligned, 3).conj()
    peak = int(to_real(cross, n, 3).flatten().argmax())
    z, y, x = peak // (n * n) - n // 2, peak // n % n - n // 2, peak % n - n // 2
    return (float(x), float(y), float(z)), aligned.roll((z, y, x), (0, 1, 2))


def centred_on_mass(volume: Tensor) -> Tensor:
    """A map moved by whole pixels so that its positive density is centred."""
    n = volume.shape[0]
    density = (volume - 0.2 * volume.max()).clamp(min=0)
    total = density.sum().clamp(min=1e-12)
    axis = torch.arange(n, dtype=volume.dtype) - n // 2
    moves = [-round(float((density.sum(tuple(d for d in range(3) if d != a)) * axis).sum() / total)) for a in range(3)]
    return volume.roll(moves, (0, 1, 2))


def align(volume: Tensor, target: Tensor, max_shell: float, *, both_hands: bool = True) -> Alignment:
    """Rotate, mirror and shift a map onto another.

    An exhaustive search at low resolution is followed by a local one at ``max_shell``.

    Parameters
    ----------
    volume, target : Tensor, float32, shape (n, n, n)
    max_shell : float
        Largest Fourier radius compared.
    both_hands : bool
        Try the mirror image too.
    """
    centre_target = centred_on_mass(target)
    wanted = prepare_volume(centre_target)
    identity = torch.eye(3)[None]
    coarse = ball_points(min(max_shell, 8.0))
    fine = ball_points(max_shell)
    grid = orientation_grid(2)

    def score(reference: Tensor, rotations: Tensor, points: Tensor) -> Tensor:
        moved = sample_rotated(reference, rotations, points)
        truth = sample_rotated(wanted, identity, points)
        cross = (moved * truth.conj()).real.sum(dim=1)
        return cross / (moved.abs().square().sum(dim=1) * truth.abs().square().sum(dim=1)).sqrt().clamp(min=1e-12)

    best: tuple[float, Tensor, bool] | None = None
    for mirrored in (False, True) if both_hands else (False,):
        candidate = centred_on_mass(mirror(volume) if mirrored else volume)
        reference = prepare_volume(candidate)
        coarse_scores = score(reference, grid, coarse)
        for start in coarse_scores.topk(5).indices:
            rotation = grid[start]
            step = angular_step(2)
            for _ in range(6):
                step *= 0.5
                around = neighbours(step, 1.8 * step) @ rotation
                scores = score(reference, around, fine)
                rotation = around[int(scores.argmax())]
            value = float(scores.max())
            if best is None or value > best[0]:
                best = (value, rotation, mirrored)
    if best is None:
        raise ValueError("nothing to align")
    value, rotation, mirrored = best
    candidate = centred_on_mass(mirror(volume) if mirrored else volume)
    rotated = rotate_map(candidate, rotation)
    shift, aligned = best_shift(rotated, target)
    return Alignment(rotation, mirrored, shift, value, aligned)


def rotate_map(volume: Tensor, rotation: Tensor) -> Tensor:
    """The map whose value at ``x`` is that of ``volume`` at ``rotation @ x``, band-limited to the inscribed sphere."""
    n = volume.shape[0]
    reference = prepare_volume(volume)
    top = (n - 1) // 2
    points = ball_points(top)
    values = sample_rotated(reference, rotation[None], points)[0]
    spectrum = torch.zeros((n, n, n // 2 + 1), dtype=torch.complex64)
    x, y, z = points.long().unbind(1)
    spectrum[z % n, y % n, x] = values
    edge = x == 0
    spectrum[-z[edge] % n, -y[edge] % n, x[edge]] = values[edge].conj()
    spectrum[0, 0, 0] = volume.sum()
    return to_real(spectrum, n, 3)
