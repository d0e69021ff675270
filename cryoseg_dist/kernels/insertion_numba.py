"""Insertion on the processor.

Fourier space is cut into bricks that fit into the cache. The pixels of a batch of poses are first sorted by brick: where each lies in
its brick, its value and its weight are computed row after row, in vectors, and written to the stretch of its brick. Then brick after
brick is summed and added to the volume, so that the volume passes through the cache once a batch, not once a pixel.

A brick reaches into those beside it. So threads take every other layer of bricks first, then the rest: no two of them
ever write to one plane, and none needs a volume of its own. Pixels of a brick are summed in the order of the poses, whatever the
number of threads.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from cryoseg_dist.kernels.interpolation import Interpolation, window_table
from cryoseg_dist.kernels.slices import by_rows, pixel_rows

# Extent of a brick as powers of two, floats of a voxel in it (a vector's worth) and of a pixel in its stretch.
DEEP, HIGH, WIDE, VOXEL, RECORD = 4, 4, 6, 4, 6
# Voxels of a brick that are added to the volume at once, and lines ahead of them that are fetched: they are too short to be foreseen.
AT_ONCE, AHEAD = 4, 2
# Floats of a cache line.
LINE = 16
# Poses that are sorted together, at most: as many as one sum in single precision takes.
POSES_AT_ONCE = 1024
# Bytes that a pixel takes while it is inserted: its value and weight, and those of the next batch, its place, its record.
PIXEL_BYTES = 2 * 12 + 4 + 4 * RECORD


def _packed(builder: Any, items: Sequence[Any]) -> Any:
    """A vector of single-precision numbers."""
    out = ir.Constant(ir.VectorType(ir.FloatType(), len(items)), ir.Undefined)
    for i, item in enumerate(items):
        out = builder.insert_element(out, item, ir.Constant(ir.IntType(32), i))
    return out


def _pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any, lanes: int) -> Any:
    """Where a vector of ``lanes`` lies in a flat array."""
    base = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(base, [place]), ir.VectorType(ir.FloatType(), lanes).as_pointer())


@intrinsic
def _add_to_lines(typing: Any, flat: Any, places: Any, shares: Any, values: Any, taps: Any) -> Any:
    """``flat[places[i] + 4 t + c] += shares[i] * taps[t] * values[c]`` for all ``i``, ``t`` and three ``c``.

    Written for the compiler, which does not find vectors in straight code.
    """
    lanes = 2 * VOXEL

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def product(a: Any, b: Any) -> Any:
            return builder.fmul(a, b, flags=("fast",))

        array, *tuples = arguments
        where, times, given, weights = (
            [builder.extract_value(held, i) for i in range(kind.count)]
            for held, kind in zip(tuples, signature.args[1:], strict=True)
        )
        value = _packed(builder, [*given, ir.Constant(ir.FloatType(), 0.0)] * 2)
        pairs = [[w for w in weights[at : at + 2] for _ in range(VOXEL)] for at in range(0, len(weights), 2)]
        pieces = [product(value, _packed(builder, pair)) for pair in pairs]
        for place, share in zip(where, times, strict=True):
            for i, piece in enumerate(pieces):
                at = builder.add(place, ir.Constant(place.type, i * lanes))
                pointer = _pointer(context, builder, signature.args[0], array, at, lanes)
                old = builder.load(pointer)
                old.align = VOXEL
                added = builder.fadd(old, product(piece, _packed(builder, [share] * lanes)), flags=("fast",))
                builder.store(added, pointer).align = VOXEL
        return context.get_dummy_value()

    return types.void(flat, places, shares, values, taps), generate


@intrinsic
def _copy_record(typing: Any, target: Any, to: Any, source: Any, at: Any) -> Any:
    """``target[to + c] = source[at + c]`` for six ``c``, in two loads and two stores."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for first, lanes in ((0, 4), (4, RECORD - 4)):
            into, held = (
                _pointer(
                    context,
                    builder,
                    signature.args[i],
                    arguments[i],
                    builder.add(arguments[i + 1], ir.Constant(arguments[i + 1].type, first)),
                    lanes,
                )
                for i in (0, 2)
            )
            value = builder.load(held)
            value.align = 4
            builder.store(value, into).align = 4
        return context.get_dummy_value()

    return types.void(target, to, source, at), generate


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _find_bricks(
    rotations: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    extent: int,
    curvature: float,
    bits: tuple[int, int],
    places: np.ndarray,
    counts: np.ndarray,
) -> None:
    """The brick of each pixel of some poses, and how many each brick gets.

    ``places`` (poses, pixels) holds the number of the brick, ``z << bits[0] | y << bits[1] | x``, doubled, plus one where the Friedel
    mate lies in the half that is stored. Pixels outside the grid go to the last brick, which is none.
    """
    half, top, zero = np.float32(extent // 2), np.float32(extent // 2 - 1), np.float32(0.0)
    bend, nowhere = np.float32(curvature), np.int32(2 * (counts.shape[0] - 1))
    for q in range(rotations.shape[0]):
        ax, ay, az = rotations[q, 0, 0], rotations[q, 0, 1], rotations[q, 0, 2]
        cx, cy, cz = rotations[q, 2, 0], rotations[q, 2, 1], rotations[q, 2, 2]
        for r in range(rows.shape[0]):
            fy, first, n = np.float32(rows[r, 0]), np.uint64(rows[r, 1]), np.uint64(rows[r, 3])
            bx, by, bz = rotations[q, 1, 0] * fy, rotations[q, 1, 1] * fy, rotations[q, 1, 2] * fy
            place = places[q, rows[r, 2] : rows[r, 2] + rows[r, 3]]
            for j in range(n):
                fx = columns[first + j]
                depth = bend * (fx * fx + fy * fy)
                x, y, z = ax * fx + bx + cx * depth, ay * fx + by + cy * depth, az * fx + bz + cz * depth
                mate = np.int32(1) if x < zero else np.int32(0)
                x, y, z = (-x, -y, -z) if mate else (x, y, z)
                inside = np.floor(x) <= top and abs(np.floor(y)) <= top and abs(np.floor(z)) <= top
                iz, iy, ix = np.int32(np.floor(z) + half), np.int32(np.floor(y) + half), np.int32(np.floor(x))
                number = (iz >> DEEP) << bits[0] | (iy >> HIGH) << bits[1] | ix >> WIDE
                place[j] = np.int32(number << 1 | mate) if inside else nowhere
            for j in range(n):
                counts[place[j] >> 1] += 1


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _sort_pixels(
    images: np.ndarray,
    weights: np.ndarray,
    n_pixels: int,
    pose_image: np.ndarray,
    rotations: np.ndarray,
    pose_weight: np.ndarray,
    phase_x: np.ndarray,
    phase_y: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    extent: int,
    curvature: float,
    bits: tuple[int, int],
    places: np.ndarray,
    ends: np.ndarray,
    records: np.ndarray,
) -> None:
    """Write each pixel's place in its brick (x, y, z), value and weight to where the stretch of the brick ends so far.

    ``phase_x`` is flat, (pose, part, column), so that no view is made for a row.
    """
    half, bend, one = np.int32(extent // 2), np.float32(curvature), np.float32(1.0)
    step, size = np.uint64(columns.shape[0]), columns.shape[0]
    mask_y, mask_x = np.int32((1 << (bits[0] - bits[1])) - 1), np.int32((1 << bits[1]) - 1)
    row = np.empty(RECORD * size, np.float32)
    for q in range(rotations.shape[0]):
        ax, ay, az = rotations[q, 0, 0], rotations[q, 0, 1], rotations[q, 0, 2]
        cx, cy, cz = rotations[q, 2, 0], rotations[q, 2, 1], rotations[q, 2, 2]
        for r in range(rows.shape[0]):
            fy, first, n = np.float32(rows[r, 0]), np.uint64(rows[r, 1]), np.uint64(rows[r, 3])
            bx, by, bz = rotations[q, 1, 0] * fy, rotations[q, 1, 1] * fy, rotations[q, 1, 2] * fy
            share, turn_re, turn_im = pose_weight[q], phase_y[q, 0, r], phase_y[q, 1, r]
            base = np.uint64(pose_image[q] * n_pixels + rows[r, 2])
            phase_re = np.uint64(2 * q) * step + first
            phase_im = phase_re + step
            place = places[q, rows[r, 2] : rows[r, 2] + rows[r, 3]]
            for j in range(n):
                fx = columns[first + j]
                depth = bend * (fx * fx + fy * fy)
                # The side and the brick are those that were found: another rounding here changes neither.
                sign = -one if place[j] & 1 else one
                brick = place[j] >> 1
                x = sign * (ax * fx + bx + cx * depth) - np.float32((brick & mask_x) << WIDE)
                y = sign * (ay * fx + by + cy * depth) - np.float32((((brick >> bits[1]) & mask_y) << HIGH) - half)
                z = sign * (az * fx + bz + cz * depth) - np.float32(((brick >> bits[0]) << DEEP) - half)
                p_re, p_im = phase_x[phase_re + j], phase_x[phase_im + j]
                t_re, t_im = p_re * turn_re - p_im * turn_im, p_re * turn_im + p_im * turn_re
                v_re, v_im = images[np.uint64(2) * (base + j)], images[np.uint64(2) * (base + j) + np.uint64(1)]
                at = np.uint64(RECORD) * j
                row[at], row[at + np.uint64(1)], row[at + np.uint64(2)] = x, y, z
                row[at + np.uint64(3)] = v_re * t_re - v_im * t_im
                row[at + np.uint64(4)] = sign * (v_re * t_im + v_im * t_re)
                row[at + np.uint64(5)] = weights[base + j] * share
            i = np.uint64(0)
            while i < n:
                # Neighbours mostly lie in one brick.
                brick = place[i] >> 1
                end = ends[brick]
                while i < n and place[i] >> 1 == brick:
                    _copy_record(records, RECORD * end, row, np.int64(RECORD) * np.int64(i))
                    end += 1
                    i += np.uint64(1)
                ends[brick] = end


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add_layer(
    layer: int,
    records: np.ndarray,
    begins: np.ndarray,
    bits: tuple[int, int],
    window: np.ndarray,
    sums: np.ndarray,
    before: int,
    accumulator: np.ndarray,
    beyond: np.ndarray,
) -> None:
    """Sum the bricks of a layer one after another in ``sums``, which is all zero, and add each to the volume."""
    for number in range(layer << bits[0], (layer + 1) << bits[0]):
        if begins[number + 1] > begins[number]:
            _add_pixels(records, begins[number], begins[number + 1], window, sums)
            first_y = ((number >> bits[1]) & ((1 << (bits[0] - bits[1])) - 1)) << HIGH
            _put_back(
                sums, layer << DEEP, first_y, (number & ((1 << bits[1]) - 1)) << WIDE, before, accumulator, beyond
            )


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add_pixels(records: np.ndarray, begin: int, end: int, window: np.ndarray, sums: np.ndarray) -> None:
    """Add pixels to the ``sums`` (z, y, x, 4) of their brick, whose first voxel is the first that the brick reaches."""
    flat = sums.reshape(-1)
    line, plane = np.int64(VOXEL * sums.shape[2]), np.int64(VOXEL * sums.shape[1] * sums.shape[2])
    one, zero, fine = np.float32(1.0), np.float32(0.0), np.float32(window.shape[0] - 2)
    last_x, last_y = np.float32((1 << WIDE) - 1), np.float32((1 << HIGH) - 1)
    last_z = np.float32((1 << DEEP) - 1)
    for i in range(np.uint64(begin), np.uint64(end)):
        at = np.uint64(RECORD) * i
        x, y, z = records[at], records[at + np.uint64(1)], records[at + np.uint64(2)]
        value = records[at + np.uint64(3)], records[at + np.uint64(4)], records[at + np.uint64(5)]
        # Held in the brick whatever the rounding: a pixel on a border gets a fraction of 0 or 1.
        low_x, low_y, low_z = (
            np.int32(min(max(x, zero), last_x)),
            np.int32(min(max(y, zero), last_y)),
            np.int32(min(max(z, zero), last_z)),
        )
        dx, dy, dz = x - np.float32(low_x), y - np.float32(low_y), z - np.float32(low_z)
        to = np.int64(low_z) * plane + np.int64(low_y) * line + np.int64(VOXEL) * np.int64(low_x)
        if fine < one:
            near_z, both = one - dz, dy * dz
            near = dy * near_z
            places = (to, to + line, to + plane, to + plane + line)
            _add_to_lines(flat, places, (near_z - near, near, dz - both, both), value, (one - dx, dx))
        else:
            taps = _taps(window, dx * fine)
            (y0, y1, y2, y3) = _taps(window, dy * fine)
            for tap, share in enumerate(_taps(window, dz * fine)):
                begin_z = to + tap * plane
                places = (begin_z, begin_z + line, begin_z + 2 * line, begin_z + 3 * line)
                _add_to_lines(flat, places, (y0 * share, y1 * share, y2 * share, y3 * share), value, taps)


@numba.njit(nogil=True, cache=True, inline="always")
def _taps(window: np.ndarray, at: float) -> tuple[float, float, float, float]:
    """Four weights between two lines of the table ``window``."""
    i = int(max(at, 0.0))
    a = np.float32(at - i)
    b = np.float32(1.0) - a
    return (
        b * window[i, 0] + a * window[i + 1, 0],
        b * window[i, 1] + a * window[i + 1, 1],
        b * window[i, 2] + a * window[i + 1, 2],
        b * window[i, 3] + a * window[i + 1, 3],
    )


@intrinsic
def _fetch(typing: Any, flat: Any, at: Any) -> Any:
    """Ask for the cache line of ``flat[at]``."""
    index = ir.IntType(32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, name = ir.IntType(8).as_pointer(), "llvm.prefetch.p0i8"
        kind = ir.FunctionType(ir.VoidType(), [byte, index, index, index])
        ask = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        # To read, into all caches, of data.
        how = [ir.Constant(index, value) for value in (0, 3, 1)]
        builder.call(ask, [builder.bitcast(builder.gep(base, [arguments[1]]), byte), *how])
        return context.get_dummy_value()

    return types.void(flat, at), generate


@intrinsic
def _add_voxels(typing: Any, target: Any, to: Any, source: Any, at: Any) -> Any:
    """``target[to + 3 v + c] += source[at + 4 v + c]`` for ``AT_ONCE`` voxels ``v`` and three ``c``."""
    index, chosen = ir.IntType(32), [VOXEL * v + c for v in range(AT_ONCE) for c in range(3)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = ((0, 1, len(chosen)), (2, 3, VOXEL * AT_ONCE))
        pointers = [
            _pointer(context, builder, signature.args[array], arguments[array], arguments[place], lanes)
            for array, place, lanes in places
        ]
        held, added = (builder.load(pointer) for pointer in pointers)
        held.align = added.align = 4
        lanes = ir.Constant(ir.VectorType(index, len(chosen)), [ir.Constant(index, lane) for lane in chosen])
        total = builder.fadd(held, builder.shuffle_vector(added, added, lanes), flags=("fast",))
        builder.store(total, pointers[0]).align = 4
        return context.get_dummy_value()

    return types.void(target, to, source, at), generate


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _put_back(
    sums: np.ndarray,
    first_z: int,
    first_y: int,
    first_x: int,
    before: int,
    accumulator: np.ndarray,
    beyond: np.ndarray,
) -> None:
    """Add the sums of a brick to the volume and clear them; those at ``x = -1`` go to ``beyond`` (z, y, 3)."""
    m, reach = accumulator.shape[0], 2 * before + 1
    low, high = max(0, before - first_x), min(sums.shape[2], accumulator.shape[2] - first_x + before)
    whole = low + (high - low) // AT_ONCE * AT_ONCE
    flat, width = accumulator.reshape(-1), 3 * accumulator.shape[2]
    # The last brick may end beyond the grid.
    for i in range(min(sums.shape[0], m - first_z + reach)):
        z = (first_z - m // 2 - before + i) % m
        for j in range(min(sums.shape[1], m - first_y + reach)):
            y = (first_y - m // 2 - before + j) % m
            source, target = sums[i, j].reshape(-1), accumulator[z, y].reshape(-1)
            coming = (z * m + (y + AHEAD) % m) * width + 3 * (first_x - before)
            for x in range(low, high, LINE // 3):
                _fetch(flat, coming + 3 * x)
            for x in range(low):
                for part in range(3):
                    beyond[z, y, part] += source[VOXEL * x + part]
            for x in range(low, whole, AT_ONCE):
                _add_voxels(target, 3 * (first_x - before + x), source, VOXEL * x)
            for x in range(whole, high):
                for part in range(3):
                    target[3 * (first_x - before + x) + part] += source[VOXEL * x + part]
            source[:] = np.float32(0.0)


@numba.njit(nogil=True, cache=True)
def _fold(beyond: np.ndarray, accumulator: np.ndarray) -> None:
    """Add what fell on ``x = -1`` to its Friedel mates."""
    m = accumulator.shape[0]
    for z in range(m):
        for y in range(m):
            mate = accumulator[-z % m, -y % m, 1]
            mate[0] += beyond[z, y, 0]
            mate[1] -= beyond[z, y, 1]
            mate[2] += beyond[z, y, 2]


def _phases(shifts_px: np.ndarray, indices: np.ndarray, size: int, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Phase factors of moves along an axis, (poses, real and imaginary part, indices)."""
    angle = (-2.0 * np.pi / size) * shifts_px.astype(np.float64)[:, None] * indices
    return np.stack((scale * np.cos(angle), scale * np.sin(angle)), axis=1).astype(np.float32)


def pixels_at_once(extent: int) -> int:
    """Pixels that are sorted together in a grid of ``extent``: many, for each time the whole volume passes through the processor, but
    less than the volume takes in memory.
    """
    return min(max(extent * extent * (extent // 2 + 1) // 4, 1 << 23), 1 << 25)


def poses_at_once(extent: int, n_pixels: int) -> int:
    """Poses of ``n_pixels`` that are sorted together."""
    return max(1, min(POSES_AT_ONCE, pixels_at_once(extent) // n_pixels))


@dataclass(frozen=True)
class Workspace:
    """Memory for the sorting of so many poses, to be used by one call after another: fresh pages cost as much as the work.

    Attributes
    ----------
    places : ndarray, int32, shape (poses, pixels)
    records : ndarray, float32, shape (poses * pixels * 6,)
    """

    places: np.ndarray
    records: np.ndarray

    @classmethod
    def of(cls, n_poses: int, n_pixels: int) -> "Workspace":
        """For poses of ``n_pixels``."""
        return cls(np.empty((n_poses, n_pixels), np.int32), np.empty(n_poses * n_pixels * RECORD, np.float32))


def insert_numba(
    accumulator: Tensor,
    images: Tensor,
    weights: Tensor,
    pose_image: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
    pose_weight: Tensor,
    ky: Tensor,
    kx: Tensor,
    size: int,
    padding: int,
    interpolation: Interpolation = Interpolation.TRILINEAR,
    curvature: float = 0.0,
    threads: int = 1,
    workspace: Workspace | None = None,
) -> None:
    """Insert on the processor; arguments as of :func:`~cryoseg_dist.kernels.insertion.insert`, all given."""
    extent, total = accumulator.shape[0], accumulator.numpy()
    order = by_rows(ky, kx)
    if not bool((order[1:] > order[:-1]).all()):
        images, weights, ky, kx = images[:, order], weights[:, order], ky[order], kx[order]
    rows = pixel_rows(ky, kx)
    columns = np.arange(int(np.max(rows[:, 1] + rows[:, 3])), dtype=np.float32)
    values, held = torch.view_as_real(images.contiguous()).numpy().reshape(-1), weights.contiguous().numpy().reshape(-1)
    n_pixels, n_layers = len(kx), -(-extent >> DEEP)
    bits_x = ((extent // 2 - 1) >> WIDE).bit_length()
    bits = (((extent - 1) >> HIGH).bit_length() + bits_x, bits_x)
    window, before = window_table(interpolation), interpolation.taps // 2 - 1
    # A brick is summed apart and then added: few sums of many terms keep more digits than many of one.
    shape = (*((1 << power) + 2 * before + 1 for power in (DEEP, HIGH, WIDE)), VOXEL)
    beyond = np.zeros((extent, extent, 3) if before else (0, 0, 3), dtype=np.float32)
    spare: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(threads):
        spare.put(np.zeros(shape, dtype=np.float32))
    at_once = min(poses_at_once(extent, n_pixels), max(1, len(rotations)))
    if workspace is None or len(workspace.places) < at_once:
        workspace = Workspace.of(at_once, n_pixels)
    places, records = workspace.places, workspace.records

    def sort(pool: ThreadPoolExecutor, some: slice) -> np.ndarray:
        """Sort the pixels of some poses; where the stretch of each brick begins."""
        which, share = pose_image[some].contiguous().numpy(), pose_weight[some].contiguous().numpy()
        turned, moved = (rotations[some] * padding).contiguous().numpy(), shifts_px[some].numpy()
        phase_x, phase_y = _phases(moved[:, 0], columns, size), _phases(moved[:, 1], rows[:, 0], size, share[:, None])
        counts = np.zeros((threads, (n_layers << bits[0]) + 1), dtype=np.int64)
        parts = [slice(i * len(which) // threads, (i + 1) * len(which) // threads) for i in range(threads)]

        def find(i: int) -> None:
            _find_bricks(turned[parts[i]], rows, columns, extent, curvature, bits, places[parts[i]], counts[i])

        def write(i: int) -> None:
            part = parts[i]
            poses = (which[part], turned[part], share[part], phase_x[part].reshape(-1), phase_y[part])
            given = (values, held, n_pixels, *poses, rows, columns, extent, curvature, bits, places[part])
            _sort_pixels(*given, ends[i], records)

        list(pool.map(find, range(threads)))
        ends = np.ascontiguousarray(np.cumsum(counts.T).reshape(counts.shape[::-1]).T - counts)
        begins = ends[0].copy()
        list(pool.map(write, range(threads)))
        return begins

    def add(layer: int, *, begins: np.ndarray) -> None:
        sums = spare.get()
        try:
            _add_layer(layer, records, begins, bits, window, sums, before, total, beyond)
        finally:
            spare.put(sums)

    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(rotations), at_once):
            work = partial(add, begins=sort(pool, slice(begin, begin + at_once)))
            # Layers reach into the next: the last into the first, so an odd one out has a turn of its own.
            even = n_layers - n_layers % 2
            for turn in (range(0, even, 2), range(1, even, 2), range(even, n_layers)):
                list(pool.map(work, turn))
    if before:
        _fold(beyond, total)
