"""The sum of central slices in Fourier space.

An accumulator is a float32 tensor of shape ``(m, m, m // 2 + 1, 3)``: real part, imaginary part and weight of each voxel
of an unshifted half spectrum, ``m`` being the padded extent. Accumulators of disjoint particle sets add up.
"""

import torch
from torch import Tensor


def empty_accumulator(size: int, padding: int = 2, device: torch.device | str = "cpu") -> Tensor:
    """An accumulator of zeros for images of ``size`` pixels; its extent is even.

    On a GPU voxels lie four floats apart, so that one vector addition reaches a voxel.
    """
    m = padded_extent(size, padding)
    apart = 3 if torch.device(device).type == "cpu" else 4
    return torch.zeros((m, m, m // 2 + 1, apart), device=device)[..., :3]


def padded_extent(size: int, padding: int) -> int:
    """Extent of the padded grid."""
    return size * padding


def enforce_friedel(accumulator: Tensor) -> Tensor:
    """Complete the plane ``x = 0``, in place, where each Friedel pair was inserted on one side only.

    Call once, after all insertions, before :func:`symmetrise`.
    """
    plane = accumulator[:, :, 0]
    mate = plane.flip((0, 1)).roll((1, 1), (0, 1)) * torch.tensor((1.0, -1.0, 1.0), device=plane.device)
    accumulator[:, :, 0] = plane + mate
    return accumulator
