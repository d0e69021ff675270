"""Agreement of a map with another map or with a model's density, in both hands."""

import math
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from cryoseg_dist.kernels.alignment import align, ball_points, centred_on_mass, mirror, rotate_map, sample_rotated
from cryoseg_dist.kernels.fourier import frequencies, resize_spectrum, to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.orientation_grid import rotation_vectors_to_matrix
from cryoseg_dist.kernels.slices import pad_volume, prepare_volume

# A map that lies as well as this much less than the best found by search is taken to be in place.
_IN_PLACE = 0.01
# Shells that an alignment looks at, at most.
_MOST_SHELLS = 24


@dataclass(frozen=True, slots=True)
class MapComparison:
    """A map beside a reference.

    Attributes
    ----------
    curve : Tensor, float64, shape (n // 2 + 1,)
        FSC with the reference in the better hand, within the mask.
    curve_other_hand : Tensor, float64, shape (n // 2 + 1,)
        FSC with the reference in the other hand, at its best.
    agreement, agreement_other_hand : float
        Mean FSC over the shells that were aligned.
    mirrored : bool
        The reference agrees better as its mirror image: one of the two maps has the wrong hand.
    in_place : bool
        The reference needed no move.
    moved : Tensor, float32, shape (n, n, n)
        The reference in the frame of the map.
    """

    curve: Tensor
    curve_other_hand: Tensor
    agreement: float
    agreement_other_hand: float
    mirrored: bool
    in_place: bool
    moved: Tensor


def on_grid(volume: Tensor, pixel_size: float, size: int, new_pixel_size: float) -> Tensor:
    """A map on another grid: resampled to its pixel size, then cropped or padded about the centre.

    Parameters
    ----------
    volume : Tensor, float32, shape (n, n, n)
    pixel_size, new_pixel_size : float
        A.
    size : int
        Of the result.

    Notes
    -----
    A box is first padded to an extent which the ratio of the pixel sizes takes to a whole number of pixels as
    nearly as one within twice its size can be: the scale is then right to far better than a pixel.
    """
    n = volume.shape[-1]
    ratio = pixel_size / new_pixel_size
    if abs(ratio - 1.0) > 1e-4:
        extents = np.arange(n + n % 2, 2 * n + 2, 2)
        wanted = 0.5 * extents * ratio
        fault = np.abs(wanted - np.round(wanted)) / wanted
        # The smallest that keeps the map's edge within a twentieth of a pixel.
        good = np.flatnonzero(fault * n < 0.1)
        extent = int(extents[good[0] if len(good) else int(fault.argmin())])
        volume = _centred(volume, extent)
        new = max(2, 2 * round(0.5 * extent * ratio))
        volume = to_real(resize_spectrum(to_fourier(volume, 3), extent, new, 3), new, 3)
    return _centred(volume, size)


