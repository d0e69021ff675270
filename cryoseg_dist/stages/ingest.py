"""Foreign micrographs into the project: checked, standardised, with a coarse level beside each."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.kernels.normalise import robust_standardise
from cryoseg_dist.kernels.rescale import fourier_rescale, rescale_ratio, rescaled_shape
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.schema.work import ArraySpec, ImageFile, Read, Region, Unit, UnitResult

FLOAT16_LIMIT = 6.0e4
CHUNK_EXTENT = 512
# Beyond this share of pixels, outliers are a feature (gold, a border), not the detector.
MOST_OUTLIERS = 1e-3


class IngestSettings(Settings):
    """Which micrographs are taken in, and how they are stored."""

    level_pixel_size: float = Field(default=8.0, gt=0, le=50)
    """Pixel size in A of the coarse level beside each micrograph; the nearest one that is exact on both axes is used."""
    pixel_size_tolerance: float = Field(default=0.05, gt=0, lt=1)
    """Relative difference between the pixel size in a header and the one in the settings that is still accepted."""
    check_pixel_size: bool = True
    """Set a micrograph aside where its header names another pixel size; turn off for files whose headers are wrong."""
    hot_pixel_sigma: float | None = Field(default=20.0, gt=3)
    """Pixels further than this many standard deviations from the median are replaced by the median around them."""
    max_blank_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of rows or columns without any contrast beyond which a micrograph is set aside."""


@dataclass(frozen=True, slots=True)
class MicrographHeader:
    """What is known of a micrograph before its pixels are read.

    Attributes
    ----------
    path : str
    shape : tuple of int, optional
        Sections, rows, columns; None where the header cannot be read.
    pixel_size : float, optional
        A, as the file says; None where it says nothing.
    fault : str
        Why the header cannot be read.
    """

    path: str
    shape: tuple[int, int, int] | None = None
    pixel_size: float | None = None
    fault: str = ""


def majority_shape(headers: Sequence[MicrographHeader]) -> tuple[int, int]:
    """Rows and columns that most readable single images have; the earliest wins a tie.

    Raises
    ------
    BadInputError
        No micrograph has a readable header.
    """
    sizes = Counter(h.shape[1:] for h in headers if h.shape is not None and h.shape[0] == 1)
    if not sizes:
        reasons = "; ".join(h.fault or f"{h.path} is a stack of {h.shape[0] if h.shape else 0}" for h in headers[:3])
        raise BadInputError(
            "micrographs",
            "at least one readable single image",
            reasons or "an empty list",
            "Check the pattern of --micrographs.",
        )
    return sizes.most_common(1)[0][0]


def header_pixel_size(header: MicrographHeader) -> float | None:
    """Pixel size in A of a header, None where it is a default (0 or 1) or nonsense."""
    p = header.pixel_size
    if p is None or not math.isfinite(p) or abs(p - 1.0) < 1e-3 or not 0.05 < p < 50.0:
        return None
    return p


def level_ratio(pixel_size: float, settings: IngestSettings) -> Fraction:
    """Sampling of the coarse level over that of the micrograph, at most 1."""
    return min(rescale_ratio(pixel_size, settings.level_pixel_size), Fraction(1))


