"""From two half maps to a mask, FSC curves, a resolution and a sharpened map."""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.fsc import corrected_fsc, crossing, fsc_of_maps, randomise_phases, resolution
from cryoseg_dist.kernels.mask import soft_sphere, solvent_mask
from cryoseg_dist.kernels.sharpen import Guinier, apply_b_factor, guinier, low_pass_shell, weight_by_fsc
from cryoseg_dist.schema.settings import Settings


class PostprocessSettings(Settings):
    """Masking, resolution and sharpening."""

    mask_low_pass: float = Field(default=15.0, gt=0)
    """Low pass in A before the mask's threshold."""
    mask_threshold: float | None = Field(default=None, gt=0)
    """Grey value of the mask's threshold; chosen from the solvent's noise when not given."""
    mask_extend: float = Field(default=3.0, ge=0)
    """Pixels by which the mask grows."""
    mask_edge: float = Field(default=6.0, ge=0)
    """Width of the mask's soft edge in pixels."""
    randomise_below: float = Field(default=0.8, gt=0, lt=1)
    """Phases are randomised from the shell where the unmasked FSC falls below this."""
    b_factor: float | None = None
    """B-factor in A^2 (negative sharpens); fitted to the Guinier plot when not given."""
    b_factor_low_resolution: float = Field(default=10.0, gt=0)
    """Low-resolution end of the Guinier fit in A."""
    seed: int = 0
    """Seed of the randomised phases."""


@dataclass(frozen=True, slots=True)
class PostprocessResult:
    """What two half maps are worth.

    Attributes
    ----------
    sharpened, unsharpened, mask : Tensor, shape (n, n, n)
    curves : dict of str to Tensor, shape (n // 2 + 1,)
        ``unmasked``, ``masked``, ``randomised``, ``corrected`` FSC.
    resolution : float
        A, where the corrected FSC falls below 0.143.
    resolution_half : float
        A, where it falls below 0.5.
    resolution_unmasked : float
        A, unmasked at 0.143.
    randomised_from : float
        A.
    b_factor : float or None
        A^2 applied; None when no line could be fitted and the map was not sharpened.
    guinier : Guinier or None
    mask_fraction : float
        Share of the box inside the mask.
    """

    sharpened: Tensor
    unsharpened: Tensor
    mask: Tensor
    curves: dict[str, Tensor]
    resolution: float
    resolution_half: float
    resolution_unmasked: float
    randomised_from: float
    b_factor: float | None
    guinier: Guinier | None
    mask_fraction: float


def automatic_mask(volume: Tensor, pixel_size: float, settings: PostprocessSettings, diameter: float | None) -> Tensor:
    """Soft solvent mask of a map.

    The threshold is the larger of 15 % of the map's brightest robust value and three standard deviations of
    the solvent, both measured on the low-passed map, the solvent being what lies outside the particle's
    diameter (outside the box's inscribed ball where no diameter is known). Nothing beyond that is density, unless a
    threshold is given and no diameter.
    """
    n = volume.shape[-1]
    cutoff = n * pixel_size / max(settings.mask_low_pass, 2.0 * pixel_size)
    smooth = to_real(low_pass_shell(to_fourier(volume, 3, centred=False), cutoff), n, 3, centred=False)
    radius = n / 2 if diameter is None else min(0.5 * diameter / pixel_size, n / 2)
    ball = soft_sphere(n, radius, 0.0)
    threshold = settings.mask_threshold
    if threshold is None:
        inside, outside = smooth[ball > 0], smooth[ball == 0]
        bright = float(torch.quantile(inside[:: max(1, inside.numel() // 1_000_000)], 0.999))
        threshold = max(0.15 * bright, float(outside.mean() + 3.0 * outside.std()))
    found = solvent_mask(smooth, threshold, settings.mask_extend, settings.mask_edge)
    if settings.mask_threshold is not None and diameter is None:
        return found
    outer = soft_sphere(n, min(1.15 * radius, n / 2 - settings.mask_edge), settings.mask_edge)
    return found * outer


def postprocess(
    half1: Tensor,
    half2: Tensor,
    pixel_size: float,
    settings: PostprocessSettings,
    *,
    diameter: float | None = None,
    mask: Tensor | None = None,
    full: Tensor | None = None,
) -> PostprocessResult:
    """Mask, compare and sharpen two independent half maps.

    Parameters
    ----------
    half1, half2 : Tensor, float32, shape (n, n, n)
        Unfiltered, unmasked, of one grey scale.
    pixel_size : float
        A.
    settings : PostprocessSettings
    diameter : float, optional
        Particle diameter in A, the outer bound of an automatic mask.
    mask : Tensor, optional
        Used instead of an automatic one.
    full : Tensor, optional
        The map of all particles together; the mean of the half maps when not given.

    Raises
    ------
    BadInputError
        Maps of different or non-cubic shape, or with NaN.
    """
    if half1.shape != half2.shape or len(set(half1.shape)) != 1:
        raise BadInputError(
            "half maps",
            "two cubes of one size",
            f"{tuple(half1.shape)} and {tuple(half2.shape)}",
            "Give the two halves of one refinement.",
        )
    if not (torch.isfinite(half1).all() and torch.isfinite(half2).all()):
        raise BadInputError("half maps", "finite values", "NaN or infinity")
    n = half1.shape[-1]
    average = 0.5 * (half1 + half2) if full is None else full
    if mask is None:
        mask = automatic_mask(average, pixel_size, settings, diameter)
        if float(mask.max()) == 0.0:
            radius = n / 2 if diameter is None else 0.5 * diameter / pixel_size
            mask = soft_sphere(n, min(radius, n / 2 - settings.mask_edge), settings.mask_edge)
    unmasked, masked = fsc_of_maps(half1, half2), fsc_of_maps(half1 * mask, half2 * mask)
    start = int(crossing(unmasked, settings.randomise_below)) + 1
    generator = torch.Generator().manual_seed(settings.seed)
    randomised = fsc_of_maps(*(randomise_phases(half, start, generator) * mask for half in (half1, half2)))
    corrected = corrected_fsc(masked, randomised, start)
    shell = crossing(corrected, 0.143)
    limit = n * pixel_size / shell

    spectrum = weight_by_fsc(to_fourier(average, 3, centred=False), corrected)
    plot = guinier(spectrum, pixel_size, settings.b_factor_low_resolution, limit)
    b_factor = settings.b_factor if settings.b_factor is not None else (plot.b_factor if plot else None)
    if b_factor is not None:
        spectrum = apply_b_factor(spectrum, pixel_size, b_factor)
    sharpened = to_real(low_pass_shell(spectrum, shell), n, 3, centred=False)
    return PostprocessResult(
        sharpened=sharpened,
        unsharpened=average,
        mask=mask,
        curves={"unmasked": unmasked, "masked": masked, "randomised": randomised, "corrected": corrected},
        resolution=limit,
        resolution_half=resolution(corrected, n, pixel_size, 0.5),
        resolution_unmasked=resolution(unmasked, n, pixel_size, 0.143),
        randomised_from=n * pixel_size / start,
        b_factor=b_factor,
        guinier=plot,
        mask_fraction=float(mask.mean()),
    )
