"""Overlap tiles that give exactly the result of one pass.

A network with ``d`` poolings sees its input on a grid of ``2**d`` pixels. Tiles whose strides are multiples of that keep
the grid in phase, so each output pixel is computed from the same numbers whatever the tile.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cryoseg_dist.errors import SettingsError

Border = Literal["mirror", "zero"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a network's input and output extents relate.

    Attributes
    ----------
    stride : int
        ``2**depth``.
    halo : int
        Context on each side of an output tile, at least as far as the network sees.
    valid : bool
        True where the network's output is smaller than its input by twice the halo (valid convolutions).
    input_extent : Callable of int to int
        Input extent, context included, for a wanted output extent that is a multiple of the stride.
    """

    stride: int
    halo: int
    valid: bool
    input_extent: Callable[[int], int]


def padded_tiling(stride: int, reach: int) -> Tiling:
    """Tiling of a network of padded convolutions, whose output blocks see ``reach`` pixels beyond themselves."""
    halo = math.ceil(reach / stride) * stride
    return Tiling(stride, halo, False, lambda output: output + 2 * halo)


def valid_tiling(stride: int, margin: int, input_extent: Callable[[int], int]) -> Tiling:
    """Tiling of a network of valid convolutions that lose ``margin`` pixels on each side."""
    return Tiling(stride, margin, True, input_extent)


def mirrored(index: Tensor, n: int) -> Tensor:
    """Fold indices beyond ``0 .. n - 1`` back by reflection about the border pixels, any number of times."""
    if n == 1:
        return torch.zeros_like(index)
    period = 2 * (n - 1)
    index = index.remainder(period)
    return torch.where(index < n, index, period - index)


def cut(image: Tensor, top: int, left: int, height: int, width: int, border: Border) -> Tensor:
    """A window of an image (..., y, x) that may reach beyond its borders."""
    rows = torch.arange(top, top + height, device=image.device)
    columns = torch.arange(left, left + width, device=image.device)
    n_rows, n_columns = image.shape[-2:]
    window = image.index_select(-2, mirrored(rows, n_rows)).index_select(-1, mirrored(columns, n_columns))
    if border == "zero":
        inside_rows = (rows >= 0) & (rows < n_rows)
        inside_columns = (columns >= 0) & (columns < n_columns)
        window = window * (inside_rows[:, None] & inside_columns[None, :])
    return window


def check_tile(tile: int, stride: int) -> None:
    """Refuse tiles that would shift the pooling grid.

    Raises
    ------
    SettingsError
    """
    if tile < stride or tile % stride:
        raise SettingsError(
            [
                f"tile_size: expected a positive multiple of {stride} (2**depth), got {tile}. Other strides shift the "
                f"pooling grid and leave seams; take {max(stride, round(tile / stride) * stride)}."
            ]
        )


def tile_origins(n: int, tile: int) -> Iterator[int]:
    """First pixel of each tile along an axis of ``n`` pixels."""
    return iter(range(0, n, tile))


def predict(
    image: Tensor, network: Callable[[Tensor], Tensor], tiling: Tiling, tile: int | None, border: Border = "mirror"
) -> Tensor:
    """Run a network over an image tile by tile.

    Parameters
    ----------
    image : Tensor, shape (channels, y, x)
    network : Callable
        Maps (1, channels, h, w) to (1, classes, h', w').
    tiling : Tiling
    tile : int, optional
        Output pixels of a tile side, a multiple of ``tiling.stride``; one pass over the image when not given.
    border : {"mirror", "zero"}
        What lies beyond the image.

    Returns
    -------
    Tensor, shape (classes, y, x)
        The same whatever the tile.

    Raises
    ------
    SettingsError
        The tile is not a multiple of the stride.
    """
    height, width = image.shape[-2:]
    sides = []
    for n in (height, width):
        whole = math.ceil(n / tiling.stride) * tiling.stride
        if tile is not None:
            check_tile(tile, tiling.stride)
        sides.append(whole if tile is None else min(tile, whole))
    tile_y, tile_x = sides
    out: Tensor | None = None
    offset = 0 if tiling.valid else tiling.halo
    for top in tile_origins(height, tile_y):
        for left in tile_origins(width, tile_x):
            window = cut(
                image,
                top - tiling.halo,
                left - tiling.halo,
                tiling.input_extent(tile_y),
                tiling.input_extent(tile_x),
                border,
            )
            result = network(window[None])[0]
            bottom, right = min(top + tile_y, height), min(left + tile_x, width)
            if out is None:
                out = result.new_empty((result.shape[0], height, width))
            out[:, top:bottom, left:right] = result[:, offset : offset + bottom - top, offset : offset + right - left]
    assert out is not None
    return out
