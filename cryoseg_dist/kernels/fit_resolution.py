"""How far a fitted transfer function explains a spectrum: equiphase averages and their local agreement."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import map_coordinates, uniform_filter1d
from torch import Tensor

from cryoseg_dist.kernels.ctf import wavelength
from cryoseg_dist.kernels.ctf_fit import CtfParameters, chi, ring_visibility
from cryoseg_dist.kernels.fourier import frequencies
from cryoseg_dist.kernels.spectrum import background, flattened, polar_average, smooth_basis
from cryoseg_dist.schema.optics import Optics


@dataclass(frozen=True, slots=True)
class RingCurves:
    """One-dimensional view of a fit.

    Attributes
    ----------
    frequency : ndarray, shape (r,)
        1/A.
    spectrum : ndarray, shape (r,)
        Equiphase average relative to its background, ``amplitude / background - 1``.
    model : ndarray, shape (r,)
        ``|CTF|`` of the mean defocus.
    agreement : ndarray, shape (r,)
        Local correlation of the spectrum with the rings of the model.
    """

    frequency: np.ndarray
    spectrum: np.ndarray
    model: np.ndarray
    agreement: np.ndarray


def _half_grid(size: int, pixel_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequency in 1/A and azimuth of each sample of a half spectrum."""
    fy, fx = frequencies((size, size))
    k = torch.sqrt(fx * fx + fy * fy).numpy().astype(np.float64) / pixel_size
    return k, torch.atan2(fy, fx).numpy().astype(np.float64)


def equiphase_frequency(frequency: np.ndarray, azimuth: np.ndarray, ctf: CtfParameters, optics: Optics) -> np.ndarray:
    """Frequency at which the mean defocus has the phase that the fit has here.

    Solves ``a q - b q^2 = a' q' - b q'^2`` for ``q = k^2``, ``a`` from the mean and ``a'`` from the local defocus.
    """
    lam = wavelength(optics.voltage)
    quartic = 0.5 * lam**3 * optics.spherical_aberration * 1e7
    angle = math.radians(ctf.defocus_angle)
    local = ctf.mean_defocus + 0.5 * ctf.astigmatism * np.cos(2.0 * (azimuth - angle))
    q = frequency**2
    a = lam * ctf.mean_defocus
    target = lam * local * q - quartic * q * q
    # The root that tends to ``target / a`` without aberration; beyond the turning point rings stay where they are.
    square = a * a - 4.0 * quartic * target
    root = np.where(square > 0, 2.0 * target / (a + np.sqrt(np.maximum(square, 0.0))), q)
    return np.sqrt(np.maximum(root, 0.0))


