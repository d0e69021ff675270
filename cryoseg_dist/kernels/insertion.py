"""Insertion of images into a volume's transform."""

import torch
from torch import Tensor

from cryoseg_dist.kernels.insertion_numba import Workspace, insert_numba
from cryoseg_dist.kernels.insertion_torch import insert_torch
from cryoseg_dist.kernels.interpolation import Interpolation
from cryoseg_dist.kernels.triton_support import has_triton


def insert(
    accumulator: Tensor,
    images: Tensor,
    weights: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
    ky: Tensor,
    kx: Tensor,
    *,
    size: int,
    padding: int = 2,
    pose_image: Tensor | None = None,
    pose_weight: Tensor | None = None,
    interpolation: Interpolation = Interpolation.TRILINEAR,
    curvature: float = 0.0,
    threads: int = 1,
    workspace: Workspace | None = None,
) -> None:
    """Add central slices to an accumulator, in place.

    Parameters
    ----------
    accumulator : Tensor, float32, shape (m, m, m // 2 + 1, 3)
        ``m = padding * size``.
    images : Tensor, complex64, shape (b, p)
        Transforms times CTF (over the noise power), at the pixels of ``slices.disc_pixels``.
    weights : Tensor, float32, shape (b, p)
        CTF squared (over the noise power).
    rotations : Tensor, float32, shape (q, 3, 3)
    shifts_px : Tensor, float32, shape (q, 2)
        Origins (x, y) in pixels, added to the image.
    ky, kx : Tensor, int64, shape (p,)
    size : int
        Extent of the unpadded image.
    padding : int
    pose_image : Tensor, int64, shape (q,), optional
        Image of each pose; image ``i`` has pose ``i`` when not given.
    pose_weight : Tensor, float32, shape (q,), optional
        Posterior weight of each pose, one when not given.
    interpolation : Interpolation
        How a pixel is spread over voxels. On the processor; trilinear elsewhere.
    curvature : float
        Of the Ewald sphere, see :func:`~cryoseg_dist.kernels.ewald.curvature`: pixels lie this times the square of their radius along
        the viewing direction. On the processor; flat elsewhere.
    threads : int
        On the processor: they share the accumulator.
    workspace : Workspace, optional
        On the processor: memory that calls of one number of pixels share, one after another.
    """
    q = rotations.shape[0]
    device = accumulator.device
    which = torch.arange(q, device=device) if pose_image is None else pose_image
    share = torch.ones(q, device=device) if pose_weight is None else pose_weight
    if device.type == "cpu":
        poses = (which, rotations, shifts_px, share)
        how = (interpolation, curvature, threads, workspace)
        insert_numba(accumulator, images, weights, *poses, ky, kx, size, padding, *how)
        return
    if interpolation is not Interpolation.TRILINEAR or curvature:
        raise ValueError(f"insert: expected trilinear, flat slices on {device}, got {interpolation}, {curvature}.")
    run = insert_torch
    if has_triton(device):
        from cryoseg_dist.kernels.insertion_triton import insert_triton as run
    run(accumulator, images, weights, which, rotations, shifts_px, share, ky, kx, size, padding)
