"""Every reader of foreign files with seeds of its format, and what it must do with any bytes at all."""

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cryoseg_dist.errors import BadInputError, CryosegError
from cryoseg_dist.formats.coordinates import read_coordinates
from cryoseg_dist.formats.cs import read_cs
from cryoseg_dist.formats.fsc_files import read_fsc
from cryoseg_dist.formats.images import image_header, read_images
from cryoseg_dist.formats.mrc import read_volume, write_stack
from cryoseg_dist.formats.star import image_reads, read_star
from cryoseg_dist.pipeline.config import build_settings, from_toml
from cryoseg_dist.schema.work import ImageFile

STAR = """\
# version 30001
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnImagePixelSize #5
1 "one two" 300 2.7 1.5

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnAngleRot #4
_rlnOriginXAngst #5
_rlnRandomSubset #6
000001@a.mrcs 0007 1 3.5 -1 1
000002@a.mrcs 0008 1 1e-07 2 2
"""
STAR_30 = """\
data_

loop_
_rlnImageName
_rlnVoltage
_rlnDetectorPixelSize
_rlnMagnification
_rlnOriginX
1@a.mrcs 300 5 20000 2
2@a.mrcs 300 5 10000 -1
"""
TOML = """\
[data]
micrographs = "*.mrc"
pixel_size = 1.5
voltage = 300
spherical_aberration = 2.7
image_roots = ["/data"]
[particle]
diameter = 130
symmetry = "D2"
[ctf]
tile_size = 512
"""
XML = (
    '<fsc title="a" xaxis="Resolution (A-1)" yaxis="Correlation Coefficient"><coordinate><x>0.1</x><y>0.9</y>'
    "</coordinate><coordinate><x>0.2</x><y>0.5</y></coordinate></fsc>"
)


class NotToldError(AssertionError):
    """A reader did something else than read or refuse in words."""


@dataclass(frozen=True)
class Format:
    """A format: how its files are called, what reads them, and small good files to begin with."""

    suffix: str
    read: Callable[[Path], Any]
    seeds: Callable[[Path], list[bytes]]


def _image(path: Path) -> None:
    header = image_header(path)
    images = read_images(ImageFile(str(path)))
    if images.ndim != 3 or images.shape != header.shape:
        raise NotToldError(f"header {header.shape}, images {images.shape}")


def _volume(path: Path) -> None:
    _image(path)
    volume, pixel_size = read_volume(path)
    if volume.ndim != 3 or not pixel_size > 0:
        raise NotToldError(f"volume of shape {volume.shape}, pixel size {pixel_size}")


def _star(path: Path) -> None:
    tables = read_star(path)
    if "image_name" in tables.rows:
        image_reads(list(tables.rows["image_name"]), path.parent)
    for name in ("rot", "origin_x", "defocus_u", "coordinate_x"):
        if name in tables.rows and not np.isfinite(tables.rows[name]).all():
            raise NotToldError(f"{name} is not finite")


def _cs(path: Path) -> None:
    rows = read_cs(path).rows
    for name in ("rot", "origin_x", "defocus_u", "coordinate_x"):
        if name in rows and not np.isfinite(rows[name].to_numpy(float)).all():
            raise NotToldError(f"{name} is not finite")


def _coordinates(path: Path) -> None:
    found = read_coordinates(path)
    if found.ndim != 2 or found.shape[1] != 2 or not np.isfinite(found).all():
        raise NotToldError(f"coordinates of shape {found.shape}, not all finite")


def _settings(path: Path) -> None:
    build_settings(from_toml(path))


def _mrc_seeds(folder: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    seeds = []
    for dtype in (np.int8, np.float16, np.float32):
        write_stack(folder / "seed.mrcs", (rng.normal(size=(2, 4, 5)) * 20).astype(dtype), 1.5)
        seeds.append((folder / "seed.mrcs").read_bytes())
    return seeds


def _gzip_seeds(folder: Path) -> list[bytes]:
    return [gzip.compress(seed, mtime=0) for seed in _mrc_seeds(folder)]


def _tiff_seeds(folder: Path) -> list[bytes]:
    image = np.random.default_rng(0).integers(0, 99, (2, 8, 9)).astype(np.uint16)
    choices: list[dict[str, Any]] = [
        {}, {"compression": "zlib"}, {"bigtiff": True}, {"byteorder": ">"}, {"rowsperstrip": 3}, {"tile": (16, 16)}
    ]  # fmt: skip
    seeds = []
    for options in choices:
        tifffile.imwrite(folder / "seed.tif", image, photometric="minisblack", **options)
        seeds.append((folder / "seed.tif").read_bytes())
    return seeds


def _spider_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for order in "<>":
        words = np.zeros(256, f"{order}f4")
        words[[0, 1, 4, 11, 21, 37]] = (1, 8, 1, 8, 1024, 1.5)
        image = np.arange(64, dtype=f"{order}f4").tobytes()
        seeds.append(words.tobytes() + image)
        words[[23, 25]] = (2, 2)
        seeds.append(words.tobytes() + 2 * (words.tobytes() + image))
    return seeds


def cs_table(n: int = 3) -> np.ndarray:
    """A small cryoSPARC table with every kind of column that the reader knows."""
    fields = [
        ("uid", "<u8"), ("blob/path", "S12"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
        ("blob/sign", "<f4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/df1_A", "<f4"),
        ("ctf/df_angle_rad", "<f4"), ("ctf/exp_group_id", "<u4"), ("ctf/tilt_A", "<f4", (2,)),
        ("location/micrograph_path", "S8"), ("location/micrograph_shape", "<u4", (2,)),
        ("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4"), ("alignments3D/split", "<u4"),
        ("alignments3D/shift", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)), ("alignments3D/class", "<u4"),
    ]  # fmt: skip
    table = np.ones(n, dtype=fields)
    table["blob/path"] = b">J1/a.mrcs"
    return table


def _cs_seeds(folder: Path) -> list[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, cs_table())
    return [buffer.getvalue()]


def _texts(*texts: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [text.encode() for text in texts]


FORMATS = {
    "mrc": Format(".mrc", _volume, _mrc_seeds),
    "mrc.gz": Format(".mrc.gz", _volume, _gzip_seeds),
    "tiff": Format(".tif", _image, _tiff_seeds),
    "spider": Format(".spi", _image, _spider_seeds),
    "star": Format(".star", _star, _texts(STAR, STAR_30)),
    "cs": Format(".cs", _cs, _cs_seeds),
    "csv": Format(".csv", _coordinates, _texts("x_px,y_px\n1.5,2\n3,4\n", "X-Coordinate (px),Y-Coordinate\n1,2\n")),
    "box": Format(".box", _coordinates, _texts("10\t20\t16\t16\n30 40 16 16\n")),
    "coordinates.star": Format(
        ".star", _coordinates, _texts("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n1.5 2\n3 4\n")
    ),
    "toml": Format(".toml", _settings, _texts(TOML)),
    "fsc.xml": Format(".xml", read_fsc, _texts(XML)),
}


def attempt(form: Format, path: Path) -> bool:
    """Read a file; whether it could be read. A refusal must be in words and before memory runs out.

    Raises
    ------
    NotToldError
        A refusal that was none of ours, or came from the allocator.
    """
    try:
        form.read(path)
    except BadInputError as fault:
        if "MemoryError" in str(fault) or "allocate" in str(fault):
            raise NotToldError(f"memory was asked for first: {fault}") from None
        return False
    except CryosegError:
        return False
    return True