def _centred(volume: Tensor, size: int) -> Tensor:
    """A cube cropped or zero-padded about its centre sample."""
    n = volume.shape[-1]
    if size <= n:
        before = n // 2 - size // 2
        return volume[before : before + size, before : before + size, before : before + size].clone()
    if size % n == 0:
        return pad_volume(volume, size // n)
    out = volume.new_zeros((size,) * 3)
    before = size // 2 - n // 2
    out[before : before + n, before : before + n, before : before + n] = volume
    return out


def moved(volume: Tensor, rotation: Tensor, shift_px: tuple[float, float, float]) -> Tensor:
    """A map turned (see :func:`alignment.rotate_map`), then moved by a fraction of pixels (x, y, z)."""
    n = volume.shape[-1]
    spectrum = to_fourier(rotate_map(volume, rotation), 3)
    fz, fy, fx = frequencies((n, n, n))
    angle = -2.0 * math.pi * (fx * shift_px[0] + fy * shift_px[1] + fz * shift_px[2])
    return to_real(spectrum * torch.polar(torch.ones_like(angle), angle), n, 3)


class _Fit:
    """Mean FSC of two maps as a function of a small rotation and a shift."""

    def __init__(self, reference: Tensor, target: Tensor, rotation: Tensor, max_shell: float) -> None:
        self.size = target.shape[-1]
        self.rotation = rotation.to(torch.float64)
        self.points = ball_points(max_shell)
        self.reference = prepare_volume(reference)
        self.wanted = sample_rotated(prepare_volume(target), torch.eye(3)[None], self.points)[0]
        self.shell = torch.round(self.points.norm(dim=1)).long() - 1
        self.n_shells = int(self.shell.max()) + 1
        self.power = self._by_shell(self.wanted.abs().square())

    def _by_shell(self, values: Tensor) -> Tensor:
        return torch.zeros(self.n_shells, dtype=torch.float64).index_add_(0, self.shell, values.to(torch.float64))

    def turned(self, vector: np.ndarray) -> Tensor:
        """Rotation after a small one, a vector in degrees."""
        return rotation_vectors_to_matrix(torch.from_numpy(vector.copy())) @ self.rotation

    def score(self, parameters: np.ndarray) -> float:
        """Mean FSC for a rotation vector (degrees) and a shift (pixels)."""
        values = sample_rotated(self.reference, self.turned(parameters[:3])[None], self.points)[0]
        angle = (self.points @ torch.from_numpy(parameters[3:]).float()) * (-2.0 * math.pi / self.size)
        cross = self._by_shell((values * torch.polar(torch.ones_like(angle), angle) * self.wanted.conj()).real)
        power = self._by_shell(values.abs().square()) * self.power
        return float((cross / power.sqrt().clamp(min=1e-30)).mean())

    def best(self, shift_px: tuple[float, float, float], step: float) -> tuple[Tensor, tuple[float, float, float]]:
        """Rotation and shift near the start, found by Powell's method."""
        start = np.array([0.0, 0.0, 0.0, *shift_px])
        reach = np.array([step] * 3 + [1.5] * 3)
        bounds = list(zip(start - reach, start + reach, strict=True))
        found = scipy.optimize.minimize(
            lambda p: -self.score(p), start, method="Powell", bounds=bounds, options={"xtol": 0.01, "ftol": 1e-5}
        )
        x, y, z = (float(v) for v in found.x[3:])
        return self.turned(found.x[:3]), (x, y, z)


def compare_maps(volume: Tensor, reference: Tensor, mask: Tensor, max_shell: float) -> MapComparison:
    """FSC of a map with a reference, which is turned, moved and mirrored onto it where that agrees better.

    Parameters
    ----------
    volume, reference : Tensor, float32, shape (n, n, n)
        On one grid.
    mask : Tensor, shape (n, n, n)
        Of the map.
    max_shell : float
        Shell to which the map is good: nothing finer is used to align.

    Returns
    -------
    MapComparison
    """
    n = volume.shape[-1]
    top = float(min(max(max_shell, 4.0), _MOST_SHELLS, (n - 1) // 2 - 1))
    target = volume * mask
    spectrum = to_fourier(target, 3)
    # What noise lies outside the reference's ball would only disturb the search.
    ball = soft_sphere(n, n / 2 - 4, 3)

    def judged(candidate: Tensor) -> tuple[Tensor, float]:
        curve = fsc(spectrum, to_fourier(candidate * mask, 3))
        return curve, float(curve[1 : int(top) + 1].mean())

    candidates = []
    for hand in (False, True):
        held = centred_on_mass((mirror(reference) if hand else reference) * ball)
        coarse = align(held, target, top, both_hands=False)
        fit = _Fit(held, target, coarse.rotation, top)
        # ``align`` centres both maps itself; the shift that it found applies to the centred reference.
        rotation, shift_px = fit.best(coarse.shift_px, 3.0)
        candidate = moved(held, rotation, shift_px)
        candidates.append((*judged(candidate), candidate))
    as_given = judged(reference)
    in_place = as_given[1] >= max(c[1] for c in candidates) - _IN_PLACE
    if in_place:
        candidates[0] = (*as_given, reference)
    better = 0 if in_place or candidates[0][1] >= candidates[1][1] else 1
    curve, agreement, onto = candidates[better]
    other, other_agreement, _ = candidates[1 - better]
    return MapComparison(curve, other, agreement, other_agreement, better == 1, in_place, onto)
