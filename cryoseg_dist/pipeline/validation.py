"""Figures, files and views of a map's validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.fsc_files import write_fsc_star, write_fsc_xml
from cryoseg_dist.formats.mrc import mrc_header, read_volume, write_volume
from cryoseg_dist.kernels.fsc import resolution
from cryoseg_dist.kernels.map_comparison import MapComparison, compare_maps, on_grid
from cryoseg_dist.pipeline.provenance import Provenance
from cryoseg_dist.report import data_validation as views
from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.stages.particle_curve import ParticleCurve
from cryoseg_dist.stages.postprocess import PostprocessResult, PostprocessSettings
from cryoseg_dist.stages.validate import ValidationResult, comparison_words

# Pixel sizes that differ by more than this share are different.
_SAME_PIXEL = 1e-3
# Mean FSC with another map above which the two are called alike.
_ALIKE = 0.5


@dataclass(frozen=True)
class Halves:
    """Two half maps of one grid.

    Attributes
    ----------
    half1, half2 : Tensor, float32, shape (n, n, n)
    pixel_size : float
        A.
    """

    half1: Tensor
    half2: Tensor
    pixel_size: float


def read_cube(path: Path, pixel_size: float | None = None) -> tuple[Tensor, float]:
    """A cubic map and its pixel size.

    Parameters
    ----------
    path : Path
    pixel_size : float, optional
        A; the header's when not given.

    Raises
    ------
    BadInputError
        No file, not a cube, values that are not finite or all the same, or no pixel size anywhere.
    """
    volume, pixel = read_volume(path)
    where = str(path)
    if len(set(volume.shape)) != 1:
        raise BadInputError(where, "a cubic map", " x ".join(map(str, volume.shape[::-1])), "Pad it to a cube.")
    if not np.isfinite(volume).all():
        raise BadInputError(where, "finite values", "NaN or infinity")
    if float(volume.std()) == 0.0:
        raise BadInputError(where, "a map", f"{float(volume.flat[0]):g} everywhere")
    if pixel_size is None and mrc_header(path).pixel_size is None:
        raise BadInputError(where, "a pixel size in the header", "none", "Give --pixel-size.")
    return torch.from_numpy(volume), pixel if pixel_size is None else pixel_size


def read_halves(first: Path, second: Path, pixel_size: float | None = None) -> Halves:
    """Two half maps.

    Raises
    ------
    BadInputError
        As :func:`read_cube`; maps of different size or pixel size, or twice the same map.
    """
    half1, pixel = read_cube(first, pixel_size)
    half2, other = read_cube(second, pixel_size)
    where = f"{first} and {second}"
    if half1.shape != half2.shape:
        sizes = f"{half1.shape[-1]} and {half2.shape[-1]} pixels"
        raise BadInputError(where, "two maps of one size", sizes, "Give the two halves of one refinement.")
    if abs(pixel / other - 1.0) > _SAME_PIXEL:
        raise BadInputError(
            where, "two maps of one pixel size", f"{pixel:g} and {other:g} A", "Correct a header, or give --pixel-size."
        )
    if torch.equal(half1, half2):
        raise BadInputError(
            where,
            "two independent halves",
            "the same map twice",
            "Give the half maps, which each saw half the particles.",
        )
    return Halves(half1, half2, pixel)


def read_on_grid(path: Path, size: int, pixel_size: float) -> Tensor:
    """A map of a grid that another set.

    Raises
    ------
    BadInputError
        As :func:`read_cube`, or another grid.
    """
    volume, pixel = read_cube(path, None if mrc_header(path).pixel_size is not None else pixel_size)
    if volume.shape[-1] != size or abs(pixel / pixel_size - 1.0) > 0.01:
        raise BadInputError(
            str(path),
            f"{size} pixels of {pixel_size:g} A, as the map",
            f"{volume.shape[-1]} pixels of {pixel:g} A",
            "Make one on the map's grid.",
        )
    return volume


def read_mask(path: Path, size: int, pixel_size: float) -> Tensor:
    """A mask of a map's grid.

    Raises
    ------
    BadInputError
        As :func:`read_on_grid`, or values that are not those of a mask.
    """
    mask = read_on_grid(path, size, pixel_size)
    low, high = float(mask.min()), float(mask.max())
    if low < -1e-3 or high > 1.0 + 1e-3 or high < 0.5:
        raise BadInputError(
            str(path), "values from 0 to 1", f"{low:g} to {high:g}", "Make a mask of it: `cryoseg mask`."
        )
    return mask.clamp(0.0, 1.0)


def compared(
    volume: Tensor, other: Tensor, other_pixel: float, maps: PostprocessResult, pixel_size: float
) -> MapComparison:
    """A map beside another of any grid, within the map's mask and to its resolution."""
    n = volume.shape[-1]
    shell = n * pixel_size / maps.resolution_half
    return compare_maps(volume, on_grid(other, other_pixel, n, pixel_size), maps.mask, shell)


def map_figures(maps: PostprocessResult) -> dict[str, Any]:
    """Figures of the half maps, as JSON values."""
    return {
        "resolution": maps.resolution,
        "resolution_half": maps.resolution_half,
        "resolution_unmasked": maps.resolution_unmasked,
        "phases_randomised_from": maps.randomised_from,
        "b_factor": maps.b_factor,
        "mask_fraction": maps.mask_fraction,
        "fsc": {name: [round(float(v), 5) for v in curve] for name, curve in maps.curves.items()},
    }


