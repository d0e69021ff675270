"""Insertion on NVIDIA GPUs: a Triton kernel that scatters with vector additions.

An image's slice meets every voxel of its plane about once, so nothing can be summed before memory. What decides is where the
additions go: pixels come in the order of their radius, and a launch runs ring after ring, all poses of a ring before the next.
All slices of a ring fall into one thin spherical shell of the volume, which the level-2 cache holds, though it does not hold the volume.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Pixels of one pose that a program inserts, and its warps.
PIXELS, WARPS = 128, 4


@triton.jit
def _insert(
    accumulator,
    images,
    weights,
    pose_image,
    rotations,
    shifts,
    pose_weight,
    ky,
    kx,
    n_poses,
    n_pixels,
    size,
    m,
    padding,
    row,
    stride: tl.constexpr,
    block: tl.constexpr,
    vector: tl.constexpr,
):
    """Two neighbouring threads share a pixel, one each side of it along x; ``stride`` floats lie between voxels."""
    q = tl.program_id(0) % n_poses
    i = tl.arange(0, 2 * block)
    p = (tl.program_id(0) // n_poses) * block + i // 2
    jx = i % 2
    held = p < n_pixels
    fx = tl.load(kx + p, mask=held, other=0).to(tl.float32)
    fy = tl.load(ky + p, mask=held, other=0).to(tl.float32)
    image = tl.load(pose_image + q)
    share = tl.load(pose_weight + q)
    at = image.to(tl.int64) * n_pixels + p
    re0 = tl.load(images + 2 * at, mask=held, other=0.0)
    im0 = tl.load(images + 2 * at + 1, mask=held, other=0.0)
    wt = tl.load(weights + at, mask=held, other=0.0) * share
    turns = (tl.load(shifts + 2 * q) * fx + tl.load(shifts + 2 * q + 1) * fy) / size
    angle = (turns - tl.floor(turns)) * -6.283185307179586
    c, s = tl.cos(angle) * share, tl.sin(angle) * share
    re, im = re0 * c - im0 * s, re0 * s + im0 * c
    r = rotations + 9 * q
    x = (tl.load(r) * fx + tl.load(r + 3) * fy) * padding
    y = (tl.load(r + 1) * fx + tl.load(r + 4) * fy) * padding
    z = (tl.load(r + 2) * fx + tl.load(r + 5) * fy) * padding
    sign = tl.where(x < 0.0, -1.0, 1.0)
    x, y, z, im = x * sign, y * sign, z * sign, im * sign
    low_x, low_y, low_z = tl.floor(x), tl.floor(y), tl.floor(z)
    dx, dy, dz = x - low_x, y - low_y, z - low_z
    x0, y0, z0 = low_x.to(tl.int32), low_y.to(tl.int32), low_z.to(tl.int32)
    limit = m // 2 - 1
    held = held & (x0 <= limit) & (tl.abs(y0) <= limit) & (tl.abs(z0) <= limit)
    for corner in tl.static_range(4):
        jy, jz = corner % 2, corner // 2
        f = tl.where(jx == 1, dx, 1.0 - dx) * (dy if jy else 1.0 - dy) * (dz if jz else 1.0 - dz)
        yy, zz = y0 + jy, z0 + jz
        yy = tl.where(yy < 0, yy + m, yy)
        zz = tl.where(zz < 0, zz + m, zz)
        voxel = accumulator + ((zz.to(tl.int64) * m + yy) * row + (x0 + jx)) * stride
        if vector:
            tl.inline_asm_elementwise(
                """{
                .reg .pred held;
                .reg .f32 none;
                setp.ne.s32 held, $5, 0;
                mov.f32 none, 0f00000000;
                @held red.relaxed.gpu.global.add.v4.f32 [$1], {$2, $3, $4, none};
                mov.u32 $0, 0;
                }""",
                "=r,l,f,f,f,r",
                [voxel.to(tl.int64), f * re, f * im, f * wt, held.to(tl.int32)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
        else:
            tl.atomic_add(voxel, f * re, mask=held, sem="relaxed")
            tl.atomic_add(voxel + 1, f * im, mask=held, sem="relaxed")
            tl.atomic_add(voxel + 2, f * wt, mask=held, sem="relaxed")


def insert_triton(
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
    *,
    vector: bool = True,
) -> None:
    """Insert with the Triton kernel; arguments as of :func:`~cryoseg_dist.kernels.insertion.insert`, all given.

    Voxels that lie four floats apart, as those of ``accumulator.empty_accumulator`` on a GPU, take one vector addition each unless
    ``vector`` is false; others three of single numbers.
    """
    m = accumulator.shape[0]
    stride = accumulator.stride(2)
    q, p = pose_image.shape[0], ky.shape[0]
    if q == 0:
        return
    _insert[(q * triton.cdiv(p, PIXELS),)](
        accumulator,
        torch.view_as_real(images.contiguous()),
        weights.contiguous(),
        pose_image.contiguous(),
        rotations.contiguous(),
        shifts_px.contiguous(),
        pose_weight.contiguous(),
        ky.to(torch.int32),
        kx.to(torch.int32),
        q,
        p,
        size,
        m,
        padding,
        m // 2 + 1,
        stride=stride,
        block=PIXELS,
        vector=vector and stride == 4,
        num_warps=WARPS,
    )
