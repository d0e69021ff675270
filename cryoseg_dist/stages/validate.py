"""What a map is worth, by direction and by place."""

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.kernels.conical_fsc import ANISOTROPY_LIMIT, ConicalFsc, conical_fsc
from cryoseg_dist.kernels.coverage import place_of
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.fsc import resolution
from cryoseg_dist.kernels.local_resolution import LocalResolution, filter_locally, local_resolution
from cryoseg_dist.kernels.map_comparison import MapComparison
from cryoseg_dist.kernels.sharpen import apply_b_factor, log_amplitude, weight_by_fsc
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.stages.postprocess import PostprocessResult

# Frequencies this share of the map's own limit beyond it are looked at for local resolution.
_FINER = 0.6
# Correlation of phase-randomised maps at the resolution above which the mask is to blame.
_MASK_SPEAKS = 0.2
# Resolution within this share of the grid's limit is limited by the grid.
_NEAR_NYQUIST = 1.05


class ValidateSettings(Settings):
    """Directional and local resolution."""

    enabled: bool = True
    """Whether a run measures them."""
    directions: int = Field(default=256, ge=16, le=4096)
    """Axes of the conical FSC."""
    cone_half_angle: float = Field(default=20.0, gt=1, lt=90)
    """Half angle of each double cone in degrees."""
    local_sampling: float = Field(default=15.0, gt=0)
    """Distance in A of points at which local resolution is measured."""
    local_radius: float = Field(default=12.5, gt=0)
    """Radius in A of the window around such a point."""
    local_edge: float = Field(default=25.0, gt=0)
    """Width in A of the window's soft edge."""
    local_coarsest: float = Field(default=50.0, gt=0)
    """Worst local resolution given, in A."""


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Resolution by direction and place, amplitudes by frequency.

    Attributes
    ----------
    conical : ConicalFsc
    direction_limits : tuple of float
        Resolution along the poorest and the best axis, A.
    local : LocalResolution
    local_filtered : Tensor, shape (n, n, n)
        The sharpened map, filtered at its local resolution.
    local_range : tuple of float
        Finest twentieth, median and coarsest twentieth of the local resolution within the mask, A.
    amplitudes : dict of str to Tensor, shape (n // 2 + 1,)
        Logarithms of shells' amplitudes: ``original``, ``weighted``, ``sharpened``, with ``inverse_square`` (1/A^2).
    words : tuple of str
        What the figures mean.
    """

    conical: ConicalFsc
    direction_limits: tuple[float, float]
    local: LocalResolution
    local_filtered: Tensor
    local_range: tuple[float, float, float]
    amplitudes: dict[str, Tensor]
    words: tuple[str, ...]


def validate(
    half1: Tensor, half2: Tensor, maps: PostprocessResult, pixel_size: float, settings: ValidateSettings
) -> ValidationResult:
    """Measure the resolution of half maps by direction and by place.

    Parameters
    ----------
    half1, half2 : Tensor, float32, shape (n, n, n)
    maps : PostprocessResult
        Of the same halves.
    pixel_size : float
        A.
    settings : ValidateSettings
    """
    n = half1.shape[-1]
    spectra = [to_fourier(h * maps.mask, 3) for h in (half1, half2)]
    conical = conical_fsc(
        *spectra,
        n_axes=settings.directions,
        half_angle=settings.cone_half_angle,
        filled=max(maps.mask_fraction, 1e-3),
    )
    limits = (n * pixel_size / float(conical.shells.min()), n * pixel_size / float(conical.shells.max()))
    local = local_resolution(
        half1,
        half2,
        maps.mask,
        pixel_size,
        sampling=settings.local_sampling,
        radius=settings.local_radius,
        edge=settings.local_edge,
        coarsest=settings.local_coarsest,
        finest=_FINER * maps.resolution,
    )
    inside = local.volume[maps.mask > 0.5]
    spread = torch.quantile(
        local.values if inside.numel() == 0 else inside[:: max(1, inside.numel() // 1_000_000)].double(),
        torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64),
    )
    spectrum = to_fourier(maps.unsharpened, 3)
    restored = spectrum if maps.b_factor is None else apply_b_factor(spectrum, pixel_size, maps.b_factor)
    amplitudes = {
        "inverse_square": (torch.arange(n // 2 + 1, dtype=torch.float64) / (n * pixel_size)).square(),
        "original": log_amplitude(spectrum),
        "weighted": log_amplitude(weight_by_fsc(spectrum, maps.curves["corrected"])),
        "sharpened": log_amplitude(to_fourier(maps.sharpened, 3)),
    }
    low, middle, high = (float(v) for v in spread)
    words = (
        resolution_words(maps, n, pixel_size),
        direction_words(conical, limits),
        f"Locally the map is resolved to {low:.1f} Å at its best (a twentieth of the mask is finer), {middle:.1f} Å in "
        f"the middle and {high:.1f} Å at its worst (a twentieth is coarser).",
        b_factor_words(maps),
    )
    return ValidationResult(
        conical=conical,
        direction_limits=limits,
        local=local,
        local_filtered=filter_locally(to_real(restored, n, 3), local.volume, pixel_size),
        local_range=(low, middle, high),
        amplitudes=amplitudes,
        words=words,
    )


def resolution_words(maps: PostprocessResult, size: int, pixel_size: float) -> str:
    """What the FSC says."""
    text = (
        f"The half maps agree to {maps.resolution:.2f} Å (corrected FSC 0.143), {maps.resolution_half:.2f} Å at 0.5 and "
        f"{maps.resolution_unmasked:.2f} Å without a mask."
    )
    if maps.resolution <= _NEAR_NYQUIST * 2.0 * pixel_size:
        return text + " That is the limit of the pixel size: a smaller pixel may hold more."
    shell = min(round(size * pixel_size / maps.resolution), len(maps.curves["randomised"]) - 1)
    if float(maps.curves["randomised"][shell]) > _MASK_SPEAKS:
        return text + (
            f" At that frequency the mask alone correlates to {float(maps.curves['randomised'][shell]):.2f}: "
            "it is tight or sharp, and a wider, softer one is safer."
        )
    return text


def direction_words(conical: ConicalFsc, limits: tuple[float, float]) -> str:
    """What the conical FSC says."""
    figures = (
        f"cFAR is {conical.ratio:.2f} (1 is even; chance alone gives {conical.chance:.2f} or more in 19 of 20 cases), "
        f"the poorest axis ends at {limits[0]:.1f} Å, the best at {limits[1]:.1f} Å"
    )
    if not conical.isotropic:
        return (
            f"Resolution depends on direction: {figures}. It is poorest along {place_of(conical.worst_axis)}, "
            "where views are missing or few."
        )
    if conical.ratio < ANISOTROPY_LIMIT:
        return f"Too few samples to tell directions apart: {figures}."
    return f"The map is resolved alike in all directions: {figures}."


def b_factor_words(maps: PostprocessResult) -> str:
    """What the Guinier plot says."""
    if maps.b_factor is None:
        return "No line could be fitted to the Guinier plot: the map ends too near 10 Å, and it was not sharpened."
    if maps.guinier is None:
        return f"The map was sharpened with a B-factor of {maps.b_factor:.0f} Å², as given."
    if abs(maps.guinier.b_factor - maps.b_factor) < 0.5:
        return f"The map was sharpened with a B-factor of {maps.b_factor:.0f} Å², the slope of the Guinier plot."
    return (
        f"The map was sharpened with a B-factor of {maps.b_factor:.0f} Å², as given; the Guinier plot's slope is "
        f"{maps.guinier.b_factor:.0f} Å²."
    )


def comparison_words(found: MapComparison, name: str, size: int, pixel_size: float) -> str:
    """What a comparison with another map or a model says."""
    half = resolution(found.curve, size, pixel_size, 0.5)
    text = f"The map agrees with {name} to {half:.2f} Å (FSC 0.5)"
    text += " where it lies" if found.in_place else " after it was moved into place"
    margin = abs(found.agreement - found.agreement_other_hand)
    hands = f"mean FSC {found.agreement:.2f} in the better hand, {found.agreement_other_hand:.2f} in the other"
    if not math.isfinite(margin) or margin < 0.02:
        return f"{text}; the hand cannot be told ({hands})."
    if found.mirrored:
        return f"{text}, and as its mirror image: one of the two has the wrong hand ({hands})."
    return f"{text}, in the same hand ({hands})."
