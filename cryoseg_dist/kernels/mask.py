"""Solvent masks: spheres, thresholds, dilation and soft edges."""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def distance_from_centre(size: int, ndim: int = 3, device: torch.device | str = "cpu") -> Tensor:
    """Distance in pixels of each sample from the centre ``size // 2``."""
    axis = torch.arange(size, device=device, dtype=torch.float32) - size // 2
    total = torch.zeros((size,) * ndim, device=device)
    for i in range(ndim):
        total = total + axis.square().reshape([-1 if j == i else 1 for j in range(ndim)])
    return total.sqrt()


def cosine_edge(distance: Tensor, edge: float) -> Tensor:
    """Weight 1 where ``distance <= 0``, 0 beyond ``edge``, a raised cosine between."""
    if edge <= 0:
        return (distance <= 0).to(distance.dtype)
    return 0.5 + 0.5 * torch.cos(math.pi * (distance / edge).clamp(0.0, 1.0))


def soft_sphere(size: int, radius_px: float, edge_px: float, ndim: int = 3) -> Tensor:
    """Disc or ball of ``radius_px`` with a raised-cosine edge outside it."""
    return cosine_edge(distance_from_centre(size, ndim) - radius_px, edge_px)


def solvent_mask(volume: Tensor, threshold: float, extend_px: float, edge_px: float) -> Tensor:
    """Soft mask of the largest connected part of a (low-passed) map above a threshold.

    Parameters
    ----------
    volume : Tensor, shape (n, n, n)
    threshold : float
        Grey value.
    extend_px : float
        Voxels nearer to the binary mask than this are added to it.
    edge_px : float
        Width of the raised-cosine edge outside it, from the nearest voxel of the grown mask.

    Returns
    -------
    Tensor, float32, shape (n, n, n)
        Values in [0, 1]; all zero if nothing exceeds the threshold.

    Notes
    -----
    Growth and edge are those of RELION's ``relion_mask_create``, which keeps specks and holes.
    """
    labels, n_parts = ndimage.label((volume > threshold).cpu().numpy())
    if n_parts == 0:
        return torch.zeros_like(volume, dtype=torch.float32)
    sizes = np.bincount(labels[labels > 0])
    # Pieces that thresholding cut off a molecule stay; specks of noise, and what is no part, do not.
    inside = (sizes >= 0.1 * sizes.max())[labels]
    # Nothing happens farther out than growth and edge, and distances take long.
    reach = math.ceil(max(extend_px, 0.0)) + math.ceil(max(edge_px, 0.0)) + 1
    found = ndimage.find_objects(inside.astype(np.uint8))[0]
    box = tuple(slice(max(0, some.start - reach), some.stop + reach) for some in found)
    part = ndimage.binary_fill_holes(inside[box])
    if extend_px > 0:
        part |= ndimage.distance_transform_edt(~part) < extend_px
    distance = torch.from_numpy(ndimage.distance_transform_edt(~part)).to(torch.float32)
    mask = torch.zeros(volume.shape)
    mask[box] = cosine_edge(distance, edge_px)
    return mask.to(volume.device)
