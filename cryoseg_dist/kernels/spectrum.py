"""Power spectra of micrographs: tiles, polar averages and background.

Spectra are unshifted half spectra of mean amplitudes, shape ``(size, size // 2 + 1)``.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.fourier import frequencies

_FINEST = 1.4  # A; a finer sampling leaves the rings on few samples of the spectrum


def tile_extent(pixel_size: float, size: int, finest: float = _FINEST) -> int:
    """Even tile extent in pixels whose spectrum, cropped to ``size`` samples, is sampled at ``finest`` A or coarser.

    Images with small pixels need larger tiles, or all rings would crowd near the origin. Extents are products of
    small primes, which transform fast.
    """
    wanted = size if pixel_size >= finest else math.ceil(size * finest / pixel_size)
    while not _smooth(wanted):
        wanted += 1
    return wanted


def _smooth(n: int) -> bool:
    """Whether ``n`` is even with no prime factor above 5."""
    if n % 2:
        return False
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


def tile_starts(extent: int, tile: int, overlap: float) -> list[int]:
    """First pixels of evenly spread tiles that cover an axis, overlapping by at least ``overlap``."""
    if extent <= tile:
        return [0]
    steps = math.ceil((extent - tile) / (tile * (1.0 - overlap)))
    return [round(i * (extent - tile) / steps) for i in range(steps + 1)]


def mean_amplitudes(image: Tensor, tile: int, size: int, overlap: float = 0.5) -> Tensor:
    """Mean amplitude spectrum of overlapping tiles (Welch's method with a Hann taper).

    Parameters
    ----------
    image : Tensor, float, shape (y, x)
        Any shape; sides shorter than a tile are padded with the image's mean.
    tile : int
        Extent of a tile in pixels, even.
    size : int
        Extent of the result; the spectrum is cropped to it, which keeps frequencies below ``size / tile`` of Nyquist.
    overlap : float
        Fraction in [0, 1) by which tiles overlap.

    Returns
    -------
    Tensor, float32, shape (size, size // 2 + 1)

    Raises
    ------
    BadInputError
        The image is not two-dimensional, or holds NaN or infinity, or no contrast.
    """
    if image.ndim != 2:
        raise BadInputError("micrograph", "a two-dimensional image", f"shape {tuple(image.shape)}")
    image = image.to(torch.float32)
    spread, mean = torch.std_mean(image.to(torch.float64))
    if not bool(torch.isfinite(spread)) or float(spread) == 0.0:
        raise BadInputError("micrograph", "finite grey values that vary", f"standard deviation {float(spread)}")
    pad_y, pad_x = max(0, tile - image.shape[0]), max(0, tile - image.shape[1])
    if pad_y or pad_x:
        fill = float(mean)
        image = torch.nn.functional.pad(image - fill, (0, pad_x, 0, pad_y))
    scale = 1.0 / float(spread)
    window = torch.hann_window(tile, device=image.device)
    taper = window[:, None] * window[None, :]
    keep = size // 2
    total = torch.zeros((size, keep + 1), device=image.device)
    count = 0
    columns = tile_starts(image.shape[1], tile, overlap)
    for top in tile_starts(image.shape[0], tile, overlap):
        row = torch.stack([image[top : top + tile, left : left + tile] for left in columns])
        row = (row - row.mean(dim=(-2, -1), keepdim=True)) * (scale * taper)
        amplitudes = torch.fft.rfft2(row).abs()
        if tile > size:
            amplitudes = torch.cat([amplitudes[:, : size - keep, : keep + 1], amplitudes[:, -keep:, : keep + 1]], dim=1)
        total += amplitudes.sum(dim=0)
        count += len(columns)
    return total / count


def from_centred(spectrum: Tensor) -> Tensor:
    """Half spectrum of a full, centred one (zero frequency at ``size // 2``), as other programs store them."""
    size = spectrum.shape[-1]
    return torch.fft.ifftshift(spectrum, dim=(-2, -1))[..., : size // 2 + 1]


def to_centred(half: Tensor, size: int) -> Tensor:
    """Full, centred spectrum of a real, point-symmetric half spectrum of shape ``(size, size // 2 + 1)``."""
    full = torch.zeros((size, size), dtype=half.dtype, device=half.device)
    full[:, : size // 2 + 1] = half
    columns = torch.arange(size // 2 + 1, size, device=half.device)
    rows = torch.remainder(-torch.arange(size, device=half.device), size)
    full[:, columns] = half[rows][:, size - columns]
    return torch.fft.fftshift(full, dim=(-2, -1))


@dataclass(frozen=True, slots=True)
class PolarSpectrum:
    """Means of a spectrum over sectors of rings.

    Attributes
    ----------
    frequency : ndarray, float64, shape (r,)
        Ring frequency in 1/A, evenly spaced.
    azimuth : ndarray, float64, shape (s,)
        Centre of each sector in radians from x, in [-pi/2, pi/2).
    values : ndarray, float64, shape (s, r)
        Mean amplitude, 0 where no sample fell.
    counts : ndarray, float64, shape (s, r)
        Samples averaged.
    """

    frequency: np.ndarray
    azimuth: np.ndarray
    values: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.frequency, self.azimuth, self.values, self.counts):
            array.setflags(write=False)

    @property
    def step(self) -> float:
        """Width of a ring in 1/A."""
        return float(self.frequency[1] - self.frequency[0])


def polar_average(
    amplitudes: Tensor,
    pixel_size: float,
    low_resolution: float,
    high_resolution: float,
    n_sectors: int = 72,
    cross_px: int = 2,
) -> PolarSpectrum:
    """Average a half spectrum over sectors of one-sample-wide rings.

    Parameters
    ----------
    amplitudes : Tensor, shape (size, size // 2 + 1)
    pixel_size : float
        A of the grid that the spectrum belongs to.
    low_resolution, high_resolution : float
        Range of rings in A; the high end stops short of Nyquist.
    n_sectors : int
        Sectors over 180 degrees.
    cross_px : int
        Samples nearer than this to the axes are left out: stripes of detectors and tile edges live there.

    Raises
    ------
    BadInputError
        The range holds fewer than 16 rings.
    """
    size = amplitudes.shape[-2]
    first = max(3, math.ceil(size * pixel_size / low_resolution))
    last = min(size // 2 - 3, math.floor(size * pixel_size / high_resolution))
    n_rings = last - first + 1
    if n_rings < 16:
        raise BadInputError(
            "power spectrum",
            f"at least 16 rings between {low_resolution:g} and {high_resolution:g} A",
            f"{max(0, n_rings)} at {pixel_size:g} A per pixel",
            "Widen the range or take a larger spectrum.",
        )
    fy, fx = frequencies((size, size), amplitudes.device)
    length = torch.sqrt(fx * fx + fy * fy) * size
    ring = torch.round(length).long() - first
    azimuth = torch.atan2(fy, fx)  # x >= 0, so within [-pi/2, pi/2]
    sector = torch.floor((azimuth / math.pi + 0.5) * n_sectors).long().remainder(n_sectors)
    off_cross = (fx.abs() * size >= cross_px) & (fy.abs() * size >= cross_px)
    keep = (ring >= 0) & (ring < n_rings) & off_cross
    flat = (sector * n_rings + ring)[keep]
    n_bins = n_sectors * n_rings
    counts = torch.zeros(n_bins, dtype=torch.float64, device=amplitudes.device)
    total = torch.zeros_like(counts)
    counts.index_add_(0, flat, torch.ones_like(flat, dtype=torch.float64))
    total.index_add_(0, flat, amplitudes[keep].to(torch.float64))
    values = torch.where(counts > 0, total / counts.clamp(min=1.0), 0.0)
    return PolarSpectrum(
        frequency=(np.arange(first, last + 1, dtype=np.float64)) / (size * pixel_size),
        azimuth=(np.arange(n_sectors) + 0.5) * np.pi / n_sectors - 0.5 * np.pi,
        values=values.reshape(n_sectors, n_rings).cpu().numpy(),
        counts=counts.reshape(n_sectors, n_rings).cpu().numpy(),
    )


def smooth_basis(x: np.ndarray, n_functions: int) -> np.ndarray:
    """Cubic B-splines over the range of ``x``, with knots denser at its low end where spectra fall steeply.

    Returns
    -------
    ndarray, shape (len(x), n_functions)
    """
    inner = np.linspace(0.0, 1.0, n_functions - 2) ** 1.5
    knots = np.concatenate([np.zeros(3), inner, np.ones(3)])
    unit = (x - x[0]) / (x[-1] - x[0])
    return scipy.interpolate.BSpline.design_matrix(unit, knots, 3).toarray()


def background(polar: PolarSpectrum, n_functions: int = 9) -> np.ndarray:
    """Smooth radial background of a spectrum: a spline through the logarithm of the ring means.

    Returns
    -------
    ndarray, shape (r,)
    """
    counts = polar.counts.sum(axis=0)
    mean = (polar.values * polar.counts).sum(axis=0) / np.maximum(counts, 1.0)
    if not (mean > 0).all():
        raise BadInputError("power spectrum", "positive amplitudes", "empty or zero rings")
    basis = smooth_basis(polar.frequency, n_functions)
    weight = np.sqrt(counts)
    fit, *_ = np.linalg.lstsq(basis * weight[:, None], np.log(mean) * weight, rcond=None)
    return np.exp(basis @ fit)


def flattened(polar: PolarSpectrum, n_functions: int = 9) -> PolarSpectrum:
    """Relative departure from the background, ``values / background - 1``, clipped at four deviations."""
    y = polar.values / background(polar, n_functions) - 1.0
    y[polar.counts == 0] = 0.0
    w = polar.counts
    deviation = math.sqrt(float((w * y * y).sum() / w.sum()))
    return PolarSpectrum(polar.frequency, polar.azimuth, np.clip(y, -4.0 * deviation, 4.0 * deviation), w)
