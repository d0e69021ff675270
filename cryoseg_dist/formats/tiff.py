"""TIFF images, one page or many."""

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.memory import require_room

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Compressions whose decoders stop at no size: Deflate (two numbers) and LZMA.
UNBOUNDED: dict[int, Callable[[], Any]] = {
    8: zlib.decompressobj,
    32946: zlib.decompressobj,
    34925: lzma.LZMADecompressor,
}
_BLOCK = 1 << 20


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
    except BadInputError:
        raise
    except Exception as fault:  # the parser raises many kinds on damaged files
        raise BadInputError(str(path), "a readable TIFF", f"{type(fault).__name__}: {fault}") from None


def _check_page(path: Path, handle: Any, number: int) -> None:
    """Refuse a page whose pixels are not all in the file, or that swells to more than its pixels.

    tifffile fills missing strips with zeros, which would pass for an image.
    """
    page, held = handle.pages[number], path.stat().st_size
    if len(page.shape) != 2:
        raise BadInputError(str(path), "grey images", f"pages of shape {page.shape}")
    strips = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    plain = int(page.compression) == 1
    if (
        len(strips) != int(np.prod(page.chunked))
        or any(start < 0 or size <= 0 or start + size > held for start, size in strips)
        or (plain and 8 * sum(size for _, size in strips) < page.size * page.bitspersample)
    ):
        raise BadInputError(
            str(path), f"{len(handle.pages)} whole pages", f"an end within page {number + 1}", "The file is truncated."
        )
    if int(page.compression) in UNBOUNDED:
        most = int(np.prod(page.chunks)) * max(1, page.dtype.itemsize)
        for start, size in strips:
            handle.filehandle.seek(start)
            if _swollen(handle.filehandle.read(size), UNBOUNDED[int(page.compression)](), most):
                raise BadInputError(str(path), f"strips of {most} bytes", "more", "The file is damaged.")


def _swollen(data: bytes, decoder: Any, most: int) -> bool:
    """Whether compressed data hold more than ``most`` bytes; they are never held together."""
    total = len(decoder.decompress(data, _BLOCK))
    while total <= most and not decoder.eof:
        rest = getattr(decoder, "unconsumed_tail", b"")
        piece = decoder.decompress(rest, _BLOCK)
        if not piece and not rest:
            break
        total += len(piece)
    return total > most


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
            for s in wanted:
                _check_page(path, handle, s)
            require_room(str(path), 2 * sum(handle.pages[s].nbytes for s in wanted))
            pages = [np.asarray(handle.pages[s].asarray()) for s in wanted]
    except BadInputError:
        raise
    except Exception as fault:  # the parser raises many kinds on damaged files
        raise BadInputError(str(path), "a readable TIFF", f"{type(fault).__name__}: {fault}") from None
    shapes = {page.shape for page in pages}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise BadInputError(str(path), "grey images of one size", f"pages of shape {sorted(shapes)}")
    return np.stack(pages)
