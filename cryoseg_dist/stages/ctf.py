"""The contrast transfer function of each micrograph, and a verdict on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.ctf import wavelength
from cryoseg_dist.kernels.ctf_fit import CtfParameters, CtfSearch, fit_ctf
from cryoseg_dist.kernels.fit_resolution import (
    RingCurves,
    figure_of_merit,
    fit_resolution,
    ring_curves,
    thon_ring_picture,
)
from cryoseg_dist.kernels.quality import directional_loss, ice_numbers
from cryoseg_dist.kernels.spectrum import mean_amplitudes, tile_extent
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.schema.work import ArraySpec, Read, Region, Unit, UnitResult

PICTURE = 256  # px, side of the stored picture of each fit
CURVE = 256  # samples, at the most, of the stored curves


class CtfSettings(Settings):
    """Defocus estimation and what makes a micrograph unusable."""

    tile_size: int = Field(default=512, ge=128, le=4096, multiple_of=2)
    """Extent of the power spectrum in samples."""
    tile_overlap: float = Field(default=0.5, ge=0, lt=0.95)
    """Fraction by which neighbouring tiles overlap."""
    low_resolution: float = Field(default=30.0, gt=0)
    """Low-resolution end of the fit in A."""
    high_resolution: float = Field(default=5.0, gt=0)
    """High-resolution end of the fit in A."""
    defocus_min: float = Field(default=2000.0, ge=500)
    """Smallest mean defocus in A."""
    defocus_max: float = Field(default=60000.0, le=200000)
    """Largest mean defocus in A."""
    astigmatism_search: float = Field(default=6000.0, ge=0)
    """Largest difference of the two defoci in A that is searched."""
    fit_phase_shift: bool = False
    """Fit the phase shift of a phase plate too."""
    phase_shift: float = Field(default=0.0, ge=0, lt=180)
    """Phase shift in degrees where it is not fitted."""
    min_significance: float = Field(default=9.0, ge=0)
    """Fits less significant than this show no Thon rings (pure noise reaches about 6)."""
    max_resolution: float = Field(default=12.0, gt=0)
    """Micrographs whose rings end at a coarser resolution in A are not accepted."""
    max_astigmatism: float = Field(default=3000.0, gt=0)
    """Micrographs of larger astigmatism in A are not accepted."""
    min_drift_ratio: float = Field(default=0.1, ge=-1, le=1)
    """Least ring contrast of the worst direction over that across it; less means drift."""
    min_drift_significance: float = Field(default=5.0, ge=0)
    """Standard errors by which contrast must depend on direction before drift is called."""
    max_ice_ring: float = Field(default=1.3, gt=0)
    """Largest amplitude of the 3.7 A ice ring over its flanks."""
    max_ice_spot: float = Field(default=7.0, gt=0)
    """Largest amplitude near 3.7 A, in robust deviations from the median."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high_resolution >= self.low_resolution:
            raise ValueError("high_resolution must be finer (smaller) than low_resolution")
        if self.defocus_max <= self.defocus_min:
            raise ValueError("defocus_max must exceed defocus_min")
        return self

    @property
    def search(self) -> CtfSearch:
        """What the fit looks for."""
        return CtfSearch(
            low_resolution=self.low_resolution,
            high_resolution=self.high_resolution,
            defocus_min=self.defocus_min,
            defocus_max=self.defocus_max,
            astigmatism_max=self.astigmatism_search,
            phase_shift=self.fit_phase_shift,
            fixed_phase_shift=self.phase_shift,
        )


def plan(run: str, ingest_run: str, micrographs: Sequence[int], shape: tuple[int, int]) -> list[Unit]:
    """One unit a micrograph.

    Parameters
    ----------
    run, ingest_run : str
        Run ids, the folders of the arrays written and read.
    micrographs : sequence of int
        Positions along the first axis of the micrographs array.
    shape : (int, int)
        Rows and columns of a micrograph.
    """
    return [
        Unit(
            key=f"ctf/{m:06d}",
            reads={"image": Region(f"{ingest_run}/micrographs", (m, 0, 0), (m + 1, *shape))},
            writes={"spectrum": Region(f"{run}/spectra", (m, 0, 0), (m + 1, PICTURE, PICTURE))},
            parameters={"index": m},
        )
        for m in micrographs
    ]


