"""Particle windows from micrographs, in shards of particles."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field

from cryoseg_dist.kernels.fourier import resample
from cryoseg_dist.kernels.sorting import FEATURES, outlier_scores, particle_statistics
from cryoseg_dist.kernels.windows import cut_windows, fast_even_size, normalise_background, remove_dust
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.schema.work import ArraySpec, Read, Region, Unit, UnitResult

SHARD, CHUNK = 1024, 16
# Pixels of windows worked on at once, which stay in the processor's cache; bytes of micrographs that a unit reads.
BATCH_PIXELS = 2**20
LARGEST_READ = 512 * 2**20
# Windows of almost no background contrast stay within float16.
LIMIT = 65000.0


class ExtractSettings(Settings):
    """Extraction and sorting of particle windows."""

    box_size: int | None = Field(default=None, ge=16, multiple_of=2)
    """Side of a window in pixels of the micrograph; 1.5 particle diameters when not given."""
    pixel_size: float | None = Field(default=None, gt=0)
    """Pixel size of the stored windows in A, at least that of the micrographs; a fortieth of the diameter when not given."""
    background_radius: float | None = Field(default=None, gt=0)
    """Radius in A beyond which a window is background; 0.5 diameters plus a tenth when not given."""
    dust: float | None = Field(default=6.0, gt=2)
    """Pixels beyond this many standard deviations are replaced by noise; kept when not given."""
    outlier: float = Field(default=7.0, gt=0)
    """Windows whose statistics lie further than this many robust deviations from the rest are sorted out."""


@dataclass(frozen=True, slots=True)
class WindowGeometry:
    """Sizes of windows before and after Fourier cropping.

    Attributes
    ----------
    raw : int
        Pixels of the micrograph.
    size : int
        Stored pixels.
    raw_pixel_size, pixel_size : float
        A.
    background_radius : float
        A.
    particle_radius : float
        A.
    """

    raw: int
    size: int
    raw_pixel_size: float
    pixel_size: float
    background_radius: float
    particle_radius: float


def window_geometry(settings: ExtractSettings, pixel_size: float, diameter: float) -> WindowGeometry:
    """Sizes that the settings, or the diameter, ask for."""
    raw = settings.box_size or fast_even_size(1.5 * diameter / pixel_size)
    wanted = settings.pixel_size or diameter / 40.0
    size = raw if wanted <= pixel_size else min(raw, fast_even_size(raw * pixel_size / wanted))
    radius = settings.background_radius or 0.55 * diameter
    return WindowGeometry(raw, size, pixel_size, raw * pixel_size / size, radius, 0.5 * diameter)


def shard_size(index: np.ndarray, shape: tuple[int, int], largest_read: int = LARGEST_READ) -> int:
    """Particles of a shard, so that none needs more micrographs than a unit may read.

    Parameters
    ----------
    index : ndarray, int, shape (p,)
        Micrograph of each particle, ascending.
    shape : tuple of int
        Rows and columns of a micrograph, float16.
    largest_read : int
        Bytes.

    Returns
    -------
    int
        1024, or half as often as needed down to a chunk of 16, the least there is: at one particle a micrograph a
        unit reads 16 micrographs, whatever their size.
    """
    allowed = max(1, largest_read // (2 * shape[0] * shape[1]))
    shard = SHARD
    while shard > CHUNK:
        starts = np.arange(0, len(index), shard)
        if all(len(np.unique(index[a : a + shard])) <= allowed for a in starts):
            break
        shard //= 2
    return shard


def array_specs(run: str, n_particles: int, where: WindowGeometry, shard: int = SHARD) -> list[ArraySpec]:
    """The arrays ``<run>/images`` and ``<run>/statistics``; ``shard`` is from :func:`shard_size`."""
    n = max(1, n_particles)
    shard = min(shard, CHUNK * math.ceil(n / CHUNK))
    return [
        ArraySpec(
            f"{run}/images",
            (n, where.size, where.size),
            ("particle", "y", "x"),
            "float16",
            (CHUNK, where.size, where.size),
            (shard, where.size, where.size),
            unit="sd",
            doc="Particle windows, protein white, background of mean 0 and standard deviation 1",
            attributes={"pixel_size": where.pixel_size},
        ),
        ArraySpec(
            f"{run}/statistics",
            (n, len(FEATURES)),
            ("particle", "feature"),
            "float32",
            (shard, len(FEATURES)),
            (shard, len(FEATURES)),
            doc=", ".join(FEATURES),
        ),
    ]


def plan(
    run: str,
    micrographs: str,
    shape: tuple[int, int],
    index: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    where: WindowGeometry,
    shard: int = SHARD,
) -> list[Unit]:
    """One unit a shard of particles, reading the micrographs that they lie in.

    Parameters
    ----------
    run, micrographs : str
        Run id; name of the micrographs array.
    shape : tuple of int
        Rows and columns of a micrograph.
    index : ndarray, int, shape (p,)
        Micrograph of each particle, ascending: the particle numbering.
    x, y : ndarray, shape (p,)
        Centres in pixels of the micrograph.
    where : WindowGeometry
    shard : int
        Particles of a shard, as given to :func:`array_specs`.
    """
    n, size = len(index), where.size
    shard = array_specs(run, n, where, shard)[0].shards[0]
    units = []
    for start in range(0, n, shard):
        stop = min(start + shard, n)
        needed = sorted({int(m) for m in index[start:stop]})
        units.append(
            Unit(
                key=f"extract/{start:09d}",
                reads={f"micrograph/{m}": Region(micrographs, (m, 0, 0), (m + 1, *shape)) for m in needed},
                writes={
                    "images": Region(f"{run}/images", (start, 0, 0), (stop, size, size)),
                    "statistics": Region(f"{run}/statistics", (start, 0), (stop, len(FEATURES))),
                },
                parameters={"index": index[start:stop], "x": x[start:stop], "y": y[start:stop], "start": start},
            )
        )
    return units


def rounded_centres(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that windows are centred on: the nearest ones, where RELION drops the fraction."""
    return np.round(x).astype(np.int64), np.round(y).astype(np.int64)


