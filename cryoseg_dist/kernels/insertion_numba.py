"""Insertion on the processor.

The pixels of a batch of poses are taken slab of planes by slab, so that what they are added to stays in the cache. Pixels of a row
that fall into one slab on one side of ``x = 0`` are a run; what can be computed for eight pixels at once is computed for a run,
then each pixel is added to its voxels, those of a line together.

A slab's pixels reach into the slabs beside it. So threads take every other slab first, then the rest: no two of them
ever write to one plane, and none needs a volume of its own.
"""

from concurrent.futures import ThreadPoolExecutor
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

# Planes that the cache holds together, lanes of a vector.
SLAB, LANES = 16, 8
# Pixels that are put in the order of slabs together, and poses: as many as one sum in single precision takes.
PIXELS_AT_ONCE, POSES_AT_ONCE = 1 << 23, 1024
# Columns of a run.
POSE, ROW, FIRST, LAST, PLACE = range(5)


@intrinsic
def _add_to_rows(typing: Any, flat: Any, places: Any, shares: Any, values: Any, taps: Any) -> Any:
    """``flat[places[i] + 3 t + c] += shares[i] * taps[t] * values[c]`` for all ``i``, ``t`` and three ``c``.

    Written for the compiler, which does not find vectors in straight code.
    """
    single, index = ir.FloatType(), ir.IntType(32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def product(a: Any, b: Any) -> Any:
            return builder.fmul(a, b, flags=("fast",))

        def packed(items: list[Any]) -> Any:
            out = ir.Constant(ir.VectorType(single, len(items)), ir.Undefined)
            for i, item in enumerate(items):
                out = builder.insert_element(out, item, ir.Constant(index, i))
            return out

        array, *tuples = arguments
        base = context.make_array(signature.args[0])(context, builder, array).data
        where, times, given, weights = (
            [builder.extract_value(held, i) for i in range(kind.count)]
            for held, kind in zip(tuples, signature.args[1:], strict=True)
        )
        left, right = [w for w in weights for _ in given], given * len(weights)
        pieces = [(at, product(packed(left[at : at + 4]), packed(right[at : at + 4]))) for at in range(0, len(left), 4)]
        for place, share in zip(where, times, strict=True):
            for at, piece in pieces:
                pointer = builder.gep(base, [builder.add(place, ir.Constant(place.type, at))])
                pointer = builder.bitcast(pointer, piece.type.as_pointer())
                old = builder.load(pointer)
                old.align = 4
                added = product(piece, packed([share] * piece.type.count))
                builder.store(builder.fadd(old, added, flags=("fast",)), pointer).align = 4
        return context.get_dummy_value()

    return types.void(flat, places, shares, values, taps), generate


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _find_runs(
    rotations: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    extent: int,
    curvature: float,
    runs: np.ndarray,
    start: np.ndarray,
) -> int:
    """Cut the rows of all poses into runs and count those of each slab in ``start[slab + 1]``; how many there are."""
    half, bend = np.float32(extent // 2), np.float32(curvature)
    place = np.empty(columns.shape[0] + LANES, np.int32)
    n = 0
    for q in range(rotations.shape[0]):
        ax, bx, cx = rotations[q, 0, 0], rotations[q, 1, 0], rotations[q, 2, 0]
        az, bz, cz = rotations[q, 0, 2], rotations[q, 1, 2], rotations[q, 2, 2]
        for r in range(rows.shape[0]):
            fy, first, count = np.float32(rows[r, 0]), rows[r, 1], rows[r, 3]
            for j in range(np.uint64(count)):
                fx = columns[np.uint64(first) + j]
                depth = bend * (fx * fx + fy * fy)
                x = ax * fx + bx * fy + cx * depth
                z = az * fx + bz * fy + cz * depth
                negative = x < np.float32(0.0)
                z = -z if negative else z
                plane = min(max(np.floor(z) + half, np.float32(0.0)), half + half - np.float32(1.0))
                place[j] = np.int32(np.floor(plane * np.float32(1.0 / SLAB))) * 2 + (1 if negative else 0)
            begin, held = 0, place[0]
            for j in range(1, count + 1):
                if j == count or place[j] != held:
                    runs[n, POSE], runs[n, ROW], runs[n, FIRST], runs[n, LAST], runs[n, PLACE] = q, r, begin, j, held
                    start[(held >> 1) + 1] += 1
                    n += 1
                    begin, held = j, place[min(j, count - 1)]
    return n


@numba.njit(nogil=True, cache=True)
def _by_slab(runs: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The order of runs by slab; ``start`` turns from counts to where each slab begins."""
    for slab in range(1, start.shape[0]):
        start[slab] += start[slab - 1]
    at, order = start.copy(), np.empty(runs.shape[0], np.int32)
    for i in range(runs.shape[0]):
        slab = runs[i, PLACE] >> 1
        order[at[slab]] = i
        at[slab] += 1
    return order


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _insert_runs(
    sums: np.ndarray,
    extent: int,
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
    curvature: float,
    window: np.ndarray,
    runs: np.ndarray,
    order: np.ndarray,
) -> None:
    """Add runs of one slab to its ``sums`` (z, y, x, 3), whose first voxel is the first that the slab reaches.

    ``phase_x`` is flat, (pose, part, column), so that no view is made for a run.
    """
    half, flat = extent // 2, sums.reshape(-1)
    line, plane = np.int64(3 * sums.shape[2]), np.int64(3 * sums.shape[1] * sums.shape[2])
    size = columns.shape[0] + LANES
    re, im, wt = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    dx, dy, dz = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    column, row = np.empty(size, np.int32), np.empty(size, np.int32)
    zero, one, n_rows = np.float32(0.0), np.float32(1.0), np.float32(sums.shape[1])
    bottom, top, bend = np.float32(-half), np.float32(half - 1), np.float32(curvature)
    step, fine = np.uint64(columns.shape[0]), np.float32(window.shape[0] - 2)
    for o in order:
        q, r, place = runs[o, POSE], runs[o, ROW], runs[o, PLACE]
        sign = -one if place & 1 else one
        low = np.float32((place >> 1) * SLAB - half)
        high = low + np.float32(SLAB - 1)
        fy = np.float32(rows[r, 0])
        ax, ay, az = rotations[q, 0, 0] * sign, rotations[q, 0, 1] * sign, rotations[q, 0, 2] * sign
        bx, by, bz = rotations[q, 1, 0] * sign * fy, rotations[q, 1, 1] * sign * fy, rotations[q, 1, 2] * sign * fy
        cx, cy, cz = rotations[q, 2, 0] * sign, rotations[q, 2, 1] * sign, rotations[q, 2, 2] * sign
        share, turn_re, turn_im = pose_weight[q], phase_y[q, 0, r], phase_y[q, 1, r]
        n = np.uint64(runs[o, LAST] - runs[o, FIRST])
        first = np.uint64(rows[r, 1] + runs[o, FIRST])
        base = np.uint64(pose_image[q] * n_pixels + rows[r, 2] + runs[o, FIRST])
        phase_re = np.uint64(2 * q) * step + first
        phase_im = phase_re + step
        # Whole vectors; what lies beyond the run is computed and not used.
        lanes = (n + np.uint64(LANES - 1)) & ~np.uint64(LANES - 1)
        if base + lanes > np.uint64(weights.shape[0]):
            lanes = n
        for j in range(lanes):
            fx = columns[first + j]
            depth = bend * (fx * fx + fy * fy)
            x, y, z = ax * fx + bx + cx * depth, ay * fx + by + cy * depth, az * fx + bz + cz * depth
            floor_y, floor_z = np.floor(y), np.floor(z)
            inside = one if floor_y >= -top and floor_z >= -top and np.floor(x) <= top else zero
            # Held in the slab and the grid whatever the rounding: a pixel on a border gets a fraction of 0 or 1.
            low_x = min(max(np.floor(x), zero), top)
            low_y = min(max(floor_y, bottom), top)
            low_z = min(max(floor_z, low), high)
            dx[j], dy[j], dz[j] = x - low_x, y - low_y, z - low_z
            column[j] = np.int32(low_x)
            row[j] = np.int32((low_z - low) * n_rows + (low_y - bottom))
            p_re, p_im = phase_x[phase_re + j], phase_x[phase_im + j]
            t_re, t_im = p_re * turn_re - p_im * turn_im, p_re * turn_im + p_im * turn_re
            v_re, v_im = images[np.uint64(2) * (base + j)], images[np.uint64(2) * (base + j) + np.uint64(1)]
            re[j] = inside * (v_re * t_re - v_im * t_im)
            im[j] = inside * (sign * (v_re * t_im + v_im * t_re))
            wt[j] = inside * (weights[base + j] * share)
        if fine < one:
            for j in range(n):
                fx, fy, fz = dx[j], dy[j], dz[j]
                at = np.int64(row[j]) * line + 3 * np.int64(column[j])
                near_z, both = one - fz, fy * fz
                near = fy * near_z
                _add_to_rows(
                    flat,
                    (at, at + line, at + plane, at + plane + line),
                    (near_z - near, near, fz - both, both),
                    (re[j], im[j], wt[j]),
                    (one - fx, fx),
                )
        else:
            for j in range(n):
                at = np.int64(row[j]) * line + 3 * np.int64(column[j])
                (x0, x1, x2, x3) = _taps(window, dx[j] * fine)
                (y0, y1, y2, y3) = _taps(window, dy[j] * fine)
                for tap_z, share_z in enumerate(_taps(window, dz[j] * fine)):
                    begin = at + tap_z * plane
                    _add_to_rows(
                        flat,
                        (begin, begin + line, begin + 2 * line, begin + 3 * line),
                        (y0 * share_z, y1 * share_z, y2 * share_z, y3 * share_z),
                        (re[j], im[j], wt[j]),
                        (x0, x1, x2, x3),
                    )


@numba.njit(nogil=True, cache=True, inline="always")
def _taps(window: np.ndarray, at: float) -> tuple[float, float, float, float]:
    """Four weights between two lines of the table ``window``."""
    i = np.int64(at)
    a = np.float32(at - i)
    b = np.float32(1.0) - a
    return (
        b * window[i, 0] + a * window[i + 1, 0],
        b * window[i, 1] + a * window[i + 1, 1],
        b * window[i, 2] + a * window[i + 1, 2],
        b * window[i, 3] + a * window[i + 1, 3],
    )


@numba.njit(nogil=True, cache=True, fastmath=True)
def _put_back(sums: np.ndarray, accumulator: np.ndarray, beyond: np.ndarray, slab: int, before: int) -> None:
    """Add the sums of a slab to the volume and clear them; those at ``x = -1`` go to ``beyond`` (z, y, 3)."""
    m = accumulator.shape[0]
    length, skip = np.uint64(3 * accumulator.shape[2]), np.uint64(3 * before)
    for i in range(sums.shape[0]):
        z = (slab * SLAB - m // 2 - before + i) % m
        for j in range(sums.shape[1]):
            y = (j - m // 2 - before) % m
            source, target = sums[i, j].reshape(-1), accumulator[z, y].reshape(-1)
            for x in range(length):
                target[x] += source[skip + x]
            for x in range(skip):
                beyond[z, y, x] += source[x]
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
) -> None:
    """Insert on the processor; arguments as of :func:`~cryoseg_dist.kernels.insertion.insert`, all given."""
    extent, total = accumulator.shape[0], accumulator.numpy()
    order = by_rows(ky, kx)
    if not bool((order[1:] > order[:-1]).all()):
        images, weights, ky, kx = images[:, order], weights[:, order], ky[order], kx[order]
    rows = pixel_rows(ky, kx)
    columns = np.arange(rows[:, 1:4:2].sum(axis=1).max() + LANES, dtype=np.float32)
    values, held = torch.view_as_real(images.contiguous()).numpy().reshape(-1), weights.contiguous().numpy().reshape(-1)
    n_pixels, n_slabs = len(kx), -(-extent // SLAB)
    window, before = window_table(interpolation), interpolation.taps // 2 - 1
    reach = 2 * before + 1
    # A slab is summed apart and then added: few sums of many terms keep more digits than many of one.
    shape = (min(SLAB, extent) + reach, extent + reach, extent // 2 + 1 + reach, 3)
    beyond = np.zeros((extent, extent, 3) if before else (0, 0, 3), dtype=np.float32)
    at_once = max(1, min(POSES_AT_ONCE, PIXELS_AT_ONCE // n_pixels))
    # A row meets each slab once on either side of x = 0, and bent twice.
    runs = np.empty((min(at_once, len(rotations)) * len(rows) * 2 * (n_slabs + 2), 5), dtype=np.int32)
    spare: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(min(threads, -(-n_slabs // 2))):
        spare.put(np.zeros(shape, dtype=np.float32))
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(rotations), at_once):
            some = slice(begin, begin + at_once)
            which, share = pose_image[some].contiguous().numpy(), pose_weight[some].contiguous().numpy()
            scaled, moved = (rotations[some] * padding).contiguous().numpy(), shifts_px[some].numpy()
            phase_x = _phases(moved[:, 0], columns, size).reshape(-1)
            phase_y = _phases(moved[:, 1], rows[:, 0], size, share[:, None])
            start = np.zeros(n_slabs + 1, dtype=np.int64)
            n = _find_runs(scaled, rows, columns, extent, curvature, runs, start)
            sorted_runs = _by_slab(runs[:n], start)
            poses = (which, scaled, share, phase_x, phase_y)

            def add(slab: int, *, cuts: np.ndarray, order: np.ndarray, poses: tuple[np.ndarray, ...]) -> None:
                some = order[cuts[slab] : cuts[slab + 1]]
                if len(some):
                    sums = spare.get()
                    given = (sums, extent, values, held, n_pixels, *poses, rows, columns, curvature, window, runs)
                    _insert_runs(*given, some)
                    _put_back(sums, total, beyond, slab, before)
                    spare.put(sums)

            work = partial(add, cuts=start, order=sorted_runs, poses=poses)
            # Slabs reach into the next: the last into the first, so an odd one out has a turn of its own.
            even = n_slabs - n_slabs % 2
            for turn in (range(0, even, 2), range(1, even, 2), range(even, n_slabs)):
                list(pool.map(work, turn))
    if before:
        _fold(beyond, total)
