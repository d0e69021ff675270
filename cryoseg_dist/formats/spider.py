"""SPIDER images, stacks and volumes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.memory import require_room

# 1-based words of the header, all float32.
SLICES, ROWS, FORM, COLUMNS, HEADER_LENGTH, IN_STACK, LAST_IMAGE, PIXEL_SIZE = 1, 2, 5, 12, 22, 24, 26, 38
FIRST_WORDS = 64


@dataclass(frozen=True, slots=True)
class SpiderHeader:
    """What a SPIDER file says of itself.

    Attributes
    ----------
    shape : tuple of int
        Images (or slices), rows, columns.
    dtype : numpy.dtype
        float32 in the file's byte order.
    pixel_size : float or None
        A.
    offset : int
        Bytes before the first image's pixels.
    stride : int
        Bytes from one image's pixels to the next one's.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    pixel_size: float | None
    offset: int
    stride: int


def _parse(start: bytes) -> SpiderHeader | None:
    if len(start) < 4 * FIRST_WORDS:
        return None
    for order in "<>":
        words = np.frombuffer(start, f"{order}f4", FIRST_WORDS)
        sizes = words[[i - 1 for i in (SLICES, ROWS, COLUMNS, FORM, HEADER_LENGTH, IN_STACK, LAST_IMAGE)]]
        if not np.isfinite(sizes).all() or (np.abs(sizes) > 1e8).any() or (sizes != np.round(sizes)).any():
            continue
        slices, rows, columns, form, length, stacked, last = (int(v) for v in sizes)
        # Forms 1 and 3: image and volume in real space. Headers are whole records of one row.
        if form not in (1, 3) or min(slices, rows, columns, length) < 1 or length % (4 * columns) or length < 1024:
            continue
        image = 4 * rows * columns
        pixel = float(words[PIXEL_SIZE - 1])
        size = pixel if np.isfinite(pixel) and pixel > 0 else None
        dtype = np.dtype(f"{order}f4")
        if stacked > 0 and slices == 1:
            return SpiderHeader((max(last, 1), rows, columns), dtype, size, 2 * length, length + image)
        return SpiderHeader((slices, rows, columns), dtype, size, length, image)
    return None


def is_spider(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a SPIDER image, stack or volume; 256 bytes decide."""
    return _parse(start) is not None


def spider_header(path: Path) -> SpiderHeader:
    """Read the header alone.

    Raises
    ------
    BadInputError
        Not a SPIDER file of real-space images.
    """
    with path.open("rb") as stream:
        header = _parse(stream.read(4 * FIRST_WORDS))
    if header is None:
        raise BadInputError(str(path), "a SPIDER image, stack or volume", "another header")
    return header


def read_spider(path: Path, sections: tuple[int, ...] | None = None) -> np.ndarray:
    """Read images of a stack, or slices of a volume.

    Returns
    -------
    ndarray, float32, shape (n, y, x)

    Raises
    ------
    BadInputError
        A damaged or short file, or sections that it does not have.
    """
    header = spider_header(path)
    n, rows, columns = header.shape
    wanted = tuple(range(n)) if sections is None else sections
    outside = [s for s in wanted if not 0 <= s < n]
    if outside:
        raise BadInputError(str(path), f"sections 1 to {n}", f"section {outside[0] + 1}")
    image = 4 * rows * columns
    needed = header.offset + (n - 1) * header.stride + image
    held = path.stat().st_size
    if held < needed:
        raise BadInputError(str(path), f"{needed} bytes", str(held), "The file is truncated.")
    require_room(str(path), len(wanted) * image)
    out = np.empty((len(wanted), rows, columns), header.dtype)
    with path.open("rb") as stream:
        for i, s in enumerate(wanted):
            stream.seek(header.offset + s * header.stride)
            out[i] = np.frombuffer(stream.read(image), header.dtype).reshape(rows, columns)
    return out.astype(np.float32, copy=False)
