"""MRC2014 images, stacks and volumes, plain and gzipped."""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import mrcfile
import numpy as np
from mrcfile.mrcinterpreter import MrcInterpreter

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.memory import require_room

MODES = {
    0: "i1",
    1: "i2",
    2: "f4",
    6: "u2",
    12: "f2",
}
FOUR_BIT_MODE = 101
HEADER_BYTES = 1024
# An extent beyond this is a lie in the header, not an image.
LONGEST_AXIS = 1 << 20
# Deflate shrinks no data further than this.
LARGEST_GZIP_RATIO = 1032
IMOD_STAMP = 1146047817
LABEL = "cryoseg_dist"
LABELS, LABEL_WIDTH = 10, 80


@dataclass(frozen=True, slots=True)
class MrcHeader:
    """What an MRC file says of itself.

    Attributes
    ----------
    shape : tuple of int
        Sections, rows, columns.
    dtype : numpy.dtype
        With the file's byte order; of the unpacked values in 4-bit files.
    pixel_size : float or None
        A; None where the header holds none that makes sense.
    offset : int
        Bytes before the data.
    four_bit : bool
        Two values a byte (mode 101), the lower half first; rows begin on whole bytes.
    axes : tuple of int
        Which of x, y, z (1, 2, 3) columns, rows and sections run along.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    pixel_size: float | None
    offset: int
    four_bit: bool = False
    axes: tuple[int, int, int] = (1, 2, 3)

    @property
    def section_bytes(self) -> int:
        """Bytes of a section on disk."""
        _, ny, nx = self.shape
        return ny * ((nx + 1) // 2) if self.four_bit else ny * nx * self.dtype.itemsize


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader | gzip.GzipFile, bool]]:
    """Stream of the plain bytes, and whether they are compressed on disk."""
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if compressed:
            with gzip.GzipFile(fileobj=stream) as plain:
                yield plain, True
        else:
            yield stream, False


def mrc_header(path: Path) -> MrcHeader:
    """Read the header alone.

    Raises
    ------
    BadInputError
        Not an MRC file, an unknown mode, or impossible extents.
    """
    where = str(path)
    try:
        with _opened(path) as (stream, _):
            raw = stream.read(HEADER_BYTES)
    except (OSError, EOFError, zlib.error) as fault:
        raise BadInputError(where, "a readable MRC file", str(fault)) from None
    if len(raw) < HEADER_BYTES:
        raise BadInputError(where, "an MRC header of 1024 bytes", f"{len(raw)} bytes", "The file is cut short.")
    order = _byte_order(raw)
    if order is None:
        mode = int(np.frombuffer(raw, "<i4", 4)[3])
        raise BadInputError(where, "an MRC file of mode 0, 1, 2, 6, 12 or 101", f"mode {mode}")
    words = np.frombuffer(raw, dtype=f"{order}i4")
    nx, ny, nz, mode = (int(v) for v in words[:4])
    if not all(0 < n < LONGEST_AXIS for n in (nx, ny, nz)):
        raise BadInputError(where, "positive extents", f"{nx} x {ny} x {nz}", "The header is damaged.")
    extended = int(words[23])
    if extended < 0:
        raise BadInputError(where, "an extended header of 0 or more bytes", str(extended), "The header is damaged.")
    dtype = np.dtype("u1") if mode == FOUR_BIT_MODE else np.dtype(f"{order}{MODES[mode]}")
    if mode == 0 and int(words[38]) == IMOD_STAMP and not int(words[39]) & 1:
        # Older IMOD wrote unsigned bytes in mode 0 and says so with a cleared flag.
        dtype = np.dtype("u1")
    cell = float(np.frombuffer(raw, dtype=f"{order}f4")[10])
    mx = int(words[7])
    pixel = cell / mx if mx > 0 and np.isfinite(cell) and cell > 0 else None
    axes = (int(words[16]), int(words[17]), int(words[18]))
    return MrcHeader(
        (nz, ny, nx),
        dtype,
        pixel,
        HEADER_BYTES + extended,
        mode == FOUR_BIT_MODE,
        axes if sorted(axes) == [1, 2, 3] else (1, 2, 3),
    )


def _byte_order(raw: bytes) -> str | None:
    """Byte order under which mode and extents make sense, the one that the machine stamp names first."""
    stamped = ">" if raw[212:214] == b"\x11\x11" else "<"
    for order in (stamped, "<" if stamped == ">" else ">"):
        nx, _, _, mode = (int(v) for v in np.frombuffer(raw, f"{order}i4", 4))
        if (mode in MODES or mode == FOUR_BIT_MODE) and (order == stamped or 0 < nx < LONGEST_AXIS):
            return order
    return None


def _unpack(packed: np.ndarray, columns: int) -> np.ndarray:
    values = np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)
    return values[..., :columns]


def read_mrc(path: Path, sections: tuple[int, ...] | None = None) -> np.ndarray:
    """Read sections of an MRC file in its own dtype, native byte order; only those sections leave the disk.

    Parameters
    ----------
    path : Path
    sections : tuple of int, optional
        Zero-based; all when not given.

    Returns
    -------
    ndarray, shape (n, y, x)

    Raises
    ------
    BadInputError
        A damaged or short file, or sections that it does not have. No memory is taken for what is not there.
    """
    header = mrc_header(path)
    nz, ny, nx = header.shape
    needed = header.offset + nz * header.section_bytes
    width = (nx + 1) // 2 if header.four_bit else nx
    try:
        with _opened(path) as (stream, compressed):
            held = path.stat().st_size
            if needed > (held * LARGEST_GZIP_RATIO if compressed else held):
                raise BadInputError(
                    str(path), f"{needed} bytes", f"{held}", "The file is truncated or its header damaged."
                )
            wanted = tuple(range(nz)) if sections is None else sections
            outside = [s for s in wanted if not 0 <= s < nz]
            if outside:
                raise BadInputError(str(path), f"sections 1 to {nz}", f"section {outside[0] + 1}")
            require_room(str(path), len(wanted) * header.section_bytes)
            data = np.empty((len(wanted), ny, width), dtype=header.dtype)
            for first, count, position in _runs(wanted):
                stream.seek(header.offset + first * header.section_bytes)
                target = data[position : position + count].reshape(-1).view(np.uint8).data
                done = 0
                while done < len(target):
                    got = stream.readinto(target[done:])
                    if not got:
                        at = first + done // header.section_bytes + 1
                        raise BadInputError(
                            str(path), f"{nz} sections", f"an end within section {at}", "The file is truncated."
                        )
                    done += got
    except (OSError, EOFError, zlib.error) as fault:
        raise BadInputError(str(path), "readable data", str(fault), "The file is damaged.") from None
    if header.four_bit:
        return _unpack(data, nx)
    return data.astype(header.dtype.newbyteorder("="), copy=False)


def _runs(sections: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Neighbouring sections joined: first section, count, position in the output."""
    begin = 0
    for i in range(1, len(sections) + 1):
        if i == len(sections) or sections[i] != sections[i - 1] + 1:
            yield sections[begin], i - begin, begin
            begin = i


