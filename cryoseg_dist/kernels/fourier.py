"""Discrete Fourier transforms whose origin is the image centre.

The centre of an axis of ``n`` samples is sample ``n // 2``, for odd and even ``n``. Spectra are unshifted
half spectra (``rfft`` layout): shape ``(..., n, n // 2 + 1)`` for images, ``(..., n, n, n // 2 + 1)`` for
volumes, the zero frequency first. The phase origin is the centre, so a centred real even image has a real
spectrum. Forward transforms are not normalised.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_fourier(images: Tensor, ndim: int = 2, *, centred: bool = True) -> Tensor:
    """Transform real images or volumes to half spectra.

    Parameters
    ----------
    images : Tensor, shape (..., [z,] y, x)
    ndim : int
        Number of trailing axes to transform.
    centred : bool
        Whether the phase origin is the centre. What does not depend on it (powers, correlations, filters by radius) takes two thirds of
        the time with the first sample as the origin.

    Returns
    -------
    Tensor, complex, shape (..., [z,] y, x // 2 + 1)
    """
    axes = tuple(range(-ndim, 0))
    return torch.fft.rfftn(torch.fft.ifftshift(images, dim=axes) if centred else images, dim=axes)


def to_real(spectra: Tensor, size: int, ndim: int = 2, *, centred: bool = True) -> Tensor:
    """Invert :func:`to_fourier`; ``size`` is the extent of the last real axis."""
    axes = tuple(range(-ndim, 0))
    lengths = [*spectra.shape[-ndim:-1], size]
    images = torch.fft.irfftn(spectra, s=lengths, dim=axes)
    return torch.fft.fftshift(images, dim=axes) if centred else images


def frequencies(shape: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Signed frequencies of a half spectrum, one broadcastable float32 tensor an axis.

    Parameters
    ----------
    shape : sequence of int
        Extent of the real image, ``([z,] y, x)``.

    Returns
    -------
    tuple of Tensor
        Cycles per pixel along ``([z,] y, x)``.
    """
    out = []
    last = len(shape) - 1
    for axis, n in enumerate(shape):
        f = torch.fft.rfftfreq(n, device=device) if axis == last else torch.fft.fftfreq(n, device=device)
        out.append(f.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    return tuple(out)


def radius(shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Length of the frequency vector at each sample of a half spectrum, cycles per pixel."""
    return sum(f * f for f in frequencies(shape, device)).sqrt()  # type: ignore[union-attr]


def shells(size: int, ndim: int = 2, device: torch.device | str = "cpu") -> Tensor:
    """Integer shell ``round(|k| * size)`` of each sample of a half spectrum of a cube or square."""
    return torch.round(radius((size,) * ndim, device) * size).long()


def hermitian_weights(size: int, device: torch.device | str = "cpu") -> Tensor:
    """How often each column of a half spectrum counts in a sum over the full spectrum (1 or 2).

    Returns
    -------
    Tensor, shape (size // 2 + 1,)
    """
    weights = torch.full((size // 2 + 1,), 2.0, device=device)
    weights[0] = 1.0
    if size % 2 == 0:
        weights[-1] = 1.0
    return weights


def shell_mean(values: Tensor, size: int, ndim: int = 2) -> Tensor:
    """Mean of real ``values`` of a half spectrum over shells 0 .. size // 2, Friedel mates counted.

    Parameters
    ----------
    values : Tensor, shape (..., [z,] y, x // 2 + 1), real

    Returns
    -------
    Tensor, shape (..., size // 2 + 1)
    """
    index = shells(size, ndim, values.device)
    weights = hermitian_weights(size, values.device).expand(index.shape)
    n_shells = size // 2 + 1
    keep = index < n_shells
    flat, w = index[keep], weights[keep].to(values.dtype)
    lead = values.shape[: values.ndim - ndim]
    total = torch.zeros((*lead, n_shells), dtype=values.dtype, device=values.device)
    total.index_add_(-1, flat, values[..., keep] * w)
    count = torch.zeros(n_shells, dtype=values.dtype, device=values.device).index_add_(0, flat, w)
    return total / count


def shift(spectra: Tensor, shifts_px: Tensor, size: int) -> Tensor:
    """Move image content by ``shifts_px`` (x, y), as a phase ramp on half spectra.

    Parameters
    ----------
    spectra : Tensor, complex, shape (..., size, size // 2 + 1)
    shifts_px : Tensor, shape (..., 2)
        Shift along x, then y, in pixels. A RELION origin in pixels centres the particle.
    size : int
        Extent of the real image.
    """
    fy, fx = frequencies((size, size), spectra.device)
    sx, sy = shifts_px[..., 0, None, None], shifts_px[..., 1, None, None]
    angle = -2.0 * torch.pi * (fx * sx + fy * sy)
    return spectra * torch.polar(torch.ones_like(angle), angle)


def resize_spectrum(spectra: Tensor, size: int, new_size: int, ndim: int = 2) -> Tensor:
    """Crop or zero-pad centred half spectra of a square or cube to those of another real extent.

    Values are scaled by ``(new_size / size) ** ndim``, so that grey values in real space stay.
    The Nyquist frequency of the smaller grid, ambiguous on even grids, is dropped.
    """
    keep = (min(size, new_size) - 1) // 2
    lead = spectra.shape[: spectra.ndim - ndim]
    out = spectra.new_zeros((*lead, *(new_size,) * (ndim - 1), new_size // 2 + 1))
    parts = (slice(0, keep + 1), slice(-keep, None)) if keep else (slice(0, 1),)
    last = slice(0, keep + 1)
    if ndim == 2:
        for y in parts:
            out[..., y, last] = spectra[..., y, last]
    else:
        for z in parts:
            for y in parts:
                out[..., z, y, last] = spectra[..., z, y, last]
    return out * (new_size / size) ** ndim


def resample(images: Tensor, new_size: int, ndim: int = 2) -> Tensor:
    """Change the sampling of square images or cubes by Fourier cropping or padding; grey values stay."""
    size = images.shape[-1]
    if new_size == size:
        return images.clone()
    return to_real(resize_spectrum(to_fourier(images, ndim), size, new_size, ndim), new_size, ndim)