def even_chunk(extent: int, wanted: int = CHUNK_EXTENT) -> tuple[int, int]:
    """Chunk extent near ``wanted``, and the shard of whole chunks that covers ``extent`` with least padding."""
    n = -(-extent // wanted)
    chunk = -(-extent // n)
    return chunk, chunk * n


def array_specs(
    run: str, n_micrographs: int, shape: tuple[int, int], pixel_size: float, settings: IngestSettings
) -> list[ArraySpec]:
    """Arrays of the stage: ``<run>/micrographs`` and ``<run>/level8``, one shard a micrograph."""
    ratio = level_ratio(pixel_size, settings)
    rows, columns = rescaled_shape(shape, ratio)
    (chunk_y, shard_y), (chunk_x, shard_x) = even_chunk(shape[0]), even_chunk(shape[1])
    dims = ("micrograph", "y", "x")
    return [
        ArraySpec(
            f"{run}/micrographs",
            (n_micrographs, *shape),
            dims,
            "float16",
            (1, chunk_y, chunk_x),
            (1, shard_y, shard_x),
            unit="sd",
            doc="Micrographs less their median, over their robust standard deviation; the detector's sign",
            attributes={"pixel_size": pixel_size},
        ),
        ArraySpec(
            f"{run}/level8",
            (n_micrographs, rows, columns),
            dims,
            "float16",
            (1, rows, columns),
            (1, rows, columns),
            unit="sd",
            doc="Fourier-cropped micrographs, standardised anew; sample (0, 0) is that of the micrograph",
            attributes={"pixel_size": float(pixel_size / ratio), "micrograph_pixel_size": pixel_size},
        ),
    ]


def plan(
    run: str, headers: Sequence[MicrographHeader], shape: tuple[int, int], pixel_size: float, settings: IngestSettings
) -> list[Unit]:
    """One unit a micrograph; one whose header already rules it out reads nothing and is set aside.

    Parameters
    ----------
    run : str
        Run id, the folder of the arrays.
    headers : sequence of MicrographHeader
        Its order numbers the micrographs.
    shape : tuple of int
        Rows and columns that are taken in, from :func:`majority_shape`.
    pixel_size : float
        A.
    settings : IngestSettings
    """
    specs = array_specs(run, len(headers), shape, pixel_size, settings)
    units = []
    for m, header in enumerate(headers):
        fault = _header_fault(header, shape, pixel_size, settings)
        parameters: dict[str, Any] = {"path": header.path, "index": m}
        if fault is not None:
            parameters["fault"] = (fault.where, fault.expected, fault.got, fault.remedy)
        units.append(
            Unit(
                key=f"ingest/{m:06d}",
                reads={} if fault is not None else {"image": ImageFile(header.path)},
                writes={
                    name: Region(spec.name, (m, 0, 0), (m + 1, *spec.shape[1:]))
                    for name, spec in zip(("micrograph", "level"), specs, strict=True)
                },
                parameters=parameters,
            )
        )
    return units


def _header_fault(
    header: MicrographHeader, shape: tuple[int, int], pixel_size: float, settings: IngestSettings
) -> BadInputError | None:
    if header.shape is None:
        return BadInputError(header.path, "a readable image", header.fault or "no header", "Copy the file again.")
    sections, *extents = header.shape
    if sections != 1:
        return BadInputError(
            header.path, "one image", f"a stack of {sections}", "Average the frames (motion correction) first."
        )
    if tuple(extents) != shape:
        return BadInputError(
            header.path,
            f"{shape[1]} x {shape[0]} pixels as most micrographs have",
            f"{extents[1]} x {extents[0]}",
            "Process images of another size as a project of their own.",
        )
    held = header_pixel_size(header)
    if settings.check_pixel_size and held is not None and abs(held / pixel_size - 1.0) > settings.pixel_size_tolerance:
        return BadInputError(
            header.path,
            f"{pixel_size:g} A per pixel as the settings say",
            f"{held:.4g} in the header",
            "Correct data.pixel_size, or set ingest.check_pixel_size = false.",
        )
    return None


def standardise(image: Tensor) -> tuple[Tensor, float, float]:
    """Robustly standardised image, its median and deviation.

    Coarsely quantised images, whose quartiles may coincide, take the plain standard deviation.
    """
    standard, middle, deviation = robust_standardise(image)
    if deviation > 0:
        return standard, middle, deviation
    deviation = float(image.double().std())
    return (standard / deviation if deviation > 0 else standard), middle, deviation


def replace_outliers(image: np.ndarray, limit: float) -> tuple[np.ndarray, int]:
    """Replace isolated pixels of a standardised image beyond ``limit`` by the median of the 5 x 5 pixels around.

    Where more than 0.1 % of the pixels lie beyond, they are no fault of the detector and are clipped instead.

    Returns
    -------
    image : ndarray
        The image itself where nothing is replaced, else a changed copy.
    count : int
        Pixels replaced.
    """
    rows, columns = np.nonzero(np.abs(image) > limit)
    if not len(rows):
        return image, 0
    if len(rows) > MOST_OUTLIERS * image.size:
        return np.clip(image, -limit, limit), len(rows)
    out = image.copy()
    for y, x in zip(rows, columns, strict=True):
        around = image[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        calm = around[np.abs(around) <= limit]
        out[y, x] = np.median(calm) if calm.size else math.copysign(limit, image[y, x])
    return out, len(rows)


def _check_pixels(image: np.ndarray, where: str, settings: IngestSettings) -> None:
    bad = int(image.size - np.count_nonzero(np.isfinite(image)))
    if bad:
        raise BadInputError(where, "finite pixels", f"{bad} NaN or infinite", "Repeat the motion correction.")
    if image.min() == image.max():
        raise BadInputError(where, "an image with contrast", f"the constant {image.flat[0]:g}", "Copy the file again.")
    blank = max(float(np.mean(image.min(axis=a) == image.max(axis=a))) for a in (0, 1))
    if blank > settings.max_blank_fraction:
        raise BadInputError(
            where,
            f"at most {settings.max_blank_fraction:.0%} of rows or columns without contrast",
            f"{blank:.0%}",
            "Copy the file again, or crop its blank edges.",
        )


@dataclass(frozen=True, slots=True)
class IngestStage:
    """Check a micrograph and standardise it.

    The micrograph is stored as float16 in units of its robust standard deviation, so that no grey value leaves
    float16's range and rounding (0.05 %) stays far below the noise. The record holds ``offset`` and ``scale``:
    original = stored * scale + offset, and as much for the level. The detector's sign stays.

    Attributes
    ----------
    settings : IngestSettings
    pixel_size : float
        A, of the micrographs.
    shape : tuple of int
        Rows and columns.
    """

    settings: IngestSettings
    pixel_size: float
    shape: tuple[int, int]

    @property
    def name(self) -> str:
        """Stage name."""
        return "ingest"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Nothing is shared."""
        return {}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> None:
        """Nothing is kept between units."""

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Check and standardise one micrograph.

        Returns
        -------
        UnitResult
            ``micrograph`` and ``level``; the record holds path, offset, scale, grey value range, replaced pixels,
            and pixel size, offset and scale of the level.

        Raises
        ------
        BadInputError
            The micrograph cannot be used.
        """
        where = str(unit.parameters["path"])
        if "fault" in unit.parameters:
            raise BadInputError(*unit.parameters["fault"])
        stack = inputs["image"]
        if stack.shape != (1, *self.shape):
            raise BadInputError(
                where, f"an image of shape {(1, *self.shape)}", f"{stack.shape}", "The file has changed."
            )
        image = stack[0].astype(np.float32)
        _check_pixels(image, where, self.settings)
        low, high = float(image.min()), float(image.max())
        standard, offset, scale = standardise(torch.from_numpy(image))
        image = standard.numpy()
        n_hot = 0
        if self.settings.hot_pixel_sigma is not None:
            image, n_hot = replace_outliers(image, self.settings.hot_pixel_sigma)
        ratio = level_ratio(self.pixel_size, self.settings)
        level, level_offset, level_scale = standardise(fourier_rescale(torch.from_numpy(image), ratio))
        return UnitResult(
            arrays={"micrograph": _to_half(image)[None], "level": _to_half(level.numpy())[None]},
            record={
                "path": where,
                "index": int(unit.parameters["index"]),
                "offset": offset,
                "scale": scale,
                "minimum": low,
                "maximum": high,
                "n_hot_pixels": n_hot,
                "level_pixel_size": float(self.pixel_size / ratio),
                "level_offset": level_offset,
                "level_scale": level_scale,
            },
        )


def _to_half(image: np.ndarray) -> np.ndarray:
    return np.clip(image, -FLOAT16_LIMIT, FLOAT16_LIMIT).astype(np.float16)
