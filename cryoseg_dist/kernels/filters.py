"""Low-, high- and band-pass filters of images and volumes, with cut-offs in A."""

import math
from typing import Literal

import torch
from torch import Tensor

from cryoseg_dist.errors import SettingsError
from cryoseg_dist.kernels.fourier import radius
from cryoseg_dist.kernels.tiles import mirrored

Edge = Literal["butterworth", "cosine"]


def low_pass_curve(frequency: Tensor, cutoff: float, edge: Edge, *, order: int, width: float) -> Tensor:
    """Transmission of a low-pass filter.

    Parameters
    ----------
    frequency : Tensor
        1/A, or any unit that ``cutoff`` and ``width`` share.
    cutoff : float
        Where a Butterworth filter passes ``1/sqrt(2)`` and a raised cosine one half.
    edge : {"butterworth", "cosine"}
    order : int
        Of the Butterworth filter, ``1 / sqrt(1 + (f / cutoff)^(2 order))``.
    width : float
        Full width of the cosine edge.
    """
    if edge == "butterworth":
        return 1.0 / torch.sqrt(1.0 + (frequency / cutoff) ** (2 * order))
    if width <= 0:
        return (frequency <= cutoff).to(frequency.dtype)
    return 0.5 + 0.5 * torch.cos(math.pi * ((frequency - cutoff) / width + 0.5).clamp(0.0, 1.0))


def transmission(
    shape: tuple[int, ...],
    pixel_size: float,
    *,
    low_pass: float | None = None,
    high_pass: float | None = None,
    edge: Edge = "cosine",
    order: int = 4,
    width: float | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Transmission of a filter on the half spectrum of an image or volume.

    Parameters
    ----------
    shape : tuple of int
        Real extent, ``([z,] y, x)``; axes may differ.
    pixel_size : float
        A.
    low_pass, high_pass : float, optional
        Resolution in A beyond which detail, or coarser than which shading, is removed; both make a band pass.
    edge : {"butterworth", "cosine"}
    order : int
        Order of the Butterworth filter.
    width : float, optional
        Width of the cosine edge in 1/A; a quarter of each cut-off frequency when not given.
    device : torch.device or str

    Returns
    -------
    Tensor, float32, shape (..., x // 2 + 1)
        The zero frequency passes exactly with a low pass alone and is removed by a high pass.

    Raises
    ------
    SettingsError
        Cut-offs that are not positive or leave no band.
    """
    faults = [
        f"{name}: expected a resolution above 0 A, got {value}."
        for name, value in (("low_pass", low_pass), ("high_pass", high_pass), ("pixel_size", pixel_size))
        if value is not None and not value > 0
    ]
    if order < 1:
        faults.append(f"order: expected a positive integer, got {order}.")
    if not faults and low_pass is not None and high_pass is not None and low_pass >= high_pass:
        faults.append(f"low_pass: expected a finer resolution than high_pass ({high_pass} A), got {low_pass} A.")
    if faults:
        raise SettingsError(faults)
    k = radius(shape, device) / pixel_size
    out = torch.ones_like(k)
    if low_pass is not None:
        w = 0.25 / low_pass if width is None else width
        out = out * low_pass_curve(k, 1.0 / low_pass, edge, order=order, width=w)
    if high_pass is not None:
        f = 1.0 / high_pass
        w = 0.25 * f if width is None else width
        if edge == "butterworth":
            out = out / torch.sqrt(1.0 + (f / k) ** (2 * order))
        else:
            out = out * (1.0 - low_pass_curve(k, f, edge, order=order, width=w))
    return out


def filtered(
    data: Tensor,
    pixel_size: float,
    *,
    low_pass: float | None = None,
    high_pass: float | None = None,
    edge: Edge = "cosine",
    order: int = 4,
    width: float | None = None,
    ndim: int = 2,
    pad: bool = True,
) -> Tensor:
    """Filter images or volumes; arguments as in :func:`transmission`.

    Parameters
    ----------
    data : Tensor, shape (..., [z,] y, x)
    ndim : int
        Number of trailing axes that are filtered.
    pad : bool
        Mirror an eighth of the extent beyond each side first, so that opposite borders do not mix.

    Returns
    -------
    Tensor, of the shape and type of ``data``
    """
    extent = tuple(data.shape[-ndim:])
    work = data.to(torch.float32) if data.dtype in (torch.float16, torch.bfloat16) else data
    margins = [min(n // 8, n - 1) if pad else 0 for n in extent]
    for i, margin in enumerate(margins):
        if margin:
            index = torch.arange(-margin, extent[i] + margin, device=data.device)
            work = work.index_select(i - ndim, mirrored(index, extent[i]))
    axes = tuple(range(-ndim, 0))
    shape = tuple(work.shape[-ndim:])
    curve = transmission(
        shape,
        pixel_size,
        low_pass=low_pass,
        high_pass=high_pass,
        edge=edge,
        order=order,
        width=width,
        device=data.device,
    )
    out = torch.fft.irfftn(torch.fft.rfftn(work, dim=axes) * curve, s=shape, dim=axes)
    for i, margin in enumerate(margins):
        out = out.narrow(i - ndim, margin, extent[i])
    return out.to(data.dtype)
