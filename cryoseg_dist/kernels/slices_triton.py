"""Central slices on NVIDIA GPUs by a Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, WARPS = 256, 4


@triton.jit
def _project(
    reference,
    rotations,
    ky,
    kx,
    out,
    n_pixels,
    m,
    padding,
    row,
    block: tl.constexpr,
):
    # The longer axis of a launch is the first.
    blocks = tl.cdiv(n_pixels, block)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks) * block + tl.arange(0, block)
    held = p < n_pixels
    fx = tl.load(kx + p, mask=held, other=0).to(tl.float32) * padding
    fy = tl.load(ky + p, mask=held, other=0).to(tl.float32) * padding
    r = rotations + 9 * b
    x = tl.load(r) * fx + tl.load(r + 3) * fy
    y = tl.load(r + 1) * fx + tl.load(r + 4) * fy
    z = tl.load(r + 2) * fx + tl.load(r + 5) * fy
    sign = tl.where(x < 0.0, -1.0, 1.0)
    x, y, z = x * sign, y * sign, z * sign
    low_x, low_y, low_z = tl.floor(x), tl.floor(y), tl.floor(z)
    dx, dy, dz = x - low_x, y - low_y, z - low_z
    x0, y0, z0 = low_x.to(tl.int32), low_y.to(tl.int32), low_z.to(tl.int32)
    limit = m // 2 - 1
    inside = held & (x0 <= limit) & (tl.abs(y0) <= limit) & (tl.abs(z0) <= limit)
    re = tl.zeros((block,), tl.float32)
    im = tl.zeros((block,), tl.float32)
    for corner in tl.static_range(4):
        jy, jz = corner % 2, corner // 2
        share = (dy if jy else 1.0 - dy) * (dz if jz else 1.0 - dz)
        yy, zz = y0 + jy, z0 + jz
        yy = tl.where(yy < 0, yy + m, yy)
        zz = tl.where(zz < 0, zz + m, zz)
        at = reference + 2 * ((zz.to(tl.int64) * m + yy) * row + x0)
        far = share * dx
        near = share - far
        re += near * tl.load(at, mask=inside, other=0.0) + far * tl.load(at + 2, mask=inside, other=0.0)
        im += near * tl.load(at + 1, mask=inside, other=0.0) + far * tl.load(at + 3, mask=inside, other=0.0)
    at = out + 2 * (b * n_pixels + p)
    tl.store(at, re, mask=held)
    tl.store(at + 1, im * sign, mask=held)


def project_triton(reference: Tensor, rotations: Tensor, ky: Tensor, kx: Tensor, padding: int) -> Tensor:
    """Sample central slices; arguments as of :func:`~cryoseg_dist.kernels.slices.project_pixels`."""
    b, p, m = rotations.shape[0], ky.shape[0], reference.shape[0]
    out = torch.empty((b, p, 2), device=reference.device)
    if out.numel():
        _project[(b * triton.cdiv(p, PIXELS),)](
            torch.view_as_real(reference.contiguous()),
            rotations.to(torch.float32).contiguous(),
            ky.to(torch.int32),
            kx.to(torch.int32),
            out,
            p,
            m,
            padding,
            m // 2 + 1,
            block=PIXELS,
            num_warps=WARPS,
        )
    return torch.view_as_complex(out)