def array_specs(run: str, n_micrographs: int) -> list[ArraySpec]:
    """Pictures of the fits, one shard a micrograph."""
    one = (1, PICTURE, PICTURE)
    return [
        ArraySpec(
            name=f"{run}/spectra",
            shape=(n_micrographs, PICTURE, PICTURE),
            dims=("micrograph", "y", "x"),
            dtype="float16",
            chunks=one,
            shards=one,
            doc="Flattened power spectrum (right) and fitted transfer function (left), centred, grey values 0 to 1",
        )
    ]


def reduce_curve(values: np.ndarray) -> list[float]:
    """At most ``CURVE`` rounded samples of a curve, by interpolation."""
    n = len(values)
    at = np.linspace(0, n - 1, min(n, CURVE))
    return [round(float(v), 5) for v in np.interp(at, np.arange(n), values)]


def estimate(image: Tensor, optics: Optics, settings: CtfSettings) -> tuple[Tensor, Optics, CtfParameters]:
    """Spectrum of a micrograph and the transfer function fitted to it.

    Two cases are fitted again. Where the rings are narrower than three samples before the fit's range ends, a spectrum
    of twice the extent is taken, as long as the micrograph holds a few tiles of it. Where the range holds fewer than
    five rings, near focus, it is extended to three quarters of its high-resolution limit.

    Returns
    -------
    amplitudes : Tensor, shape (size, size // 2 + 1)
    optics : Optics
        With the pixel size of the spectrum's grid.
    ctf : CtfParameters
    """
    size, search = settings.tile_size, settings.search
    while True:
        tile = tile_extent(optics.pixel_size, size)
        amplitudes = mean_amplitudes(image, tile, size, settings.tile_overlap)
        grid = replace(optics, pixel_size=optics.pixel_size * tile / size)
        ctf = fit_ctf(amplitudes, grid, search)
        end = 1.0 / max(search.high_resolution, 2.0 * grid.pixel_size)
        rings = wavelength(optics.voltage) * ctf.mean_defocus * end**2
        if rings < 5.0:
            near = replace(search, high_resolution=0.75 * search.high_resolution)
            return amplitudes, grid, fit_ctf(amplitudes, grid, near)
        samples = 0.5 * end * size * grid.pixel_size / rings
        if samples >= 3.0 or size >= 2 * settings.tile_size or 4 * tile > min(image.shape):
            return amplitudes, grid, ctf
        size *= 2


def reasons_against(numbers: Mapping[str, Any], pixel_size: float, settings: CtfSettings) -> list[str]:
    """Why a micrograph is not accepted, in words and figures; empty if it is.

    Parameters
    ----------
    numbers : Mapping
        Record of the stage.
    pixel_size : float
        A.
    settings : CtfSettings
    """
    out = []
    if numbers["ctf_significance"] < settings.min_significance:
        out.append(
            f"no Thon rings: the fit's significance is {numbers['ctf_significance']:.1f}, "
            f"{settings.min_significance:g} needed"
        )
    elif numbers["ctf_max_resolution"] is None:
        out.append("no Thon rings: spectrum and fit do not agree over two rings")
    if out:
        # What follows describes rings that are not there.
        return out + _ice_reasons(numbers, settings)
    coarsest = max(settings.max_resolution, 2.5 * pixel_size)
    if numbers["ctf_max_resolution"] > coarsest:
        out.append(
            f"no high-resolution signal: rings end at {numbers['ctf_max_resolution']:.1f} A, {coarsest:.1f} A needed"
        )
    if numbers["ctf_astigmatism"] > settings.max_astigmatism:
        out.append(f"astigmatism of {numbers['ctf_astigmatism']:.0f} A exceeds {settings.max_astigmatism:.0f} A")
    ratio, certainty = numbers["drift_ratio"], numbers["drift_significance"]
    if ratio is not None and ratio < settings.min_drift_ratio and certainty >= settings.min_drift_significance:
        out.append(
            f"drift: ring contrast along {numbers['drift_angle']:.0f} degrees is {ratio:.2f} of that across it, "
            f"{settings.min_drift_ratio:g} needed"
        )
    return out + _ice_reasons(numbers, settings)


