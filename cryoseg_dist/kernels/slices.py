"""Central slices of a volume's transform: the projections of the volume (central-section theorem)."""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.interpolation import gridding_profile
from cryoseg_dist.kernels.triton_support import has_triton


def pad_volume(volume: Tensor, padding: int) -> Tensor:
    """Zero-pad a cube of ``n`` samples to ``padding * n``, keeping the centre at the centre."""
    n = volume.shape[-1]
    m = padding * n
    before = m // 2 - n // 2
    out = volume.new_zeros((m, m, m))
    out[before : before + n, before : before + n, before : before + n] = volume
    return out


def prepare_volume(volume: Tensor, padding: int = 2) -> Tensor:
    """Transform a volume for slicing: correct for the interpolation, pad, transform.

    Parameters
    ----------
    volume : Tensor, float32, shape (n, n, n)
    padding : int
        Oversampling of the transform.

    Returns
    -------
    Tensor, complex64, shape (padding n, padding n, padding n // 2 + 1)
    """
    n = volume.shape[-1]
    corrected = volume / gridding_profile(n, padding, volume.device)
    return to_fourier(pad_volume(corrected, padding), 3)


def disc_pixels(size: int, max_shell: float, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Fourier pixels of a half spectrum within a radius, each Friedel pair once.

    Parameters
    ----------
    size : int
        Image extent.
    max_shell : float
        Largest radius in Fourier pixels, below ``size / 2``.

    Returns
    -------
    ky, kx : Tensor, int64, shape (m,)
        Signed indices, ``kx >= 0``; on ``kx = 0`` only ``ky >= 0``. The zero frequency comes first.
    """
    top = math.floor(min(max_shell, (size - 1) // 2))
    ky, kx = torch.meshgrid(
        torch.arange(-top, top + 1, device=device), torch.arange(0, top + 1, device=device), indexing="ij"
    )
    keep = (ky * ky + kx * kx <= max_shell * max_shell) & ((kx > 0) | (ky >= 0))
    ky, kx = ky[keep], kx[keep]
    order = torch.argsort(ky * ky + kx * kx, stable=True)
    return ky[order], kx[order]


def by_rows(ky: Tensor, kx: Tensor) -> Tensor:
    """The order of pixels in which neighbours in memory follow one another."""
    return torch.argsort(ky * (kx.max() + 2) + kx, stable=True)


def pixel_rows(ky: Tensor, kx: Tensor) -> np.ndarray:
    """Stretches of pixels, put :func:`by_rows`, whose ``kx`` rises by one.

    Returns
    -------
    ndarray, int64, shape (rows, 4)
        ``ky``, first ``kx``, first pixel, how many.
    """
    y, x = ky.cpu().numpy(), kx.cpu().numpy()
    begin = np.flatnonzero(np.r_[True, (np.diff(y) != 0) | (np.diff(x) != 1)])
    return np.stack((y[begin], x[begin], begin, np.diff(np.r_[begin, len(y)])), axis=1)


def take_pixels(spectra: Tensor, ky: Tensor, kx: Tensor) -> Tensor:
    """Values of half spectra at signed indices; (..., n, n // 2 + 1) to (..., m)."""
    return spectra[..., ky % spectra.shape[-2], kx]


def put_pixels(values: Tensor, ky: Tensor, kx: Tensor, size: int) -> Tensor:
    """Half spectra that hold ``values`` at the indices of :func:`disc_pixels`, Friedel mates filled in."""
    out = values.new_zeros((*values.shape[:-1], size, size // 2 + 1))
    out[..., ky % size, kx] = values
    edge = kx == 0
    out[..., (-ky[edge]) % size, kx[edge]] = values[..., edge].conj()
    return out


@numba.njit(nogil=True, cache=True, fastmath=True)
def _project_pixels(
    reference: np.ndarray,
    extent: int,
    rotations: np.ndarray,
    ky: np.ndarray,
    kx: np.ndarray,
    order: np.ndarray,
    padding: int,
    out: np.ndarray,
) -> None:
    """Real and imaginary parts lie side by side, in the flat ``reference`` as in ``out``."""
    limit, width = extent // 2 - 1, extent // 2 + 1
    one, pad = np.float32(1.0), np.float32(padding)
    for b in range(rotations.shape[0]):
        ax, ay, az = rotations[b, 0, 0] * pad, rotations[b, 0, 1] * pad, rotations[b, 0, 2] * pad
        bx, by, bz = rotations[b, 1, 0] * pad, rotations[b, 1, 1] * pad, rotations[b, 1, 2] * pad
        for p in order:
            fx, fy = np.float32(kx[p]), np.float32(ky[p])
            x, y, z = ax * fx + bx * fy, ay * fx + by * fy, az * fx + bz * fy
            sign = one
            if x < np.float32(0.0):
                x, y, z, sign = -x, -y, -z, -one
            low_x, low_y, low_z = np.floor(x), np.floor(y), np.floor(z)
            x0, y0, z0 = int(low_x), int(low_y), int(low_z)
            if x0 > limit or abs(y0) > limit or abs(z0) > limit:
                out[b, 2 * p] = out[b, 2 * p + 1] = 0.0
                continue
            dx, dy, dz = x - low_x, y - low_y, z - low_z
            y1, z1 = y0 + 1, z0 + 1
            if y0 < 0:
                y0 += extent
            if y1 < 0:
                y1 += extent
            if z0 < 0:
                z0 += extent
            if z1 < 0:
                z1 += extent
            re = im = np.float32(0.0)
            for corner in range(4):
                yy = y1 if corner & 1 else y0
                zz = z1 if corner & 2 else z0
                share = (dy if corner & 1 else one - dy) * (dz if corner & 2 else one - dz)
                far = share * dx
                near = share - far
                at = 2 * ((zz * extent + yy) * width + x0)
                re += near * reference[at] + far * reference[at + 2]
                im += near * reference[at + 1] + far * reference[at + 3]
            out[b, 2 * p], out[b, 2 * p + 1] = re, sign * im


def _project_pixels_torch(reference: Tensor, rotations: Tensor, ky: Tensor, kx: Tensor, padding: int) -> Tensor:
    m = reference.shape[0]
    x, y = kx.to(torch.float32) * padding, ky.to(torch.float32) * padding
    k = rotations[:, 0, :, None] * x + rotations[:, 1, :, None] * y
    flip = k[:, 0] < 0
    k = torch.where(flip[:, None], -k, k)
    base = torch.floor(k)
    ix, iy, iz = base.to(torch.int64).unbind(1)
    fx, fy, fz = (k - base).unbind(1)
    inside = (ix <= m // 2 - 1) & (iy.abs() <= m // 2 - 1) & (iz.abs() <= m // 2 - 1)
    ix = ix.clamp(max=m // 2 - 1)
    flat = torch.view_as_real(reference).reshape(-1, 2)
    width = m // 2 + 1
    out = torch.zeros((*ix.shape, 2), device=reference.device)
    for dz in (0, 1):
        wz = fz if dz else 1.0 - fz
        z = (iz + dz) % m
        for dy in (0, 1):
            wzy = wz * (fy if dy else 1.0 - fy)
            row = (z * m + (iy + dy) % m) * width + ix
            out += (wzy * (1.0 - fx))[..., None] * flat[row]
            out += (wzy * fx)[..., None] * flat[row + 1]
    values = torch.view_as_complex(out * inside[..., None])
    return torch.where(flip, values.conj(), values)


def project_pixels(reference: Tensor, rotations: Tensor, ky: Tensor, kx: Tensor, padding: int = 2) -> Tensor:
    """Sample central slices at given Fourier pixels by trilinear interpolation.

    Parameters
    ----------
    reference : Tensor, complex64, shape (m, m, m // 2 + 1)
        From :func:`prepare_volume`.
    rotations : Tensor, shape (b, 3, 3)
    ky, kx : Tensor, int64, shape (p,)
        Signed indices in the unpadded image.
    padding : int
        The padding the reference was prepared with.

    Returns
    -------
    Tensor, complex64, shape (b, p)
        Zero beyond the reference's Nyquist frequency.
    """
    r = rotations.to(torch.float32).contiguous()
    if reference.device.type != "cpu":
        if has_triton(reference.device):
            from cryoseg_dist.kernels.slices_triton import project_triton

            return project_triton(reference, r, ky, kx, padding)
        return _project_pixels_torch(reference, r, ky, kx, padding)
    out = torch.empty((r.shape[0], ky.shape[0], 2))
    flat = torch.view_as_real(reference.contiguous()).reshape(-1)
    # Row after row, neighbours in memory follow one another.
    order = torch.argsort(ky * reference.shape[0] + kx)
    _project_pixels(
        flat.numpy(),
        reference.shape[0],
        r.numpy(),
        ky.numpy(),
        kx.numpy(),
        order.numpy(),
        padding,
        out.numpy().reshape(r.shape[0], -1),
    )
    return torch.view_as_complex(out)


def project(reference: Tensor, rotations: Tensor, size: int, padding: int = 2) -> Tensor:
    """Projections of a volume, as half spectra up to the inscribed circle.

    Parameters
    ----------
    reference : Tensor, complex64
        From :func:`prepare_volume`.
    rotations : Tensor, shape (b, 3, 3)
    size : int
        Image extent.

    Returns
    -------
    Tensor, complex64, shape (b, size, size // 2 + 1)
    """
    ky, kx = disc_pixels(size, size / 2, reference.device)
    return put_pixels(project_pixels(reference, rotations, ky, kx, padding), ky, kx, size)
