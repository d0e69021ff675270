"""Numbers that tell a good micrograph from a bad one, from its spectrum and its CTF fit."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.ctf_fit import CtfParameters, ring_waves
from cryoseg_dist.kernels.fourier import frequencies
from cryoseg_dist.kernels.spectrum import background, flattened, polar_average
from cryoseg_dist.schema.optics import Optics

_ICE = (3.9, 3.5)  # A, the strongest ring of ice: cubic (111) and hexagonal (002) lie at 3.67
_BESIDE = ((4.4, 4.0), (3.4, 3.2))  # A, flanks free of ice rings


@dataclass(frozen=True, slots=True)
class DirectionalLoss:
    """How ring contrast depends on direction.

    Attributes
    ----------
    ratio : float
        Contrast along the worst direction over that across it; 1 without drift, 0 or less where rings vanish.
    significance : float
        Directional part of the contrast over its own standard error.
    worst_angle : float
        Degrees from x of the weakest rings, the direction of motion.
    """

    ratio: float
    significance: float
    worst_angle: float


def directional_loss(
    amplitudes: Tensor, ctf: CtfParameters, optics: Optics, low_resolution: float, high_resolution: float
) -> DirectionalLoss | None:
    """Contrast of the fitted rings by direction; specimen motion wipes rings out along its direction.

    A wave ``a0 + a2 cos 2 (azimuth - t)`` is fitted to the contrast of all sectors between two resolutions.

    Returns
    -------
    DirectionalLoss or None
        None where the range holds too few rings or no ring contrast at all.
    """
    try:
        raw = polar_average(amplitudes, optics.pixel_size, low_resolution, high_resolution)
    except BadInputError:
        return None
    flat = flattened(raw)
    model = ring_waves(flat, ctf, optics)
    model = model - (model * flat.counts).sum(axis=1, keepdims=True) / np.maximum(
        flat.counts.sum(axis=1, keepdims=True), 1.0
    )
    power = (flat.counts * model * model).sum(axis=1)
    contrast = (flat.counts * flat.values * model).sum(axis=1) / np.maximum(power, 1e-12)
    residual = flat.values - contrast[:, None] * model
    variance = float((flat.counts * residual**2).sum() / np.count_nonzero(flat.counts))
    design = np.column_stack([np.ones_like(flat.azimuth), np.cos(2 * flat.azimuth), np.sin(2 * flat.azimuth)])
    normal = (design * power[:, None]).T @ design
    a0, c2, s2 = np.linalg.solve(normal, (design * power[:, None]).T @ contrast)
    error = math.sqrt(variance * float(np.linalg.inv(normal)[1:, 1:].trace()) / 2.0)
    a2 = math.hypot(c2, s2)
    if a0 <= 0:
        return None
    worst = 0.5 * math.degrees(math.atan2(-s2, -c2)) % 180.0
    return DirectionalLoss(float((a0 - a2) / (a0 + a2)), float(a2 / max(error, 1e-300)), worst)


@dataclass(frozen=True, slots=True)
class IceNumbers:
    """Signs of crystalline ice near 3.7 A.

    Attributes
    ----------
    iciness : float
        Squared mean amplitude at 3.9-3.5 A over that at 30-6 A.
    ring : float
        Mean amplitude at 3.9-3.5 A over that of both flanks.
    spots : float
        Largest over median amplitude, relative to the local background, at 3.9-3.5 A.
    spot_deviations : float
        The largest amplitude's distance from the median in robust standard deviations.
    """

    iciness: float
    ring: float
    spots: float
    spot_deviations: float


def ice_numbers(amplitudes: Tensor, pixel_size: float) -> IceNumbers | None:
    """Measure crystalline ice; None where Nyquist does not reach beyond the ice ring."""
    if 2.0 * pixel_size > _BESIDE[1][1] * 0.97:
        return None
    size = amplitudes.shape[-2]
    fy, fx = frequencies((size, size))
    k = (fx * fx + fy * fy).sqrt().numpy() / pixel_size
    off_cross = (np.abs(fx.numpy()) * size >= 3) & (np.abs(fy.numpy()) * size >= 3)
    values = amplitudes.cpu().numpy().astype(np.float64)

    def band(limits: tuple[float, float]) -> np.ndarray:
        return values[(k >= 1.0 / limits[0]) & (k <= 1.0 / limits[1]) & off_cross]

    ice, low = band(_ICE), band((30.0, 6.0))
    beside = 0.5 * (band(_BESIDE[0]).mean() + band(_BESIDE[1]).mean())
    raw = polar_average(amplitudes, pixel_size, 30.0, 2.0 * pixel_size)
    level = np.interp(k, raw.frequency, background(raw))
    inside = (k >= 1.0 / _ICE[0]) & (k <= 1.0 / _ICE[1]) & off_cross
    relative = values[inside] / level[inside]
    middle = float(np.median(relative))
    deviation = 1.4826 * float(np.median(np.abs(relative - middle)))
    top = float(relative.max())
    return IceNumbers(
        iciness=float(ice.mean() ** 2 / low.mean() ** 2),
        ring=float(ice.mean() / beside),
        spots=top / middle,
        spot_deviations=(top - middle) / max(deviation, 1e-300),
    )
