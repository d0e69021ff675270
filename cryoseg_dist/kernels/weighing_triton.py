"""Weighting of spectra on NVIDIA GPUs: one pass from uncentred transforms to what insertion takes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cryoseg_dist.kernels.microscope import Microscope

PIXELS, WARPS = 512, 4


@triton.jit
def _weigh(
    spectra,
    factors,
    group,
    even,
    odd,
    inverse_noise,
    ky,
    kx,
    data,
    weights,
    n_pixels,
    size,
    width,
    scale,
    has_even: tl.constexpr,
    has_odd: tl.constexpr,
    even_size: tl.constexpr,
    block: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * block + tl.arange(0, block)
    held = p < n_pixels
    jx, jy = tl.load(kx + p, mask=held, other=0), tl.load(ky + p, mask=held, other=0)
    at = (b * size + tl.where(jy < 0, jy + size, jy)) * width + jx
    re0 = tl.load(spectra + 2 * at, mask=held, other=0.0)
    im0 = tl.load(spectra + 2 * at + 1, mask=held, other=0.0)
    # Transforms have their origin in the corner; whole turns are dropped before the angle is taken.
    if even_size:
        sign = (1 - 2 * ((jx + jy) & 1)).to(tl.float32)
        re, im = re0 * sign, im0 * sign
    else:
        angle = (((jx + jy + size) * (size // 2)) % size).to(tl.float32) * (6.283185307179586 / size)
        c, s = tl.cos(angle), tl.sin(angle)
        re, im = re0 * c - im0 * s, re0 * s + im0 * c
    x, y = jx.to(tl.float32) * scale, jy.to(tl.float32) * scale
    square = x * x + y * y
    f = factors + 5 * b
    chi = tl.load(f) * square + tl.load(f + 1) * (x * x - y * y) + tl.load(f + 2) * (2.0 * x * y)
    chi += tl.load(f + 3) + tl.load(f + 4) * (square * square)
    at = tl.load(group + b) * n_pixels + p
    if has_even:
        chi -= tl.load(even + at, mask=held, other=0.0)
    if has_odd:
        c = tl.load(odd + 2 * at, mask=held, other=1.0)
        s = tl.load(odd + 2 * at + 1, mask=held, other=0.0)
        re, im = re * c - im * s, re * s + im * c
    ctf = tl.sin(chi)
    weighted = ctf * tl.load(inverse_noise + p, mask=held, other=0.0)
    tl.store(weights + b * n_pixels + p, ctf * weighted, mask=held)
    first = tl.program_id(1) * (2 * block)
    i = first + tl.arange(0, 2 * block)
    both = tl.interleave(re * weighted, im * weighted)
    tl.store(data + 2 * b * n_pixels + i, both, mask=i < 2 * n_pixels)


def weigh_triton(
    spectra: Tensor, microscope: Microscope, columns: Tensor, inverse_noise: Tensor, ky: Tensor, kx: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Transforms times CTF, and CTF squared, over the noise, with odd aberrations undone.

    Parameters
    ----------
    spectra : Tensor, complex64, shape (b, size, size // 2 + 1)
        Transforms of the images as they are, origin in the corner.
    microscope : Microscope
        At the same pixels.
    columns : Tensor, shape (b, 4, 5 or 7)
    inverse_noise : Tensor, float32, shape (p,)
    ky, kx : Tensor, int64, shape (p,)
    size : int

    Returns
    -------
    data : Tensor, complex64, shape (b, p)
    weights : Tensor, float32, shape (b, p)
    """
    b, p = spectra.shape[0], ky.shape[0]
    data = torch.empty((b, p), dtype=torch.complex64, device=spectra.device)
    weights = torch.empty((b, p), device=spectra.device)
    factors = microscope.phase_factors(columns)
    even, odd = microscope.even, microscope.odd
    _weigh[(b, triton.cdiv(p, PIXELS))](
        torch.view_as_real(spectra),
        factors,
        microscope.group(columns).to(spectra.device),
        factors if even is None else even,
        factors if odd is None else torch.view_as_real(odd),
        inverse_noise,
        ky.to(torch.int32),
        kx.to(torch.int32),
        torch.view_as_real(data),
        weights,
        p,
        size,
        spectra.shape[2],
        1.0 / (size * microscope.groups[0].pixel_size),
        has_even=even is not None,
        has_odd=odd is not None,
        even_size=size % 2 == 0,
        block=PIXELS,
        num_warps=WARPS,
    )
    microscope.dampen(weights, columns, data)
    return data, weights
