"""Images of any foreign format, told apart by their content."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.mrc import mrc_header, read_mrc
from cryoseg_dist.formats.spider import is_spider, read_spider, spider_header
from cryoseg_dist.formats.tiff import is_tiff, read_tiff, tiff_header
from cryoseg_dist.schema.work import ImageFile

# Characters of a path that are repeated.
SHOWN = 1000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image file says of itself.

    Attributes
    ----------
    shape : tuple of int
        Sections, rows, columns.
    dtype : str
    pixel_size : float or None
        A, where the file holds one.
    """

    shape: tuple[int, int, int]
    dtype: str
    pixel_size: float | None


def _first_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise BadInputError(str(path)[:SHOWN], "a file", "none", "Check the path.")
        with path.open("rb") as stream:
            return stream.read(256)
    except OSError as fault:
        raise BadInputError(str(path)[:SHOWN], "a readable file", str(fault)[:SHOWN]) from None


def image_header(path: Path) -> ImageHeader:
    """Read what an MRC (plain or gzipped), TIFF or SPIDER file says of itself, without its pixels.

    Raises
    ------
    BadInputError
        Missing or unreadable file.
    """
    start = _first_bytes(path)
    if is_tiff(start):
        shape, dtype, pixel_size = tiff_header(path)
        return ImageHeader(shape, dtype, pixel_size)
    if is_spider(start):
        spider = spider_header(path)
        return ImageHeader(spider.shape, "float32", spider.pixel_size)
    mrc = mrc_header(path)
    return ImageHeader(mrc.shape, mrc.dtype.name, mrc.pixel_size)


def read_images(source: ImageFile) -> np.ndarray:
    """Read images in the file's own dtype.

    Returns
    -------
    ndarray, shape (n, y, x)

    Raises
    ------
    BadInputError
        Missing, damaged or short file.
    """
    path = Path(source.path)
    start = _first_bytes(path)
    if is_tiff(start):
        return read_tiff(path, source.sections)
    if is_spider(start):
        return read_spider(path, source.sections)
    return read_mrc(path, source.sections)
