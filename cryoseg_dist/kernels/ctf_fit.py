"""Defocus, astigmatism and phase shift from the Thon rings of a spectrum.

The rings of a mean amplitude spectrum, freed of its background, follow ``-cos 2 chi``, the ground wave of both ``|CTF|``
and ``CTF^2``. Along one direction of the spectrum that wave depends on a single defocus. So the correlation of
each sector with the wave of each defocus is computed once, as one matrix product, and the score of any pair of
defoci and any angle is a sum of table entries, one a sector. That makes an exhaustive search affordable, which strong
astigmatism needs; a local search on the same data then refines the best candidates.
"""

import math
from dataclasses import dataclass, replace

import numba
import numpy as np
import scipy
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.ctf import aberration_phase, wavelength
from cryoseg_dist.kernels.spectrum import PolarSpectrum, flattened, polar_average, smooth_basis
from cryoseg_dist.schema.optics import Optics

_TREND = 7  # smooth functions of frequency that neither the data nor the model may explain anything with


@dataclass(frozen=True, slots=True)
class CtfSearch:
    """Where to look.

    Attributes
    ----------
    low_resolution, high_resolution : float
        Range of the spectrum used, in A.
    defocus_min, defocus_max : float
        A.
    astigmatism_max : float
        Largest ``defocus_u - defocus_v`` in A.
    phase_shift : bool
        Fit an additional phase shift too; otherwise it is ``fixed_phase_shift``.
    fixed_phase_shift : float
        Degrees.
    damping : float
        B-factor in A^2 that weights high frequencies down before their decay is measured.
    """

    low_resolution: float = 30.0
    high_resolution: float = 5.0
    defocus_min: float = 2000.0
    defocus_max: float = 60000.0
    astigmatism_max: float = 6000.0
    phase_shift: bool = False
    fixed_phase_shift: float = 0.0
    damping: float = 60.0


@dataclass(frozen=True, slots=True)
class CtfParameters:
    """A fitted transfer function.

    Attributes
    ----------
    defocus_u, defocus_v : float
        A, underfocus positive, ``defocus_u >= defocus_v``.
    defocus_angle : float
        Degrees from x of ``defocus_u``, in [0, 180).
    phase_shift : float
        Degrees in [0, 180).
    score : float
        Correlation of the damped model with the sector averages, the quantity maximised.
    significance : float
        The score times the square root of the number of averages; about 6 for the best fit to pure noise.
    """

    defocus_u: float
    defocus_v: float
    defocus_angle: float
    phase_shift: float
    score: float
    significance: float = 0.0

    @property
    def mean_defocus(self) -> float:
        """A."""
        return 0.5 * (self.defocus_u + self.defocus_v)

    @property
    def astigmatism(self) -> float:
        """Difference of the defoci in A."""
        return self.defocus_u - self.defocus_v


