"""TIFF images, one page or many."""

from pathlib import Path

import numpy as np
import tifffile

from cryoseg_dist.errors import BadInputError

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Whatever a decoder may raise on damaged data.
DAMAGE = (tifffile.TiffFileError, ValueError, OSError, IndexError, KeyError, TypeError, RuntimeError, MemoryError)


def is_tiff(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF or BigTIFF."""
    return start[:4] in MAGIC


def _resolution_in_angstrom(page: tifffile.TiffPage) -> float | None:
    """Pixel size that the resolution tags give; None for the densities of screens and printers."""
    per = {2: 2.54e8, 3: 1e8}.get(int(getattr(page.tags.get("ResolutionUnit"), "value", 1)))
    tag = page.tags.get("XResolution")
    if per is None or tag is None:
        return None
    numerator, denominator = tag.value
    if numerator <= 0 or denominator <= 0:
        return None
    size = per * denominator / numerator
    return size if size < 100.0 else None


def tiff_header(path: Path) -> tuple[tuple[int, int, int], str, float | None]:
    """Pages, rows and columns, dtype, and pixel size in A where the file holds one.

    Raises
    ------
    BadInputError
        Not a readable TIFF of grey images.
    """
    try:
        with tifffile.TiffFile(path) as handle:
            page = handle.pages[0]
            if len(page.shape) != 2:
                raise BadInputError(str(path), "grey images", f"pages of shape {page.shape}")
            return (len(handle.pages), *page.shape), str(page.dtype), _resolution_in_angstrom(page)
    except DAMAGE as fault:
        raise BadInputError(str(path), "a readable TIFF", f"{type(fault).__name__}: {fault}") from None


def read_tiff(path: Path, sections: tuple[int, ...] | None = None) -> np.ndarray:
    """Read pages in their own dtype.

    Returns
    -------
    ndarray, shape (n, y, x)

    Raises
    ------
    BadInputError
        A damaged file, coloured or unequal pages, or pages that it does not have.
    """
    try:
        with tifffile.TiffFile(path) as handle:
            total = len(handle.pages)
            wanted = range(total) if sections is None else sections
            outside = [s for s in wanted if not 0 <= s < total]
            if outside:
                raise BadInputError(str(path), f"sections 1 to {total}", f"section {outside[0] + 1}")
            held = path.stat().st_size
            for s in wanted:
                # tifffile fills missing strips with zeros, which would pass for an image.
                ends = (a + b for a, b in zip(handle.pages[s].dataoffsets, handle.pages[s].databytecounts, strict=True))
                if max(ends, default=held + 1) > held:
                    raise BadInputError(
                        str(path), f"{total} whole pages", f"an end within page {s + 1}", "The file is truncated."
                    )
            pages = [np.asarray(handle.pages[s].asarray()) for s in wanted]
    except DAMAGE as fault:
        raise BadInputError(str(path), "a readable TIFF", f"{type(fault).__name__}: {fault}") from None
    shapes = {page.shape for page in pages}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise BadInputError(str(path), "grey images of one size", f"pages of shape {sorted(shapes)}")
    return np.stack(pages)
