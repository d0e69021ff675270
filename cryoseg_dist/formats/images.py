"""Images of any foreign format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.mrc import mrc_header, read_mrc
from cryoseg_dist.schema.work import ImageFile

TIFF_SUFFIXES = (".tif", ".tiff")


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


def _is_tiff(path: Path) -> bool:
    return path.name.lower().endswith(TIFF_SUFFIXES)


def _tiff_pages(path: Path, sections: tuple[int, ...] | None) -> np.ndarray:
    try:
        with tifffile.TiffFile(path) as handle:
            pages = range(len(handle.pages)) if sections is None else sections
            return np.stack([np.asarray(handle.pages[i].asarray()) for i in pages])
    except (tifffile.TiffFileError, ValueError, OSError, IndexError) as fault:
        raise BadInputError(str(path), "a readable TIFF", str(fault)) from None


def image_header(path: Path) -> ImageHeader:
    """Read what a file says of itself, without its pixels.

    Raises
    ------
    BadInputError
        Missing or unreadable file.
    """
    if not path.is_file():
        raise BadInputError(str(path), "a file", "none", "Check the path.")
    if _is_tiff(path):
        try:
            with tifffile.TiffFile(path) as handle:
                page = handle.pages[0]
                return ImageHeader((len(handle.pages), *page.shape[:2]), str(page.dtype), None)
        except (tifffile.TiffFileError, ValueError, OSError, IndexError) as fault:
            raise BadInputError(str(path), "a readable TIFF", str(fault)) from None
    shape, dtype, pixel, _ = mrc_header(path)
    return ImageHeader(shape, dtype.name, pixel)


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
    if not path.is_file():
        raise BadInputError(str(path), "a file", "none", "Check the path.")
    if _is_tiff(path):
        pages = _tiff_pages(path, source.sections)
        if pages.ndim != 3:
            raise BadInputError(str(path), "grey images", f"an array of shape {pages.shape}")
        return pages
    return read_mrc(path, source.sections)