def chi(frequency: np.ndarray, azimuth: np.ndarray, ctf: CtfParameters, optics: Optics) -> np.ndarray:
    """Aberration phase in radians of a fitted transfer function; the arguments broadcast."""

    def tensor(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    return aberration_phase(
        torch.as_tensor(np.array(frequency, dtype=np.float64)),
        torch.as_tensor(np.array(azimuth, dtype=np.float64)),
        tensor(ctf.defocus_u),
        tensor(ctf.defocus_v),
        tensor(ctf.defocus_angle),
        tensor(ctf.phase_shift),
        voltage=optics.voltage,
        spherical_aberration=optics.spherical_aberration,
        amplitude_contrast=optics.amplitude_contrast,
    ).numpy()


def ring_visibility(frequency: np.ndarray, defocus: np.ndarray | float, step: float, optics: Optics) -> np.ndarray:
    """Contrast that the finite tile leaves to rings, from 1 for wide rings to 0 for rings narrower than a sample.

    The taper convolves the spectrum with its own transform, so a wave of ``g`` periods per sample keeps the value that
    the taper's autocorrelation has at the lag of ``g`` tiles.
    """
    lam = wavelength(optics.voltage)
    slope = lam * frequency * defocus - lam**3 * optics.spherical_aberration * 1e7 * frequency**3
    g = np.clip(2.0 * np.abs(slope) * step, 0.0, 1.0)
    angle = 2.0 * np.pi * g
    return (1.0 - g) * (2.0 + np.cos(angle)) / 3.0 + np.sin(angle) / (2.0 * np.pi)


def ring_waves(polar: PolarSpectrum, ctf: CtfParameters, optics: Optics) -> np.ndarray:
    """Rings that a fit predicts for each sector of a polar spectrum, ``-cos 2 chi`` times their visibility.

    Returns
    -------
    ndarray, shape (s, r)
    """
    k, azimuth = polar.frequency, polar.azimuth[:, None]
    angle = math.radians(ctf.defocus_angle)
    defocus = ctf.mean_defocus + 0.5 * ctf.astigmatism * np.cos(2.0 * (azimuth - angle))
    return -np.cos(2.0 * chi(k, azimuth, ctf, optics)) * ring_visibility(k, defocus, polar.step, optics)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Sector data with the trend removed, and all that scores need.

    Attributes
    ----------
    polar : PolarSpectrum
        Flattened.
    optics : Optics
    radial : ndarray, shape (r,)
        Square root of the samples in a ring.
    trend : ndarray, shape (r, f)
        Orthonormal smooth functions, times ``radial``.
    data : ndarray, shape (s, r)
        Flattened amplitudes without their trend, times the samples in each bin.
    energy : float
    envelope : ndarray, shape (r,)
        Expected decay of the rings.
    """

    polar: PolarSpectrum
    optics: Optics
    radial: np.ndarray
    trend: np.ndarray
    data: np.ndarray
    energy: float
    envelope: np.ndarray

    @classmethod
    def build(cls, polar: PolarSpectrum, optics: Optics, damping: float) -> "_Problem":
        radial = np.sqrt(polar.counts.mean(axis=0) + 1e-9)
        trend, _ = np.linalg.qr(smooth_basis(polar.frequency, _TREND) * radial[:, None])
        values = _detrended(polar.values, radial, trend)
        envelope = np.exp(-0.25 * damping * polar.frequency**2)
        energy = float((polar.counts * values * values).sum())
        return cls(polar, optics, radial, trend, polar.counts * values, energy, envelope)

    def waves(self, ctf: CtfParameters) -> np.ndarray:
        """Model of every sector, shape (s, r), with decay and trend removal."""
        return _detrended(ring_waves(self.polar, ctf, self.optics) * self.envelope, self.radial, self.trend)

    def score(self, ctf: CtfParameters) -> float:
        """Correlation of model and data over all samples."""
        model = self.waves(ctf)
        power = float((self.polar.counts * model * model).sum()) * self.energy
        return float((self.data * model).sum()) / math.sqrt(power) if power > 0 else 0.0


def _detrended(values: np.ndarray, radial: np.ndarray, trend: np.ndarray) -> np.ndarray:
    """Take smooth functions of frequency out of each row."""
    return values - ((values * radial) @ trend) @ trend.T / radial


@dataclass(frozen=True, slots=True)
class _Tables:
    """Sector scores for every defocus of an even grid.

    Attributes
    ----------
    start, step : float
        Defocus grid in A.
    cosine, sine : ndarray, shape (s, d)
        Correlation with the waves of phase shift 0 and 45 degrees.
    norm : ndarray, shape (s, d)
        Power of the waves.
    """

    start: float
    step: float
    cosine: np.ndarray
    sine: np.ndarray
    norm: np.ndarray

    @classmethod
    def build(cls, problem: _Problem, search: CtfSearch) -> "_Tables":
        polar, optics = problem.polar, problem.optics
        k = polar.frequency
        step = min(100.0, 0.6 / (2.0 * math.pi * wavelength(optics.voltage) * float(k[-1]) ** 2))
        # Astigmatism reaches beyond the search range, but never to overfocus or to a spectrum without rings.
        start = max(search.defocus_min - 0.5 * search.astigmatism_max, 0.3 * search.defocus_min)
        count = math.ceil((search.defocus_max + 0.5 * search.astigmatism_max - start) / step) + 1
        defocus = start + step * np.arange(count)
        none = CtfParameters(0.0, 0.0, 0.0, 0.0, 0.0)
        phase = 2.0 * (
            math.pi * wavelength(optics.voltage) * k**2 * defocus[:, None] + chi(k, np.zeros(1), none, optics)
        )
        seen = ring_visibility(k, defocus[:, None], polar.step, optics) * problem.envelope
        cosine = _detrended(-np.cos(phase) * seen, problem.radial, problem.trend)
        sine = _detrended(np.sin(phase) * seen, problem.radial, problem.trend)
        return cls(
            start, step, problem.data @ cosine.T, problem.data @ sine.T, polar.counts @ (0.5 * (cosine**2 + sine**2)).T
        )


@numba.njit(cache=True, fastmath=True)
def _search_pairs(
    cosine: np.ndarray,
    sine: np.ndarray,
    norm: np.ndarray,
    offsets: np.ndarray,
    least: np.ndarray,
    first: int,
    last: int,
    free_phase: bool,
    out: np.ndarray,
) -> None:
    """Best score of each mean defocus over all offset patterns (one a pair of astigmatism and angle).

    Pattern ``p`` is tried from grid point ``least[p]`` on. ``out[j]`` becomes ``(score, pattern)``; scores are squared correlations times the data's energy.
    """
    n_patterns, n_sectors = offsets.shape
    for j in range(first, last):
        best, best_pattern = -1.0, 0
        for p in range(n_patterns):
            if j < least[p]:
                continue
            c, s, n = 0.0, 0.0, 0.0
            for i in range(n_sectors):
                d = j + offsets[p, i]
                c += cosine[i, d]
                s += sine[i, d]
                n += norm[i, d]
            if n <= 0.0:
                continue
            value = (c * c + s * s) / n if free_phase else (c * c / n if c > 0.0 else 0.0)
            if value > best:
                best, best_pattern = value, p
        out[j - first, 0] = best
        out[j - first, 1] = best_pattern


def _candidates(problem: _Problem, search: CtfSearch, n_best: int = 4) -> tuple[list[CtfParameters], np.ndarray]:
    """Best, well separated points of an exhaustive search, and the score of each mean defocus."""
    tables = _Tables.build(problem, search)
    azimuth = problem.polar.azimuth
    half_steps = max(1.0, 100.0 / tables.step)  # astigmatism in steps of 200 A at the least
    n_half = math.floor(0.5 * search.astigmatism_max / (half_steps * tables.step))
    pairs = [(0.0, 0.0)] + [
        (half_steps * (i + 1), angle) for i in range(n_half) for angle in np.deg2rad(np.arange(0.0, 180.0, 7.5))
    ]
    offsets = np.array([np.rint(half * np.cos(2.0 * (azimuth - angle))) for half, angle in pairs], dtype=np.int64)
    first = math.ceil((search.defocus_min - tables.start) / tables.step)
    last = min(first + math.floor((search.defocus_max - search.defocus_min) / tables.step) + 1, tables.norm.shape[1])
    # Astigmatism may not exceed the mean defocus, and the table ends somewhere.
    halves = np.array([half for half, _ in pairs])
    least = np.maximum(2.0 * halves - tables.start / tables.step, np.ceil(halves)).astype(np.int64)
    last = min(last, tables.norm.shape[1] - int(np.abs(offsets).max()))
    cosine, sine = tables.cosine, tables.sine
    if not search.phase_shift and search.fixed_phase_shift:
        turn = 2.0 * math.radians(search.fixed_phase_shift)
        cosine, sine = math.cos(turn) * cosine + math.sin(turn) * sine, sine
    found = np.empty((last - first, 2))
    _search_pairs(cosine, sine, tables.norm, offsets, least, first, last, search.phase_shift, found)
    # Candidates lie at least one ring apart at the middle of the range.
    middle = float(problem.polar.frequency[len(problem.polar.frequency) // 2])
    apart = max(1, round(0.5 / (wavelength(problem.optics.voltage) * middle**2) / tables.step))
    left = found[:, 0].copy()
    out = []
    for _ in range(n_best):
        j = int(np.argmax(left))
        if left[j] <= 0:
            break
        half, angle = pairs[int(found[j, 1])]
        mean = tables.start + tables.step * (first + j)
        phase = search.fixed_phase_shift
        if search.phase_shift:
            at = first + j + offsets[int(found[j, 1])]
            rows = np.arange(len(at))
            phase = 0.5 * math.degrees(math.atan2(tables.sine[rows, at].sum(), tables.cosine[rows, at].sum())) % 180.0
        spread = half * tables.step
        out.append(CtfParameters(mean + spread, mean - spread, math.degrees(angle) % 180.0, phase, 0.0))
        left[max(0, j - apart) : j + apart + 1] = -1.0
    return out, np.sqrt(np.maximum(found[:, 0], 0.0) / problem.energy)


def _refined(problem: _Problem, start: CtfParameters, search: CtfSearch) -> CtfParameters:
    """Climb to the nearest maximum of the score."""

    def parameters(x: np.ndarray) -> CtfParameters:
        spread = float(math.hypot(x[1], x[2]))
        angle = 0.5 * math.degrees(math.atan2(x[2], x[1])) % 180.0
        phase = 0.01 * float(x[3]) if search.phase_shift else search.fixed_phase_shift
        return CtfParameters(float(x[0]) + spread, float(x[0]) - spread, angle, phase % 180.0, 0.0)

    turn = 2.0 * math.radians(start.defocus_angle)
    spread = 0.5 * start.astigmatism
    x0 = [start.mean_defocus, spread * math.cos(turn), spread * math.sin(turn)]
    if search.phase_shift:
        x0.append(100.0 * start.phase_shift)
    simplex = np.vstack([x0] + [np.add(x0, row) for row in np.diag([120.0, 100.0, 100.0, 1000.0][: len(x0)])])
    limit = 0.5 * search.astigmatism_max

    def cost(x: np.ndarray) -> float:
        ctf = parameters(x)
        beyond = max(0.0, 0.5 * ctf.astigmatism - min(limit, 0.5 * abs(ctf.mean_defocus))) + max(
            0.0, search.defocus_min - ctf.mean_defocus
        )
        beyond += max(0.0, ctf.mean_defocus - search.defocus_max)
        return -problem.score(ctf) + 1e-3 * beyond

    options = {"initial_simplex": simplex, "xatol": 1.0, "fatol": 1e-6, "maxfev": 400}
    best = scipy.optimize.minimize(cost, x0, method="Nelder-Mead", options=options)
    ctf = parameters(best.x)
    score = problem.score(ctf)
    return replace(ctf, score=score, significance=score * math.sqrt(np.count_nonzero(problem.polar.counts)))


def fit_ctf(amplitudes: torch.Tensor, optics: Optics, search: CtfSearch) -> CtfParameters:
    """Fit a transfer function to a mean amplitude spectrum.

    Parameters
    ----------
    amplitudes : Tensor, shape (size, size // 2 + 1)
        Half spectrum of mean amplitudes.
    optics : Optics
        ``pixel_size`` is that of the spectrum's grid.
    search : CtfSearch

    Returns
    -------
    CtfParameters
        The best match, however bad; its score tells.

    Raises
    ------
    BadInputError
        Too few rings between the limits of resolution, or a spectrum without power.
    """
    raw = polar_average(amplitudes, optics.pixel_size, search.low_resolution, search.high_resolution)
    problem = _Problem.build(flattened(raw), optics, search.damping)
    if problem.energy <= 0:
        raise BadInputError("power spectrum", "amplitudes that vary", "a perfectly smooth spectrum")
    candidates, _ = _candidates(problem, search)
    if not candidates:
        raise BadInputError("power spectrum", "at least one defocus with a positive score", "none")
    return max((_refined(problem, c, search) for c in candidates), key=lambda c: c.score)