def equiphase_average(amplitudes: Tensor, ctf: CtfParameters, optics: Optics, cross_px: int = 2) -> np.ndarray:
    """Average a spectrum along lines of equal phase, so that astigmatism does not blur the rings.

    Parameters
    ----------
    amplitudes : Tensor, shape (size, size // 2 + 1)
    ctf : CtfParameters
    optics : Optics
        ``pixel_size`` is that of the spectrum's grid.
    cross_px : int
        Samples nearer than this to the axes are left out.

    Returns
    -------
    ndarray, shape (size // 2 + 1,)
        Mean amplitude at ``i / (size * pixel_size)`` along the mean defocus; empty bins hold their neighbour's value.
    """
    size = amplitudes.shape[-2]
    k, azimuth = _half_grid(size, optics.pixel_size)
    bins = np.rint(equiphase_frequency(k, azimuth, ctf, optics) * size * optics.pixel_size).astype(np.int64)
    fy, fx = (f.numpy() * size for f in frequencies((size, size)))
    keep = (bins <= size // 2) & (k * optics.pixel_size <= 0.5) & (np.abs(fx) >= cross_px) & (np.abs(fy) >= cross_px)
    values = amplitudes.cpu().numpy()[keep]
    count = np.bincount(bins[keep], minlength=size // 2 + 1)
    total = np.bincount(bins[keep], weights=values, minlength=size // 2 + 1)
    filled = count > 0
    index = np.arange(size // 2 + 1)
    return np.interp(index, index[filled], total[filled] / count[filled])


def ring_curves(amplitudes: Tensor, ctf: CtfParameters, optics: Optics, low_resolution: float = 30.0) -> RingCurves:
    """Equiphase average, fitted transfer function and their local agreement, from ``low_resolution`` to Nyquist."""
    size = amplitudes.shape[-2]
    step = 1.0 / (size * optics.pixel_size)
    first = max(3, math.ceil(1.0 / (low_resolution * step)))
    average = equiphase_average(amplitudes, ctf, optics)[first : size // 2 - 1]
    frequency = np.arange(first, size // 2 - 1) * step
    basis = smooth_basis(frequency, 9)
    # A floor keeps a spectrum that was cut to zero at its rim from spoiling the logarithm.
    floor = max(float(np.median(average)) * 1e-3, 1e-30)
    log = np.log(np.maximum(average, floor))
    fit, *_ = np.linalg.lstsq(basis, log, rcond=None)
    relative = np.exp(log - basis @ fit) - 1.0
    phase = chi(frequency, np.zeros(1), _round(ctf), optics)
    rings = -np.cos(2.0 * phase)
    # ``cos 2 chi`` has one period where ``chi`` grows by pi.
    period = 1.0 / np.maximum(np.abs(_slope(frequency, ctf, optics)) * step, 1e-9)
    agreement = local_correlation(relative, rings, np.clip(1.5 * period, 11, len(frequency)))
    return RingCurves(frequency, relative, np.abs(np.sin(phase)), agreement)


def _round(ctf: CtfParameters) -> CtfParameters:
    """The same without astigmatism."""
    return CtfParameters(ctf.mean_defocus, ctf.mean_defocus, 0.0, ctf.phase_shift, ctf.score)


def _slope(frequency: np.ndarray, ctf: CtfParameters, optics: Optics) -> np.ndarray:
    """Derivative of ``chi / pi`` to frequency, in A."""
    lam = wavelength(optics.voltage)
    return 2.0 * (lam * frequency * ctf.mean_defocus - lam**3 * optics.spherical_aberration * 1e7 * frequency**3) / 1.0


def local_correlation(a: np.ndarray, b: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Correlation of two curves in a window around each sample, straight trends removed.

    Parameters
    ----------
    a, b : ndarray, shape (r,)
    widths : ndarray, shape (r,)
        Width of the window in samples.
    """
    n = len(a)
    out = np.zeros(n)
    for i in range(n):
        half = max(2, round(0.5 * float(widths[i])))
        lo, hi = max(0, i - half), min(n, i + half + 1)
        t = np.arange(lo, hi) - 0.5 * (lo + hi - 1)
        t2 = float(t @ t)
        x, y = a[lo:hi] - a[lo:hi].mean(), b[lo:hi] - b[lo:hi].mean()
        x, y = x - t * float(x @ t) / t2, y - t * float(y @ t) / t2
        power = math.sqrt(float(x @ x) * float(y @ y))
        out[i] = float(x @ y) / power if power > 0 else 0.0
    return out


def fit_resolution(curves: RingCurves, threshold: float = 0.5) -> float | None:
    """Resolution in A up to which the rings agree with the fit.

    The agreement, averaged over five samples, may dip below ``threshold`` for fewer than eight samples.

    Returns
    -------
    float or None
        None when the rings agree nowhere, or not over two zeros of the transfer function.
    """
    good = uniform_filter1d(curves.agreement, 5) >= threshold
    if not good.any():
        return None
    start = int(np.argmax(good))
    # A true fit agrees from its first rings on; agreement that begins in mid-air, or is short, is chance.
    minima = np.flatnonzero((curves.model[1:-1] <= curves.model[:-2]) & (curves.model[1:-1] < curves.model[2:]))
    if len(minima) >= 3 and start > max(minima[2], len(good) // 8):
        return None
    last, gap = start, 0
    for i in range(start, len(good)):
        gap = 0 if good[i] else gap + 1
        if good[i]:
            last = i
        if gap >= 8:
            break
    # Any smooth bump resembles one ring; a fit is believed from two zeros on.
    zeros = minima + 1
    if last - start < 8 or np.count_nonzero((zeros >= start) & (zeros <= last)) < 2:
        return None
    return float(1.0 / curves.frequency[last])


def figure_of_merit(
    amplitudes: Tensor, ctf: CtfParameters, optics: Optics, low_resolution: float, high_resolution: float
) -> float:
    """Normalised correlation of the rings with every sample of the two-dimensional spectrum.

    Unlike the score of the search, no average over sectors lifts it, so it compares with that of other programs.
    """
    raw = polar_average(amplitudes, optics.pixel_size, low_resolution, high_resolution)
    k, azimuth = _half_grid(amplitudes.shape[-2], optics.pixel_size)
    inside = (k >= raw.frequency[0]) & (k <= raw.frequency[-1])
    k, azimuth = k[inside], azimuth[inside]
    y = amplitudes.cpu().numpy()[inside] / np.interp(k, raw.frequency, background(raw)) - 1.0
    y = np.clip(y, -4.0 * y.std(), 4.0 * y.std())
    angle = math.radians(ctf.defocus_angle)
    defocus = ctf.mean_defocus + 0.5 * ctf.astigmatism * np.cos(2.0 * (azimuth - angle))
    model = -np.cos(2.0 * chi(k, azimuth, ctf, optics)) * ring_visibility(k, defocus, raw.step, optics)
    y, model = y - y.mean(), model - model.mean()
    power = math.sqrt(float(y @ y) * float(model @ model))
    return float(y @ model) / power if power > 0 else 0.0


def thon_ring_picture(
    amplitudes: Tensor, ctf: CtfParameters, optics: Optics, edge_resolution: float, extent: int = 256
) -> np.ndarray:
    """Picture of a fit: the rings of the spectrum on the right, those of the fitted ``|CTF|`` on the left.

    The spectrum is averaged over arcs of about ten degrees, which brings rings out of the speckle, and every ring is
    brought to the same contrast.

    Parameters
    ----------
    amplitudes : Tensor, shape (size, size // 2 + 1)
    ctf : CtfParameters
    optics : Optics
    edge_resolution : float
        Resolution in A at the middle of each edge of the picture, Nyquist at the most.
    extent : int
        Side of the picture in pixels.

    Returns
    -------
    ndarray, float16, shape (extent, extent)
        Centred, grey values in [0, 1]; mid-grey where the spectrum was not looked at.
    """
    edge = max(edge_resolution, 2.0 * optics.pixel_size)
    flat = flattened(polar_average(amplitudes, optics.pixel_size, 50.0, 2.0 * optics.pixel_size))
    n_sectors = len(flat.azimuth)
    weight = uniform_filter1d(flat.counts, 5, axis=0, mode="wrap")
    arcs = uniform_filter1d(flat.counts * flat.values, 5, axis=0, mode="wrap") / np.maximum(weight, 1e-9)
    contrast = np.sqrt(uniform_filter1d((arcs**2).mean(axis=0), 25))
    arcs = arcs / np.maximum(contrast, 1e-12)

    y, x = (np.indices((extent, extent)) - extent // 2) * (2.0 / (extent * edge))
    k, azimuth = np.hypot(x, y), np.arctan2(y, x)
    ring = (k - flat.frequency[0]) / flat.step
    sector = (np.mod(azimuth + 0.5 * np.pi, np.pi) / np.pi * n_sectors) - 0.5
    data = map_coordinates(np.pad(arcs, ((1, 1), (0, 0)), mode="wrap"), [sector + 1.0, ring], order=1, mode="nearest")
    out = np.clip(0.5 + 0.3 * data, 0.0, 1.0)
    left = x < 0
    out[left] = np.abs(np.sin(chi(k[left], azimuth[left], ctf, optics)))
    out[(ring < 0) | (~left & (ring > len(flat.frequency) - 1))] = 0.5
    return out.astype(np.float16)