def residual_origins(x: np.ndarray, y: np.ndarray, pixel_size: float) -> tuple[np.ndarray, np.ndarray]:
    """``origin_x`` and ``origin_y`` in A that centre the particles of windows cut at whole pixels."""
    cx, cy = rounded_centres(x, y)
    return (cx - x) * pixel_size, (cy - y) * pixel_size


@dataclass(frozen=True, slots=True)
class ExtractStage:
    """Cuts, normalises and resamples the windows of a shard.

    Attributes
    ----------
    settings : ExtractSettings
    where : WindowGeometry
    protein_dark : bool
        Windows are inverted so that the protein is white.
    """

    settings: ExtractSettings
    where: WindowGeometry
    protein_dark: bool

    @property
    def name(self) -> str:
        """Stage name."""
        return "extract"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Nothing is shared."""
        return {}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> None:
        """Nothing is kept."""

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Windows and statistics of one shard."""
        where = self.where
        index = np.asarray(unit.parameters["index"])
        cx, cy = rounded_centres(np.asarray(unit.parameters["x"]), np.asarray(unit.parameters["y"]))
        images = np.empty((len(index), where.size, where.size), dtype=np.float16)
        statistics = np.empty((len(index), len(FEATURES)), dtype=np.float32)
        generator = torch.Generator().manual_seed(int(unit.parameters["start"]))
        batch = max(1, BATCH_PIXELS // where.raw**2)
        for m in np.unique(index):
            micrograph = torch.from_numpy(inputs[f"micrograph/{m}"][0].astype(np.float32))
            rows = np.flatnonzero(index == m)
            for first in range(0, len(rows), batch):
                some = rows[first : first + batch]
                windows = self._windows(micrograph, torch.from_numpy(cx[some]), torch.from_numpy(cy[some]), generator)
                images[some] = windows.numpy()
                statistics[some] = particle_statistics(windows, where.particle_radius / where.pixel_size).numpy()
        return UnitResult({"images": images, "statistics": statistics}, {"n": len(index)})

    def _windows(
        self, micrograph: torch.Tensor, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        where = self.where
        windows = cut_windows(micrograph, x, y, where.raw)
        if self.protein_dark:
            windows = -windows
        if self.settings.dust is not None:
            windows = remove_dust(windows, self.settings.dust, generator)
        windows = normalise_background(windows, where.background_radius / where.raw_pixel_size)
        if where.size != where.raw:
            windows = resample(windows, where.size)
            windows = normalise_background(windows, where.background_radius / where.pixel_size)
        return windows.clamp(-LIMIT, LIMIT)


def sort_particles(statistics: np.ndarray, settings: ExtractSettings) -> np.ndarray:
    """Which particles to keep.

    Parameters
    ----------
    statistics : ndarray, float32, shape (p, features)
        Of all particles.

    Returns
    -------
    ndarray, bool, shape (p,)
        True where the statistics lie near those of the rest and are finite.
    """
    finite = np.isfinite(statistics).all(axis=1)
    keep = finite.copy()
    if finite.any():
        keep[finite] = outlier_scores(torch.from_numpy(statistics[finite])).numpy() <= settings.outlier
    return keep


def usable_centres(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Which centres lie on the micrograph; windows may reach beyond it."""
    cx, cy = rounded_centres(np.asarray(x, float), np.asarray(y, float))
    return (cx >= 0) & (cy >= 0) & (cx < shape[1]) & (cy < shape[0])
