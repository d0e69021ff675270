"""Central rays of images: their transforms on a polar grid."""

import torch
from torch import Tensor

from cryoseg_dist.kernels.planes import prepare_planes, sample_planes


def polar_rays(images: Tensor, n_angles: int, max_shell: int, padding: int = 2) -> Tensor:
    """Transforms of images along rays from the zero frequency, which is left out.

    Parameters
    ----------
    images : Tensor, float32, shape (b, n, n)
        On the processor.
    n_angles : int
        Rays on the full circle, even. The second half are the complex conjugates of the first and are not computed.
    max_shell : int
        Samples of a ray: radii 1 to ``max_shell`` in Fourier pixels.
    padding : int
        Oversampling of the transform that is interpolated.

    Returns
    -------
    Tensor, complex64, shape (b, n_angles // 2, max_shell)
        Ray ``t`` lies at ``360 t / n_angles`` degrees from the image's x axis towards its y axis.

    Raises
    ------
    ValueError
        An odd number of angles, or rays that leave the transform.
    """
    b, n = images.shape[0], images.shape[-1]
    if n_angles % 2 or not 1 <= max_shell <= (n - 1) // 2:
        raise ValueError(
            f"rays: expected an even number of angles and at most {(n - 1) // 2} shells, got {n_angles}, {max_shell}"
        )
    half = n_angles // 2
    angles = torch.arange(half, dtype=torch.float32) * (360.0 / n_angles)
    radii = torch.arange(1, max_shell + 1)
    planes = prepare_planes(images, padding)
    which = torch.arange(b).repeat_interleave(half)
    rays = sample_planes(planes, which, angles.repeat(b), torch.zeros_like(radii), radii, padding)
    return rays.reshape(b, half, max_shell)


def weighted_rays(rays: Tensor, weight: Tensor) -> Tensor:
    """Rays times a weight on each radius, each then of unit length; shapes (b, h, r) and (r,)."""
    out = rays * weight
    length = out.abs().square().sum(dim=-1, keepdim=True).sqrt()
    return out / length.clamp(min=1e-20)
