"""Central slices of a volume's transform: the projections of the volume (central-section theorem)."""

import math

import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier


def pad_volume(volume: Tensor, padding: int) -> Tensor:
    """Zero-pad a cube of ``n`` samples to ``padding * n``, keeping the centre at the centre."""
    n = volume.shape[-1]
    m = padding * n
    before = m // 2 - n // 2
    out = volume.new_zeros((m, m, m))
    out[before : before + n, before : before + n, before : before + n] = volume
    return out


def gridding_profile(size: int, padding: int, device: torch.device | str = "cpu") -> Tensor:
    """What trilinear interpolation in a padded transform multiplies real space with, ``sinc(r / (padding n))^2``.

    The separable transform of the interpolation kernel, shape (size, size, size).
    """
    x = (torch.arange(size, device=device, dtype=torch.float64) - size // 2) / (padding * size)
    s = torch.sinc(x).square()
    return (s[:, None, None] * s[None, :, None] * s[None, None, :]).to(torch.float32)


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


def project_pixels(reference: Tensor, rotations: Tensor, ky: Tensor, kx: Tensor, padding: int = 2) -> Tensor:
    """Sample central slices at given Fourier pixels by trilinear interpolation.

    Parameters
    ----------
    reference : Tensor, complex64, shape (m, m, m // 2 + 1)
        From :func:`prepare_volume`.
    rotations : Tensor, shape (b, 3, 3)
    ky, kx : Tensor, shape (p,)
        Signed indices in the unpadded image.
    padding : int
        The padding the reference was prepared with.

    Returns
    -------
    Tensor, complex64, shape (b, p)
        Zero beyond the reference's Nyquist frequency.
    """
    m = reference.shape[0]
    r = rotations.to(torch.float32)
    x, y = kx.to(torch.float32) * padding, ky.to(torch.float32) * padding
    k = r[:, 0, :, None] * x + r[:, 1, :, None] * y
    flip = k[:, 0] < 0
    k = torch.where(flip[:, None], -k, k)
    base = torch.floor(k)
    f = k - base
    ix, iy, iz = base.to(torch.int64).unbind(1)
    fx, fy, fz = f.unbind(1)
    inside = (k.abs() < m // 2 - 1).all(dim=1)
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
    out = out * inside[..., None]
    values = torch.view_as_complex(out)
    return torch.where(flip, values.conj(), values)


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
