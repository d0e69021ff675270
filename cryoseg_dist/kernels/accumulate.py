"""Insertion of images into a volume's transform, and the map that follows.

An accumulator is a float32 tensor of shape ``(m, m, m // 2 + 1, 3)``: real part, imaginary part and weight of each voxel
of an unshifted half spectrum, ``m`` being the padded extent. Accumulators of disjoint particle sets add up.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.slices import gridding_profile

# Planes that the processor's cache holds together, and poses whose pixels are put in the order of those planes.
SLAB, POSES_AT_ONCE = 16, 256


def empty_accumulator(size: int, padding: int = 2, device: torch.device | str = "cpu") -> Tensor:
    """An accumulator of zeros for images of ``size`` pixels; its extent is even."""
    m = padded_extent(size, padding)
    return torch.zeros((m, m, m // 2 + 1, 3), device=device)


def padded_extent(size: int, padding: int) -> int:
    """Extent of the padded grid."""
    return size * padding


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


def _insert_torch(
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
    m = accumulator.shape[0]
    width = m // 2 + 1
    flat = accumulator.view(-1, 3)
    fx, fy = kx.to(torch.float32), ky.to(torch.float32)
    angle = (shifts_px[:, 0, None] * fx + shifts_px[:, 1, None] * fy) * (-2.0 * torch.pi / size)
    values = images[pose_image] * torch.polar(pose_weight[:, None].expand_as(angle).contiguous(), angle)
    k = (rotations[:, 0, :, None] * fx + rotations[:, 1, :, None] * fy) * padding
    flip = k[:, 0] < 0
    k = torch.where(flip[:, None], -k, k)
    values = torch.where(flip, values.conj(), values)
    data = torch.cat((torch.view_as_real(values), (weights[pose_image] * pose_weight[:, None])[..., None]), dim=-1)
    base = torch.floor(k)
    inside = (base[:, 0] <= m // 2 - 1) & (base[:, 1:].abs() <= m // 2 - 1).all(dim=1)
    fraction, base = (k - base).permute(0, 2, 1)[inside], base.to(torch.int64).permute(0, 2, 1)[inside]
    data = data[inside]
    for dz in (0, 1):
        for dy in (0, 1):
            for dx in (0, 1):
                corner = torch.tensor((dx, dy, dz), device=base.device)
                w = torch.where(corner.bool(), fraction, 1.0 - fraction).prod(dim=-1)
                at = base + corner
                index = ((at[:, 2] % m) * m + at[:, 1] % m) * width + at[:, 0]
                flat.index_add_(0, index, data * w[:, None])


def insert(
    accumulator: Tensor,
    images: Tensor,
    weights: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
    ky: Tensor,
    kx: Tensor,
    *,
    size: int,
    padding: int = 2,
    pose_image: Tensor | None = None,
    pose_weight: Tensor | None = None,
) -> None:
    """Add central slices to an accumulator, in place, by trilinear scattering.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)
        ``m = padding * size``.
    images : Tensor, complex64, shape (b, p)
        Transforms times CTF (over the noise power), at the pixels of ``slices.disc_pixels``.
    weights : Tensor, float32, shape (b, p)
        CTF squared (over the noise power).
    rotations : Tensor, float32, shape (q, 3, 3)
    shifts_px : Tensor, float32, shape (q, 2)
        Origins (x, y) in pixels, added to the image.
    ky, kx : Tensor, int64, shape (p,)
    size : int
        Extent of the unpadded image.
    padding : int
    pose_image : Tensor, int64, shape (q,), optional
        Image of each pose; image ``i`` has pose ``i`` when not given.
    pose_weight : Tensor, float32, shape (q,), optional
        Posterior weight of each pose, one when not given.
    """
    q = rotations.shape[0]
    device = accumulator.device
    which = torch.arange(q, device=device) if pose_image is None else pose_image
    share = torch.ones(q, device=device) if pose_weight is None else pose_weight
    arguments = (accumulator, images, weights, which, rotations, shifts_px, share, ky, kx)
    if device.type == "cpu":
        fixed = [t.contiguous().numpy() for t in (accumulator, images, weights)]
        pixels = [t.contiguous().numpy() for t in (ky, kx)]
        for first in range(0, q, POSES_AT_ONCE):
            some = slice(first, first + POSES_AT_ONCE)
            poses = [t[some].contiguous().numpy() for t in (which, rotations, shifts_px, share)]
            order = np.empty(len(poses[0]) * len(pixels[0]), dtype=np.int32)
            _by_slab(poses[1], *pixels, padding, accumulator.shape[0], order)
            _insert(*fixed, *poses, *pixels, size, padding, order)
    else:
        _insert_torch(*arguments, size, padding)


def enforce_friedel(accumulator: Tensor) -> Tensor:
    """Complete the plane ``x = 0``, where each Friedel pair was inserted on one side only.

    Call once, after all insertions, before :func:`symmetrise`.
    """
    out = accumulator.clone()
    plane = accumulator[:, :, 0]
    mate = plane.flip((0, 1)).roll((1, 1), (0, 1)) * torch.tensor((1.0, -1.0, 1.0), device=plane.device)
    out[:, :, 0] = plane + mate
    return out


@numba.njit(nogil=True, cache=True, fastmath=True)
def _symmetrise(source: np.ndarray, out: np.ndarray, ops: np.ndarray, max_radius: float) -> None:
    m = source.shape[0]
    half = m // 2
    limit = half - 1
    r2 = max_radius * max_radius
    for iz in range(m):
        z = iz if iz < half else iz - m
        for iy in range(m):
            y = iy if iy < half else iy - m
            for x in range(half):
                if x * x + y * y + z * z > r2:
                    continue
                for s in range(ops.shape[0]):
                    u = ops[s, 0, 0] * x + ops[s, 0, 1] * y + ops[s, 0, 2] * z
                    v = ops[s, 1, 0] * x + ops[s, 1, 1] * y + ops[s, 1, 2] * z
                    w = ops[s, 2, 0] * x + ops[s, 2, 1] * y + ops[s, 2, 2] * z
                    sign = np.float32(1.0)
                    if u < 0.0:
                        u, v, w = -u, -v, -w
                        sign = np.float32(-1.0)
                    u0, v0, w0 = int(np.floor(u)), int(np.floor(v)), int(np.floor(w))
                    if u0 > limit or abs(v0) > limit or abs(w0) > limit:
                        continue
                    du, dv, dw = np.float32(u - u0), np.float32(v - v0), np.float32(w - w0)
                    one = np.float32(1.0)
                    for jz in range(2):
                        wz = dw if jz else one - dw
                        if wz == 0.0:
                            continue
                        zz = (w0 + jz) % m
                        for jy in range(2):
                            wzy = wz * (dv if jy else one - dv)
                            if wzy == 0.0:
                                continue
                            yy = (v0 + jy) % m
                            for jx in range(2):
                                f = wzy * (du if jx else one - du)
                                cell = source[zz, yy, u0 + jx]
                                out[iz, iy, x, 0] += f * cell[0]
                                out[iz, iy, x, 1] += sign * f * cell[1]
                                out[iz, iy, x, 2] += f * cell[2]


def symmetrise(accumulator: Tensor, operators: Tensor, max_shell: float, padding: int = 2) -> Tensor:
    """Sum an accumulator over a point group.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)
        After :func:`enforce_friedel`.
    operators : Tensor, shape (s, 3, 3)
    max_shell : float
        Radius in unpadded Fourier pixels beyond which the result is zero.

    Returns
    -------
    Tensor, float32, of the same shape
    """
    if operators.shape[0] == 1:
        return accumulator
    source = accumulator.cpu().contiguous()
    out = torch.zeros_like(source)
    # Rounding keeps operators that map the grid onto itself exact.
    ops = torch.round(operators.to(torch.float64) * 1e12) / 1e12
    _symmetrise(source.numpy(), out.numpy(), ops.numpy(), max_shell * padding + 2.0)
    return out.to(accumulator.device)


def finish(
    accumulator: Tensor,
    size: int,
    *,
    padding: int = 2,
    regularisation: Tensor | None = None,
    shrinkage: Tensor | None = None,
    max_shell: float | None = None,
) -> Tensor:
    """The map of an accumulator: divide by the weights, transform back, correct for the interpolation.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)
        After :func:`enforce_friedel` (and :func:`symmetrise`).
    size : int
        Extent of the map.
    padding : int
    regularisation : Tensor, shape (size // 2 + 1,), optional
        Added to the weights by shell: the inverse prior power ``1 / tau^2`` where weights are CTF squared over the noise power.
    shrinkage : Tensor, shape (size // 2 + 1,), optional
        Draws the weights ``w`` of a shell towards their mean, ``(w + s mean) / (1 + s)``.
    max_shell : float, optional
        Frequencies beyond this radius are zero; the inscribed sphere when not given.

    Returns
    -------
    Tensor, float32, shape (size, size, size)

    Notes
    -----
    Weights below a thousandth of their shell's mean are raised to it (Scheres 2012), so that empty voxels stay finite.
    """
    limit = padding * ((size - 1) // 2 if max_shell is None else max_shell)
    mean = shell_weights(accumulator).to(torch.float32)
    added, scale = torch.zeros_like(mean), torch.ones_like(mean)
    unpadded = torch.round(torch.arange(len(mean)) / padding).long().clamp(max=size // 2)
    if regularisation is not None:
        added += regularisation.cpu().to(torch.float32)[unpadded]
    if shrinkage is not None:
        drawn = shrinkage.cpu().to(torch.float32)[unpadded]
        added, scale = added + drawn * mean, 1.0 / (1.0 + drawn)
    source = accumulator.cpu().contiguous()
    spectrum = torch.empty(source.shape[:3], dtype=torch.complex64)
    _divide(source.numpy(), (mean / 1000.0).numpy(), added.numpy(), scale.numpy(), limit, spectrum.numpy())
    return _central_cube(spectrum.to(accumulator.device), size) / gridding_profile(size, padding, accumulator.device)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sum_shells(accumulator: np.ndarray, total: np.ndarray, count: np.ndarray) -> None:
    m, width = accumulator.shape[0], accumulator.shape[2]
    for iz in range(m):
        z = iz if 2 * iz < m else iz - m
        for iy in range(m):
            y = iy if 2 * iy < m else iy - m
            for x in range(width):
                shell = int(np.sqrt(np.float32(x * x + y * y + z * z)) + np.float32(0.5))
                if shell >= total.shape[0]:
                    break
                # Friedel mates count where they are not stored.
                times = 1.0 if x == 0 or 2 * x == m else 2.0
                total[shell] += times * accumulator[iz, iy, x, 2]
                count[shell] += times


def shell_weights(accumulator: Tensor) -> Tensor:
    """Mean weight by shell of the padded grid.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)

    Returns
    -------
    Tensor, float64, shape (m // 2 + 1,)
        On the processor.
    """
    n_shells = accumulator.shape[0] // 2 + 1
    total, count = np.zeros(n_shells), np.zeros(n_shells)
    _sum_shells(accumulator.cpu().contiguous().numpy(), total, count)
    return torch.from_numpy(total / count)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _divide(
    accumulator: np.ndarray, least: np.ndarray, added: np.ndarray, scale: np.ndarray, limit: float, out: np.ndarray
) -> None:
    m, width = accumulator.shape[0], accumulator.shape[2]
    for iz in range(m):
        z = iz if 2 * iz < m else iz - m
        for iy in range(m):
            y = iy if 2 * iy < m else iy - m
            for x in range(width):
                shell = int(np.sqrt(np.float32(x * x + y * y + z * z)) + np.float32(0.5))
                out[iz, iy, x] = 0.0
                if shell > limit or shell >= least.shape[0]:
                    continue
                weight = max((accumulator[iz, iy, x, 2] + added[shell]) * scale[shell], least[shell])
                if weight > 0.0:
                    out[iz, iy, x] = complex(accumulator[iz, iy, x, 0] / weight, accumulator[iz, iy, x, 1] / weight)


def _central_cube(spectrum: Tensor, size: int) -> Tensor:
    """Inverse transform of a centred half spectrum, axis by axis, each cropped before the next."""
    m, before = spectrum.shape[0], size // 2
    for axis in (0, 1):
        lines = torch.fft.ifft(spectrum, dim=axis)
        spectrum = torch.cat((lines.narrow(axis, m - before, before), lines.narrow(axis, 0, size - before)), dim=axis)
    lines = torch.fft.irfft(spectrum, n=m, dim=2)
    return torch.cat((lines[..., m - before :], lines[..., : size - before]), dim=2)
