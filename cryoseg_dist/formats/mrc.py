"""MRC2014 images, stacks and volumes, plain and gzipped."""

import gzip
import zlib
from pathlib import Path

import mrcfile
import numpy as np
from mrcfile.mrcinterpreter import MrcInterpreter

from cryoseg_dist.errors import BadInputError

MODES = {
    0: np.dtype("i1"),
    1: np.dtype("<i2"),
    2: np.dtype("<f4"),
    6: np.dtype("<u2"),
    12: np.dtype("<f2"),
}
HEADER_BYTES = 1024
# An extent beyond this is a lie in the header, not an image.
LONGEST_AXIS = 1 << 20


def _opened(path: Path) -> gzip.GzipFile | object:
    with path.open("rb") as stream:
        magic = stream.read(2)
    return gzip.open(path, "rb") if magic == b"\x1f\x8b" else path.open("rb")


def mrc_header(path: Path) -> tuple[tuple[int, int, int], np.dtype, float | None, int]:
    """Read the header alone.

    Returns
    -------
    shape : tuple of int
        Sections, rows, columns.
    dtype : numpy.dtype
        With the file's byte order.
    pixel_size : float or None
        A; None where the header holds none that makes sense.
    offset : int
        Bytes before the data.

    Raises
    ------
    BadInputError
        Not an MRC file, an unknown mode, or impossible extents.
    """
    where = str(path)
    try:
        with _opened(path) as stream:  # type: ignore[attr-defined]
            raw = stream.read(HEADER_BYTES)
    except (OSError, EOFError, zlib.error) as fault:
        raise BadInputError(where, "a readable MRC file", str(fault)) from None
    if len(raw) < HEADER_BYTES:
        raise BadInputError(where, "an MRC header of 1024 bytes", f"{len(raw)} bytes", "The file is cut short.")
    order = ">" if raw[212:214] == b"\x11\x11" else "<"
    words = np.frombuffer(raw, dtype=f"{order}i4")
    nx, ny, nz, mode = (int(v) for v in words[:4])
    if mode not in MODES:
        swapped = np.frombuffer(raw, dtype=">i4" if order == "<" else "<i4")
        if int(swapped[3]) in MODES and 0 < int(swapped[0]) < LONGEST_AXIS:
            order = ">" if order == "<" else "<"
            words = swapped
            nx, ny, nz, mode = (int(v) for v in words[:4])
        else:
            raise BadInputError(where, "MRC mode 0, 1, 2, 6 or 12", f"mode {mode}")
    if not all(0 < n < LONGEST_AXIS for n in (nx, ny, nz)):
        raise BadInputError(where, "positive extents", f"{nx} x {ny} x {nz}", "The header is damaged.")
    extended = int(words[23])
    if extended < 0:
        raise BadInputError(where, "an extended header of 0 or more bytes", str(extended), "The header is damaged.")
    cell = float(np.frombuffer(raw[40:44], dtype=f"{order}f4")[0])
    mx = int(words[7])
    pixel = cell / mx if mx > 0 and np.isfinite(cell) and cell > 0 else None
    return (nz, ny, nx), MODES[mode].newbyteorder(order), pixel, HEADER_BYTES + extended


def read_mrc(path: Path, sections: tuple[int, ...] | None = None) -> np.ndarray:
    """Read sections of an MRC file in its own dtype, native byte order.

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
    (nz, ny, nx), dtype, _, offset = mrc_header(path)
    wanted = tuple(range(nz)) if sections is None else sections
    if any(not 0 <= s < nz for s in wanted):
        raise BadInputError(str(path), f"sections 1 to {nz}", f"section {max(wanted) + 1}")
    section_bytes = ny * nx * dtype.itemsize
    stream = _opened(path)
    with stream:  # type: ignore[attr-defined]
        compressed = isinstance(stream, gzip.GzipFile)
        if not compressed and path.stat().st_size < offset + nz * section_bytes:
            raise BadInputError(
                str(path),
                f"{offset + nz * section_bytes} bytes",
                f"{path.stat().st_size}",
                "The file is truncated; copy it again.",
            )
        parts = []
        try:
            for s in wanted:
                stream.seek(offset + s * section_bytes)  # type: ignore[attr-defined]
                data = stream.read(section_bytes)  # type: ignore[attr-defined]
                if len(data) < section_bytes:
                    raise BadInputError(str(path), f"{nz} sections", f"an end within section {s + 1}", "The file is truncated.")
                parts.append(np.frombuffer(data, dtype=dtype).reshape(ny, nx))
        except (OSError, EOFError, zlib.error) as fault:
            raise BadInputError(str(path), "readable data", str(fault), "The file is damaged.") from None
    return np.stack(parts).astype(dtype.newbyteorder("="), copy=False) if parts else np.empty((0, ny, nx), dtype)


def read_volume(path: Path) -> tuple[np.ndarray, float]:
    """Read a map.

    Returns
    -------
    volume : ndarray, float32, shape (z, y, x)
    pixel_size : float
        A; 1.0 where the header holds none.
    """
    _, _, pixel, _ = mrc_header(path)
    return read_mrc(path).astype(np.float32), 1.0 if pixel is None else pixel


def _finish_header(handle: MrcInterpreter, pixel_size: float) -> None:
    handle.voxel_size = pixel_size
    handle.update_header_stats()


def write_volume(path: Path, volume: np.ndarray, pixel_size: float) -> None:
    """Write a map that ChimeraX and RELION open: mode 2, space group 1, origin 0.

    Parameters
    ----------
    volume : ndarray, shape (z, y, x)
    pixel_size : float
        A.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with mrcfile.new(str(partial), data=np.ascontiguousarray(volume, dtype=np.float32), overwrite=True) as handle:
        handle.set_volume()
        _finish_header(handle, pixel_size)
    partial.replace(path)


def write_stack(path: Path, images: np.ndarray, pixel_size: float) -> None:
    """Write an image or a stack of images in mode 2, or 6 for unsigned integers, 12 for float16.

    Parameters
    ----------
    images : ndarray, shape (y, x) or (n, y, x)
    pixel_size : float
        A.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with mrcfile.new(str(partial), data=np.ascontiguousarray(images), overwrite=True) as handle:
        if images.ndim == 3:
            handle.set_image_stack()
        _finish_header(handle, pixel_size)
    partial.replace(path)


def create_stack(path: Path, n: int, size: int, pixel_size: float) -> np.memmap:
    """Make an empty float32 stack to be filled piece by piece; shape (n, size, size)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new_mmap(str(path), shape=(n, size, size), mrc_mode=2, overwrite=True) as handle:
        handle.set_image_stack()
        handle.voxel_size = pixel_size
    return np.memmap(path, dtype="<f4", mode="r+", offset=HEADER_BYTES, shape=(n, size, size))