def validation_figures(found: ValidationResult) -> dict[str, Any]:
    """Figures by direction and place, as JSON values."""
    low, middle, high = found.local_range
    return {
        "cfar": found.conical.ratio,
        "cfar_of_chance": found.conical.chance,
        "isotropic": found.conical.isotropic,
        "poorest_axis": list(found.conical.worst_axis),
        "poorest_axis_resolution": found.direction_limits[0],
        "best_axis_resolution": found.direction_limits[1],
        "local_resolution_fine": low,
        "local_resolution_median": middle,
        "local_resolution_coarse": high,
        "guinier": {name: [round(float(v), 6) for v in values] for name, values in found.amplitudes.items()},
        "words": list(found.words),
    }


def curve_figures(curve: ParticleCurve) -> dict[str, Any]:
    """Resolution against particles, as JSON values."""
    return {
        "particles": list(curve.counts),
        "resolution": list(curve.resolutions),
        "slope": curve.slope,
        "intercept": curve.intercept,
        "b_factor": curve.b_factor if np.isfinite(curve.b_factor) else None,
        "words": curve.words,
    }


def comparison_figures(found: MapComparison, name: str, size: int, pixel_size: float) -> dict[str, Any]:
    """A comparison, as JSON values."""
    return {
        "with": name,
        "resolution_half": resolution(found.curve, size, pixel_size, 0.5),
        "resolution_0143": resolution(found.curve, size, pixel_size),
        "mean_fsc": found.agreement,
        "mean_fsc_other_hand": found.agreement_other_hand,
        "mirrored": found.mirrored,
        "in_place": found.in_place,
        "fsc": [round(float(v), 5) for v in found.curve],
        "fsc_other_hand": [round(float(v), 5) for v in found.curve_other_hand],
        "words": comparison_words(found, name, size, pixel_size),
    }


def write_fsc(
    folder: Path, maps: PostprocessResult, found: ValidationResult | None, pixel_size: float, made: Provenance
) -> None:
    """``fsc.star``, with the Guinier plot where there is one, and ``fsc.xml``."""
    size = maps.mask.shape[-1]
    curves = {name: curve.numpy() for name, curve in maps.curves.items()}
    figures: dict[str, object] = {
        "rlnFinalResolution": maps.resolution,
        "rlnBfactorUsedForSharpening": maps.b_factor or 0.0,
        "rlnRandomiseFrom": maps.randomised_from,
    }
    table: dict[str, np.ndarray] | None = None
    if maps.guinier is not None:
        figures |= {
            "rlnFittedSlopeGuinierPlot": maps.guinier.b_factor / 4.0,
            "rlnFittedInterceptGuinierPlot": maps.guinier.intercept,
        }
    if found is not None:
        table = {name: values.numpy() for name, values in found.amplitudes.items()}
        if maps.guinier is not None:
            table["line"] = np.full(len(table["original"]), maps.guinier.intercept)
    write_fsc_star(folder / "fsc.star", curves, size, pixel_size, figures, table, made.lines())
    write_fsc_xml(folder / "fsc.xml", curves["corrected"], size, pixel_size, "Corrected half-map FSC", made.lines())


def write_validation_maps(folder: Path, found: ValidationResult, pixel_size: float, made: Provenance) -> None:
    """``local_resolution.mrc`` and ``map_local_filtered.mrc``."""
    write_volume(folder / "local_resolution.mrc", found.local.volume.numpy(), pixel_size, made.lines())
    write_volume(folder / "map_local_filtered.mrc", found.local_filtered.numpy(), pixel_size, made.lines())


def fsc_view(maps: PostprocessResult, pixel_size: float) -> FscView:
    """The curves of the half maps."""
    curves = {name: curve.numpy() for name, curve in maps.curves.items()}
    return FscView(curves, maps.mask.shape[-1], pixel_size, maps.resolution, maps.resolution_half)


def validation_view(
    maps: PostprocessResult,
    found: ValidationResult,
    settings: PostprocessSettings,
    pixel_size: float,
    *,
    curve: ParticleCurve | None = None,
    comparisons: Mapping[str, MapComparison] | None = None,
) -> views.ValidationView:
    """What a page shows."""
    n = maps.mask.shape[-1]
    resolution_words, direction_words, local_words, b_factor_words = found.words
    line = maps.guinier
    return views.ValidationView(
        direction=views.DirectionView(
            found.conical.axes.numpy(),
            found.conical.curves.numpy(),
            found.conical.areas.numpy(),
            n,
            pixel_size,
            direction_words,
            found.conical.isotropic,
        ),
        local=views.LocalView(
            maps.sharpened.numpy(), found.local.volume.numpy(), maps.mask.numpy(), pixel_size, local_words
        ),
        guinier=views.GuinierView(
            inverse_square=found.amplitudes["inverse_square"].numpy(),
            original=found.amplitudes["original"].numpy(),
            weighted=found.amplitudes["weighted"].numpy(),
            sharpened=found.amplitudes["sharpened"].numpy(),
            resolution=maps.resolution,
            slope=None if line is None else line.b_factor / 4.0,
            intercept=None if line is None else line.intercept,
            fitted_from=settings.b_factor_low_resolution,
            words=b_factor_words,
        ),
        particles=None
        if curve is None
        else views.ParticleCurveView(
            curve.counts, curve.resolutions, curve.slope, curve.intercept, pixel_size, curve.words
        ),
        comparisons=[
            views.ComparisonView(
                name,
                FscView(
                    {"better hand": c.curve.numpy(), "other hand": c.curve_other_hand.numpy()},
                    n,
                    pixel_size,
                    None,
                    resolution(c.curve, n, pixel_size, 0.5),
                ),
                comparison_words(c, name, n, pixel_size),
                c.agreement > _ALIKE and not c.mirrored,
            )
            for name, c in (comparisons or {}).items()
        ],
        resolution_words=resolution_words,
    )
