"""Rotated images: samples of a class average's transform, and the insertion of images into class averages.

A class average ``C`` and an image at angle ``psi`` are related as a volume and its slice at ``rot = tilt = 0``: the image's
transform at ``(kx, ky)`` is that of ``C`` at ``kx (cos psi, sin psi) + ky (-sin psi, cos psi)``. An accumulator is a float32
tensor ``(K, m, m // 2 + 1, 3)`` (real part, imaginary part, weight), ``m`` being the padded extent.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import shell_mean, to_fourier, to_real


def plane_profile(size: int, padding: int) -> Tensor:
    """What bilinear interpolation in a padded transform multiplies an image with, shape (size, size)."""
    x = (torch.arange(size, dtype=torch.float64) - size // 2) / (padding * size)
    s = torch.sinc(x).square()
    return (s[:, None] * s[None, :]).to(torch.float32)


def prepare_planes(averages: Tensor, padding: int = 2) -> Tensor:
    """Transform class averages for sampling: correct for the interpolation, pad, transform.

    Parameters
    ----------
    averages : Tensor, float32, shape (K, n, n)
    padding : int
        Oversampling of the transform.

    Returns
    -------
    Tensor, complex64, shape (K, padding n, padding n // 2 + 1)
    """
    n = averages.shape[-1]
    m = padding * n
    before = m // 2 - n // 2
    padded = averages.new_zeros((averages.shape[0], m, m))
    padded[:, before : before + n, before : before + n] = averages / plane_profile(n, padding)
    return to_fourier(padded)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sample(
    planes: np.ndarray,
    which: np.ndarray,
    psi: np.ndarray,
    ky: np.ndarray,
    kx: np.ndarray,
    padding: int,
    out: np.ndarray,
) -> None:
    m = planes.shape[1]
    limit = m // 2 - 1
    one = np.float32(1.0)
    for q in range(which.shape[0]):
        plane = planes[which[q]]
        angle = np.radians(psi[q])
        c, s = np.float32(np.cos(angle) * padding), np.float32(np.sin(angle) * padding)
        for p in range(ky.shape[0]):
            fx, fy = np.float32(kx[p]), np.float32(ky[p])
            x, y = c * fx - s * fy, s * fx + c * fy
            flip = x < np.float32(0.0)
            if flip:
                x, y = -x, -y
            low_x, low_y = np.floor(x), np.floor(y)
            x0, y0 = int(low_x), int(low_y)
            if x0 > limit or abs(y0) > limit:
                out[q, p] = 0.0
                continue
            dx, dy = x - low_x, y - low_y
            y1 = y0 + 1
            if y0 < 0:
                y0 += m
            if y1 < 0:
                y1 += m
            value = (plane[y0, x0] * (one - dy) + plane[y1, x0] * dy) * (one - dx) + (
                plane[y0, x0 + 1] * (one - dy) + plane[y1, x0 + 1] * dy
            ) * dx
            out[q, p] = value.conjugate() if flip else value


def sample_planes(planes: Tensor, which: Tensor, psi: Tensor, ky: Tensor, kx: Tensor, padding: int = 2) -> Tensor:
    """Transforms of class averages rotated by ``psi``, at Fourier pixels.

    Parameters
    ----------
    planes : Tensor, complex64, shape (K, m, m // 2 + 1)
        Of :func:`prepare_planes`, on the processor.
    which : Tensor, int64, shape (q,)
        Class of each sample.
    psi : Tensor, float32, shape (q,)
        Degrees.
    ky, kx : Tensor, int64, shape (p,)
        Pixels of ``slices.disc_pixels``.

    Returns
    -------
    Tensor, complex64, shape (q, p)
    """
    out = torch.empty((which.shape[0], ky.shape[0]), dtype=torch.complex64)
    _sample(*(t.contiguous().numpy() for t in (planes, which, psi, ky, kx)), padding, out.numpy())
    return out


@numba.njit(nogil=True, cache=True, fastmath=True)
def _insert(
    accumulator: np.ndarray,
    images: np.ndarray,
    weights: np.ndarray,
    pose_image: np.ndarray,
    pose_class: np.ndarray,
    psi: np.ndarray,
    shifts_px: np.ndarray,
    pose_weight: np.ndarray,
    ky: np.ndarray,
    kx: np.ndarray,
    size: int,
    padding: int,
) -> None:
    m = accumulator.shape[1]
    limit = m // 2 - 1
    one = np.float32(1.0)
    top = 0
    for p in range(ky.shape[0]):
        top = max(top, abs(ky[p]), kx[p])
    phase_x = np.empty(top + 1, np.complex64)
    phase_y = np.empty(2 * top + 1, np.complex64)
    for q in range(pose_image.shape[0]):
        w = pose_weight[q]
        if w == 0.0:
            continue
        i = pose_image[q]
        target = accumulator[pose_class[q]]
        step_x = -2.0 * np.pi * shifts_px[q, 0] / size
        step_y = -2.0 * np.pi * shifts_px[q, 1] / size
        for k in range(top + 1):
            phase_x[k] = np.complex64(np.exp(1j * step_x * k))
        for k in range(-top, top + 1):
            phase_y[k + top] = np.complex64(np.exp(1j * step_y * k))
        angle = np.radians(psi[q])
        c, s = np.float32(np.cos(angle) * padding), np.float32(np.sin(angle) * padding)
        for p in range(ky.shape[0]):
            fx, fy = np.float32(kx[p]), np.float32(ky[p])
            value = images[i, p] * (phase_x[kx[p]] * phase_y[ky[p] + top])
            re, im, wt = value.real * w, value.imag * w, weights[i, p] * w
            x, y = c * fx - s * fy, s * fx + c * fy
            if x < np.float32(0.0):
                x, y, im = -x, -y, -im
            low_x, low_y = np.floor(x), np.floor(y)
            x0, y0 = int(low_x), int(low_y)
            if x0 > limit or abs(y0) > limit:
                continue
            dx, dy = x - low_x, y - low_y
            for corner in range(2):
                yy = y0 + corner
                if yy < 0:
                    yy += m
                far = dy if corner else one - dy
                near = far - far * dx
                far = far * dx
                target[yy, x0, 0] += near * re
                target[yy, x0, 1] += near * im
                target[yy, x0, 2] += near * wt
                target[yy, x0 + 1, 0] += far * re
                target[yy, x0 + 1, 1] += far * im
                target[yy, x0 + 1, 2] += far * wt


def empty_planes(n_classes: int, size: int, padding: int = 2) -> Tensor:
    """An accumulator of zeros."""
    m = padding * size
    return torch.zeros((n_classes, m, m // 2 + 1, 3))


def insert_planes(
    accumulator: Tensor,
    images: Tensor,
    weights: Tensor,
    pose_image: Tensor,
    pose_class: Tensor,
    psi: Tensor,
    shifts_px: Tensor,
    pose_weight: Tensor,
    ky: Tensor,
    kx: Tensor,
    *,
    size: int,
    padding: int = 2,
) -> None:
    """Add images to class averages, in place, by bilinear scattering.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (K, m, m // 2 + 1, 3)
        On the processor.
    images : Tensor, complex64, shape (b, p)
        Transforms times CTF over the noise power, at the pixels of ``slices.disc_pixels``.
    weights : Tensor, float32, shape (b, p)
        CTF squared over the noise power.
    pose_image, pose_class : Tensor, int64, shape (q,)
        Image and class of each pose.
    psi : Tensor, float32, shape (q,)
        Degrees.
    shifts_px : Tensor, float32, shape (q, 2)
        Origins (x, y) in pixels, added to the image.
    pose_weight : Tensor, float32, shape (q,)
        Posterior weight.
    ky, kx : Tensor, int64, shape (p,)
    size : int
        Extent of the image.
    """
    arguments = (accumulator, images, weights, pose_image, pose_class, psi, shifts_px, pose_weight, ky, kx)
    _insert(*(t.contiguous().numpy() for t in arguments), size, padding)


def complete_planes(accumulator: Tensor) -> Tensor:
    """Fill in the Friedel mates on the line ``x = 0``; once, after all insertions."""
    out = accumulator.clone()
    line = accumulator[:, :, 0]
    out[:, :, 0] = line + line.flip(1).roll(1, 1) * torch.tensor((1.0, -1.0, 1.0))
    return out


def plane_weights(accumulator: Tensor, padding: int = 2) -> Tensor:
    """Weight that each pixel of the unpadded transform got, by shell.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (K, m, m // 2 + 1, 3)
        After :func:`complete_planes`.

    Returns
    -------
    Tensor, float32, shape (K, m // padding // 2 + 1)
    """
    m = accumulator.shape[1]
    fine = shell_mean(accumulator[..., 2], m)
    # A sample's bilinear weights sum to one, and each pixel of the image has padding^2 cells of its own.
    return padding**2 * _coarse(fine, m // padding // 2 + 1, padding)


def _coarse(fine: Tensor, n_shells: int, padding: int) -> Tensor:
    """Triangular means over the padded shells around each unpadded one."""
    distance = torch.arange(fine.shape[-1]) / padding - torch.arange(n_shells)[:, None]
    window = (1.0 - distance.abs()).clamp(min=0.0)
    return fine @ (window / window.sum(dim=1, keepdim=True)).T


def finish_planes(accumulator: Tensor, size: int, *, padding: int = 2, regularisation: Tensor | None = None) -> Tensor:
    """Class averages of an accumulator: divide by the weights, transform back, crop, correct for the interpolation.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (K, m, m // 2 + 1, 3)
        After :func:`complete_planes`.
    size : int
        Extent of the averages.
    padding : int
    regularisation : Tensor, shape (K, size // 2 + 1), optional
        ``1 / (T tau^2)``, the inverse prior variance of a component of the signal, by class and shell: the Wiener filter where
        weights are CTF squared over the noise variance.

    Returns
    -------
    Tensor, float32, shape (K, size, size)
        Zero for a class without images.
    """
    m = accumulator.shape[1]
    radius = torch.hypot(torch.fft.fftfreq(m)[:, None] * m, torch.arange(m // 2 + 1).float()[None]) / padding
    shell = torch.round(radius).long().clamp(max=size // 2)
    weight = accumulator[..., 2]
    floor = (shell_mean(weight, m) / 1000.0)[:, torch.round(radius * padding).long().clamp(max=m // 2)]
    if regularisation is not None:
        # The prior holds for a pixel of the image, whose weight lies spread over padding^2 cells.
        weight = weight + regularisation[:, shell] / padding**2
    weight = torch.maximum(weight, floor)
    held = (weight > 0) & (radius <= (size - 1) // 2)
    spectrum = torch.view_as_complex(accumulator[..., :2].contiguous()) / weight.clamp(min=1e-30)
    spectrum = torch.where(held, spectrum, torch.zeros_like(spectrum))
    before = m // 2 - size // 2
    images = to_real(spectrum, m)[:, before : before + size, before : before + size]
    return (images / plane_profile(size, padding)).contiguous()
