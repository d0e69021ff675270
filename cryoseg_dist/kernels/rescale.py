"""Change of sampling of rectangular images by Fourier cropping or padding, with one exact pixel size for both axes."""

from fractions import Fraction

import torch
from torch import Tensor

LARGEST_PRIME = 7
LARGEST_DENOMINATOR = 160


def _is_smooth(n: int) -> bool:
    """Whether ``n`` has no prime factor above 7, for which FFTs are fast."""
    for prime in (2, 3, 5, LARGEST_PRIME):
        while n % prime == 0:
            n //= prime
    return n == 1


def rescale_ratio(pixel_size: float, target_pixel_size: float) -> Fraction:
    """Ratio new samples / old samples that comes nearest to a wanted pixel size.

    The ratio ``p / q`` is rational with a ``q`` of at most 160 made of small primes, so that every image extent
    can be padded to a multiple of ``q`` and the new pixel size ``pixel_size * q / p`` is exact and the same along
    both axes. It differs from the wanted one by less than 2 % where the reduction is at most 25.

    Parameters
    ----------
    pixel_size, target_pixel_size : float
        A, positive.
    """
    wanted = pixel_size / target_pixel_size
    best = Fraction(max(1, round(wanted)))
    for q in range(1, LARGEST_DENOMINATOR + 1):
        if not _is_smooth(q):
            continue
        candidate = Fraction(max(1, round(wanted * q)), q)
        # Strictly better only: among equals the smallest denominator stays.
        if abs(float(candidate) / wanted - 1.0) < abs(float(best) / wanted - 1.0) - 1e-12:
            best = candidate
    return best


def rescaled_shape(shape: tuple[int, int], ratio: Fraction) -> tuple[int, int]:
    """Rows and columns after :func:`fourier_rescale`: every new sample that lies inside the old image."""
    return tuple(-(-n * ratio.numerator // ratio.denominator) for n in shape)  # type: ignore[return-value]


def _padded_extent(n: int, q: int) -> int:
    multiple = -(-n // q)
    while not _is_smooth(multiple):
        multiple += 1
    return multiple * q


def _pad_periodic(images: Tensor, extents: tuple[int, int]) -> Tensor:
    """Grow images at their ends by a ramp from the last row (column) to the first, so that they wrap smoothly."""
    out = images
    for axis, extent in zip((-2, -1), extents, strict=True):
        extra = extent - out.shape[axis]
        if extra == 0:
            continue
        last, first = out.narrow(axis, out.shape[axis] - 1, 1), out.narrow(axis, 0, 1)
        t = torch.arange(1, extra + 1, dtype=out.dtype, device=out.device) / (extra + 1)
        t = t[:, None] if axis == -2 else t
        out = torch.cat((out, last * (1 - t) + first * t), dim=axis)
    return out


def fourier_rescale(images: Tensor, ratio: Fraction) -> Tensor:
    """Resample images of any extent by cropping or zero-padding their Fourier transforms; grey values stay.

    Sample ``(0, 0)`` stays where it is: the new sample ``(i, j)`` lies at ``(i / ratio, j / ratio)`` of the old
    image. The frequencies at and beyond the Nyquist frequency of the coarser grid are dropped.

    Parameters
    ----------
    images : Tensor, shape (..., y, x), floating point
    ratio : Fraction
        New over old sampling, from :func:`rescale_ratio`.

    Returns
    -------
    Tensor, shape (..., ceil(y * ratio), ceil(x * ratio))
        The pixel size is the old one divided by ``ratio``.
    """
    height, width = int(images.shape[-2]), int(images.shape[-1])
    if ratio == 1:
        return images.clone()
    rows, columns = (_padded_extent(n, ratio.denominator) for n in (height, width))
    new_rows, new_columns = (int(n * ratio) for n in (rows, columns))
    spectra = torch.fft.rfft2(_pad_periodic(images, (rows, columns)))
    keep_y = (min(rows, new_rows) - 1) // 2
    keep_x = (min(columns, new_columns) - 1) // 2
    kept = spectra.new_zeros((*spectra.shape[:-2], new_rows, new_columns // 2 + 1))
    kept[..., : keep_y + 1, : keep_x + 1] = spectra[..., : keep_y + 1, : keep_x + 1]
    if keep_y:
        kept[..., -keep_y:, : keep_x + 1] = spectra[..., -keep_y:, : keep_x + 1]
    out = torch.fft.irfft2(kept, s=(new_rows, new_columns)) * float(ratio * ratio)
    shape = rescaled_shape((height, width), ratio)
    return out[..., : shape[0], : shape[1]].contiguous()
