"""Insertion on the processor: pixels in the order of the planes they fall into, one after another."""

import numba
import numpy as np
from torch import Tensor

# Planes that the processor's cache holds together, and poses whose pixels are put in the order of those planes.
SLAB, POSES_AT_ONCE = 16, 256


@numba.njit(nogil=True, cache=True, fastmath=True)
def _by_slab(
    rotations: np.ndarray, ky: np.ndarray, kx: np.ndarray, padding: int, extent: int, order: np.ndarray
) -> None:
    """Number the pixels of all poses so that those that fall into one slab of planes follow one another."""
    n_pixels, pad = ky.shape[0], np.float32(padding)
    slab = np.empty(order.shape[0], np.int16)
    start = np.zeros(extent // SLAB + 3, np.int64)
    i = 0
    for q in range(rotations.shape[0]):
        ax, az, bx, bz = rotations[q, 0, 0], rotations[q, 0, 2], rotations[q, 1, 0], rotations[q, 1, 2]
        for p in range(n_pixels):
            fx, fy = np.float32(kx[p]), np.float32(ky[p])
            z = (az * fx + bz * fy) * pad
            if ax * fx + bx * fy < np.float32(0.0):
                z = -z
            held = min(max(int(np.floor(z)) + extent // 2, 0), extent) // SLAB
            slab[i] = held
            start[held + 1] += 1
            i += 1
    for held in range(1, start.shape[0]):
        start[held] += start[held - 1]
    for i in range(slab.shape[0]):
        order[start[slab[i]]] = i
        start[slab[i]] += 1


@numba.njit(nogil=True, cache=True, fastmath=True)
def _insert(
    accumulator: np.ndarray,
    images: np.ndarray,
    weights: np.ndarray,
    pose_image: np.ndarray,
    rotations: np.ndarray,
    shifts_px: np.ndarray,
    pose_weight: np.ndarray,
    ky: np.ndarray,
    kx: np.ndarray,
    size: int,
    padding: int,
    order: np.ndarray,
) -> None:
    m = accumulator.shape[0]
    limit = m // 2 - 1
    n_poses, n_pixels, top = pose_image.shape[0], ky.shape[0], 0
    for p in range(ky.shape[0]):
        top = max(top, abs(ky[p]), kx[p])
    phase_x = np.empty((n_poses, top + 1), np.complex64)
    phase_y = np.empty((n_poses, 2 * top + 1), np.complex64)
    one, pad = np.float32(1.0), np.float32(padding)
    flat, row = accumulator.reshape(-1), 3 * (m // 2 + 1)
    for q in range(n_poses):
        step_x = -2.0 * np.pi * shifts_px[q, 0] / size
        step_y = -2.0 * np.pi * shifts_px[q, 1] / size
        for k in range(top + 1):
            phase_x[q, k] = np.complex64(pose_weight[q] * np.exp(1j * step_x * k))
        for k in range(-top, top + 1):
            phase_y[q, k + top] = np.complex64(np.exp(1j * step_y * k))
    for j in range(order.shape[0]):
        q = order[j] // n_pixels
        p = order[j] - q * n_pixels
        fx, fy = np.float32(kx[p]), np.float32(ky[p])
        i = pose_image[q]
        value = images[i, p] * (phase_x[q, kx[p]] * phase_y[q, ky[p] + top])
        re, im, wt = value.real, value.imag, weights[i, p] * pose_weight[q]
        x = (rotations[q, 0, 0] * fx + rotations[q, 1, 0] * fy) * pad
        y = (rotations[q, 0, 1] * fx + rotations[q, 1, 1] * fy) * pad
        z = (rotations[q, 0, 2] * fx + rotations[q, 1, 2] * fy) * pad
        if x < np.float32(0.0):
            x, y, z, im = -x, -y, -z, -im
        low_x, low_y, low_z = np.floor(x), np.floor(y), np.floor(z)
        x0, y0, z0 = int(low_x), int(low_y), int(low_z)
        if x0 > limit or abs(y0) > limit or abs(z0) > limit:
            continue
        dx, dy, dz = x - low_x, y - low_y, z - low_z
        y1, z1 = y0 + 1, z0 + 1
        if y0 < 0:
            y0 += m
        if y1 < 0:
            y1 += m
        if z0 < 0:
            z0 += m
        if z1 < 0:
            z1 += m
        for corner in range(4):
            yy = y1 if corner & 1 else y0
            zz = z1 if corner & 2 else z0
            far = (dy if corner & 1 else one - dy) * (dz if corner & 2 else one - dz)
            near = far - far * dx
            far = far * dx
            at = (zz * m + yy) * row + 3 * x0
            flat[at] += near * re
            flat[at + 1] += near * im
            flat[at + 2] += near * wt
            flat[at + 3] += far * re
            flat[at + 4] += far * im
            flat[at + 5] += far * wt


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
) -> None:
    """Insert on the processor; arguments as of :func:`~cryoseg_dist.kernels.insertion.insert`, all given."""
    fixed = [t.contiguous().numpy() for t in (accumulator, images, weights)]
    pixels = [t.contiguous().numpy() for t in (ky, kx)]
    for first in range(0, rotations.shape[0], POSES_AT_ONCE):
        some = slice(first, first + POSES_AT_ONCE)
        poses = [t[some].contiguous().numpy() for t in (pose_image, rotations, shifts_px, pose_weight)]
        order = np.empty(len(poses[0]) * len(pixels[0]), dtype=np.int32)
        _by_slab(poses[1], *pixels, padding, accumulator.shape[0], order)
        _insert(*fixed, *poses, *pixels, size, padding, order)