def read_volume(path: Path) -> tuple[np.ndarray, float]:
    """Read a map; other orders of axes are brought to z, y, x.

    Returns
    -------
    volume : ndarray, float32, shape (z, y, x)
    pixel_size : float
        A; 1.0 where the header holds none.

    Raises
    ------
    BadInputError
        A missing or damaged file.
    """
    if not path.is_file():
        raise BadInputError(str(path), "a map in MRC format", "no such file", "Check the path.")
    header = mrc_header(path)
    # Axis 0 of the data are sections (axes[2]), axis 1 rows, axis 2 columns.
    along = header.axes[::-1]
    volume = read_mrc(path).transpose([along.index(axis) for axis in (3, 2, 1)])
    return np.ascontiguousarray(volume, dtype=np.float32), 1.0 if header.pixel_size is None else header.pixel_size


def _write_labels(handle: MrcInterpreter, labels: Sequence[str]) -> None:
    """Ten labels of eighty characters: what does not fit goes on in the next, or is cut at the end."""
    pieces = [text[i : i + LABEL_WIDTH] for text in labels for i in range(0, len(text), LABEL_WIDTH)][:LABELS]
    handle.header.nlabl = len(pieces)
    handle.header.label[:] = b""
    handle.header.label[: len(pieces)] = [piece.encode("ascii", "replace") for piece in pieces]


def write_volume(path: Path, volume: np.ndarray, pixel_size: float, labels: Sequence[str] = (LABEL,)) -> None:
    """Write a map that ChimeraX and RELION open, atomically: mode 2, space group 1, origin 0.

    Parameters
    ----------
    volume : ndarray, shape (z, y, x)
    pixel_size : float
        A.
    labels : sequence of str
        Texts of the header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with mrcfile.new(str(partial), data=np.ascontiguousarray(volume, dtype=np.float32), overwrite=True) as handle:
        handle.set_volume()
        handle.voxel_size = pixel_size
        _write_labels(handle, labels)
    partial.replace(path)


def write_stack(path: Path, images: np.ndarray, pixel_size: float, labels: Sequence[str] = (LABEL,)) -> None:
    """Write an image or a stack of images, atomically.

    Parameters
    ----------
    images : ndarray, shape (y, x) or (n, y, x)
        int8 is written in mode 0, int16 1, uint16 6, float16 12, other floating point as float32 in mode 2.
    pixel_size : float
        A.
    labels : sequence of str
        Texts of the header.

    Raises
    ------
    ValueError
        A dtype that MRC has no mode for.
    """
    if images.dtype.kind == "f" and images.dtype != np.float16:
        images = images.astype(np.float32, copy=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with mrcfile.new(str(partial), data=np.ascontiguousarray(images), overwrite=True) as handle:
        if images.ndim == 3:
            handle.set_image_stack()
        handle.voxel_size = pixel_size
        # In float64: mrcfile's own sums overflow on float16.
        data = np.asarray(handle.data)
        handle.header.dmin, handle.header.dmax = data.min(), data.max()
        handle.header.dmean, handle.header.rms = data.mean(dtype=np.float64), data.std(dtype=np.float64)
        _write_labels(handle, labels)
    partial.replace(path)


def create_stack(path: Path, n: int, size: int, pixel_size: float, labels: Sequence[str] = (LABEL,)) -> np.memmap:
    """Make an empty float32 stack to be filled piece by piece; shape (n, size, size)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new_mmap(str(path), shape=(n, size, size), mrc_mode=2, overwrite=True) as handle:
        handle.set_image_stack()
        handle.voxel_size = pixel_size
        _write_labels(handle, labels)
    with path.open("r+b") as stream:
        # A full disk refuses here; later it would kill the process that writes to the mapped pages.
        os.posix_fallocate(stream.fileno(), 0, HEADER_BYTES + 4 * n * size * size)
    return np.memmap(path, dtype="<f4", mode="r+", offset=HEADER_BYTES, shape=(n, size, size))
