"""Insertion with tensor operations: portable, the reference of faster kernels."""

import torch
from torch import Tensor


def insert_torch(
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
    """Insert with tensor operations, on any device; arguments as of :func:`~cryoseg_dist.kernels.insertion.insert`, all given."""
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