def _ice_reasons(numbers: Mapping[str, Any], settings: CtfSettings) -> list[str]:
    out = []
    ring, spot = numbers["ice_ring"], numbers["ice_spot_deviations"]
    if ring is not None and ring > settings.max_ice_ring:
        out.append(f"crystalline ice: the 3.7 A ring is {ring:.2f} times its flanks, {settings.max_ice_ring:g} allowed")
    if spot is not None and spot > settings.max_ice_spot:
        out.append(
            f"crystalline ice: a spot near 3.7 A stands {spot:.1f} deviations out, {settings.max_ice_spot:g} allowed"
        )
    return out


@dataclass(frozen=True, slots=True)
class CtfStage:
    """Fit the transfer function of one micrograph a unit.

    Attributes
    ----------
    optics : Optics
        Of the micrographs.
    settings : CtfSettings
    """

    optics: Optics
    settings: CtfSettings

    @property
    def name(self) -> str:
        """Stage name."""
        return "ctf"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Nothing is shared."""
        return {}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> torch.device:
        """Device that transforms the tiles; the fit runs on the CPU."""
        return torch.device(device)

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Estimate, judge and draw; a micrograph without rings is judged, not refused."""
        image = torch.from_numpy(np.asarray(inputs["image"][0], dtype=np.float32)).to(state)
        amplitudes, grid, ctf = estimate(image, self.optics, self.settings)
        amplitudes = amplitudes.cpu()
        record = describe(amplitudes, grid, ctf, self.settings)
        # Rings are told apart by eye well before they end.
        edge = 1.4 * (record["ctf_max_resolution"] or self.settings.high_resolution)
        picture = thon_ring_picture(amplitudes, ctf, grid, min(edge, 0.5 * self.settings.low_resolution))
        return UnitResult(arrays={"spectrum": picture[None]}, record=record)


def describe(amplitudes: Tensor, grid: Optics, ctf: CtfParameters, settings: CtfSettings) -> dict[str, Any]:
    """Every number about a fit, its curves and the verdict, as JSON values.

    Parameters
    ----------
    amplitudes : Tensor, shape (size, size // 2 + 1)
    grid : Optics
        With the pixel size of the spectrum's grid.
    ctf : CtfParameters
    settings : CtfSettings
    """
    curves: RingCurves = ring_curves(amplitudes, ctf, grid, settings.low_resolution)
    limit = fit_resolution(curves) if ctf.significance >= settings.min_significance else None
    fine = max(settings.high_resolution, 2.2 * grid.pixel_size)
    loss = directional_loss(amplitudes, ctf, grid, min(max(12.0, 2.5 * fine), settings.low_resolution), fine)
    ice = ice_numbers(amplitudes, grid.pixel_size)
    numbers: dict[str, Any] = {
        "defocus_u": ctf.defocus_u,
        "defocus_v": ctf.defocus_v,
        "defocus_angle": ctf.defocus_angle,
        "phase_shift": ctf.phase_shift,
        "ctf_figure_of_merit": figure_of_merit(amplitudes, ctf, grid, settings.low_resolution, fine),
        "ctf_max_resolution": limit,
        "ctf_astigmatism": ctf.astigmatism,
        "ctf_score": ctf.score,
        "ctf_significance": ctf.significance,
        "drift_ratio": loss.ratio if loss else None,
        "drift_significance": loss.significance if loss else None,
        "drift_angle": loss.worst_angle if loss else None,
        "iciness": ice.iciness if ice else None,
        "ice_ring": ice.ring if ice else None,
        "ice_spot_ratio": ice.spots if ice else None,
        "ice_spot_deviations": ice.spot_deviations if ice else None,
    }
    numbers = {name: None if value is None else float(value) for name, value in numbers.items()}
    if not all(value is None or math.isfinite(value) for value in numbers.values()):
        raise BadInputError("micrograph", "a spectrum that a fit can describe", f"numbers {numbers}")
    reasons = reasons_against(numbers, grid.pixel_size, settings)
    return numbers | {
        "accepted": not reasons,
        "reasons": reasons,
        "curve_frequency": reduce_curve(curves.frequency),
        "curve_spectrum": reduce_curve(curves.spectrum),
        "curve_model": reduce_curve(curves.model),
        "curve_agreement": reduce_curve(curves.agreement),
    }
