"""Resolution by place: FSC within soft windows, and a filter that follows it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cryoseg_dist.kernels.fourier import resample, to_fourier, to_real
from cryoseg_dist.kernels.fsc import corrected_fsc, crossing, fsc, randomise_phases
from cryoseg_dist.kernels.mask import cosine_edge, distance_from_centre
from cryoseg_dist.kernels.sharpen import low_pass_shell
from cryoseg_dist.kernels.windows import fast_even_size

# Samples of the windows that are transformed at once.
_HELD = 1 << 21


@dataclass(frozen=True, slots=True)
class LocalResolution:
    """Resolution at points, and between them.

    Attributes
    ----------
    points : Tensor, int64, shape (p, 3)
        zyx in pixels.
    values : Tensor, float64, shape (p,)
        A.
    volume : Tensor, float32, shape (n, n, n)
        A, interpolated; beyond the points the value of the nearest one.
    """

    points: Tensor
    values: Tensor
    volume: Tensor


def sampling_points(mask: Tensor, step_px: float) -> Tensor:
    """Points of a regular grid about the centre whose voxel of the mask exceeds one half; zyx in pixels, (p, 3).

    The densest voxel of the mask where the grid misses it altogether.
    """
    n = mask.shape[-1]
    reach = int((n // 2) / step_px)
    axis = torch.round(torch.arange(-reach, reach + 1) * step_px).long() + n // 2
    axis = axis[(axis >= 0) & (axis < n)]
    points = torch.cartesian_prod(axis, axis, axis)
    inside = points[mask[tuple(points.T)].cpu() > 0.5]
    if len(inside):
        return inside
    best = int(mask.argmax())
    return torch.tensor([[best // (n * n), best // n % n, best % n]])


def local_resolution(
    half1: Tensor,
    half2: Tensor,
    mask: Tensor,
    pixel_size: float,
    *,
    sampling: float = 15.0,
    radius: float = 12.5,
    edge: float = 25.0,
    randomise_at: float = 25.0,
    coarsest: float = 50.0,
    finest: float | None = None,
    threshold: float = 0.143,
    seed: int = 0,
) -> LocalResolution:
    """Resolution around points within a mask.

    Parameters
    ----------
    half1, half2 : Tensor, float32, shape (n, n, n)
    mask : Tensor, shape (n, n, n)
        Points lie where it exceeds one half.
    pixel_size : float
        A.
    sampling : float
        Distance of neighbouring points in A.
    radius, edge : float
        Of the spherical window and of the raised-cosine edge outside it, A.
    randomise_at : float
        Phases finer than this are randomised to measure what the window alone correlates, A.
    coarsest : float
        Worst resolution given, A.
    finest : float, optional
        Nothing finer is looked for, which is faster, A; the maps' own limit when not given.
    threshold : float
        Of the corrected FSC.
    seed : int
        Of the randomised phases.

    Returns
    -------
    LocalResolution

    Notes
    -----
    Soft spherical windows, as in blocres (Cardone et al. 2013) and RELION, with the correction of Chen et al. 2013 for
    the window's own correlation. Only the window's surroundings are transformed.
    """
    n = half1.shape[-1]
    size = n
    if finest is not None and finest > 2.0 * pixel_size:
        size = min(n, fast_even_size(2.0 * n * pixel_size / finest))
    scale = n / size
    pixel = pixel_size * scale
    generator = torch.Generator().manual_seed(seed)
    halves = [resample(h, size, 3) for h in (half1, half2)]
    start = max(1, round(size * pixel / randomise_at))
    halves += [randomise_phases(h, start, generator) for h in halves]
    points = sampling_points(mask, sampling / pixel_size)
    # Centres of both grids coincide.
    centres = torch.round((points - n // 2) / scale).long() + size // 2
    width = fast_even_size(2.0 * (radius + edge) / pixel + 1)
    window = cosine_edge(distance_from_centre(width) - radius / pixel, edge / pixel).to(half1.device)
    before = width // 2
    padded = [torch.nn.functional.pad(h, (before, width) * 3) for h in halves]
    first_shell = math.ceil(width * pixel / randomise_at)
    coarsest_shell = width * pixel / coarsest
    found = []
    batch = max(1, _HELD // width**3)
    for some in torch.split(centres, batch):
        spectra = [to_fourier(_windows(p, some, width) * window, 3) for p in padded]
        real, random = fsc(spectra[0], spectra[1]), fsc(spectra[2], spectra[3])
        for masked, randomised in zip(real.cpu(), random.cpu(), strict=True):
            curve = corrected_fsc(masked, randomised, max(0, first_shell - 1))
            found.append(width * pixel / max(crossing(curve, threshold), coarsest_shell))
    values = torch.tensor(found, dtype=torch.float64)
    return LocalResolution(points, values, _between(points, values, n, sampling / pixel_size).to(half1.device))


def _windows(padded: Tensor, centres: Tensor, width: int) -> Tensor:
    """Cubes about points of a map that was padded by half a cube before and a whole one behind; (p, w, w, w)."""
    return torch.stack([padded[z : z + width, y : y + width, x : x + width] for z, y, x in centres.tolist()])


def _between(points: Tensor, values: Tensor, n: int, step_px: float) -> Tensor:
    """Trilinear interpolation of frequencies between the points there are, the nearest point's beyond them."""
    cells = torch.round((points - n // 2) / step_px).long()
    low = cells.amin(dim=0)
    extent = (cells.amax(dim=0) - low + 3).tolist()
    held, weight = np.zeros(extent), np.zeros(extent)
    at = tuple((cells - low + 1).T.numpy())
    held[at], weight[at] = 1.0 / values.numpy(), 1.0
    axes = [((np.arange(n) - n // 2) / step_px - float(low[d]) + 1.0) for d in range(3)]
    nearest = tuple(ndimage.distance_transform_edt(weight == 0, return_distances=False, return_indices=True))
    full = held[nearest]
    out = np.empty((n, n, n), dtype=np.float32)
    y, x = np.meshgrid(axes[1], axes[2], indexing="ij")
    for i, z in enumerate(axes[0]):
        where = np.stack((np.full_like(y, z), y, x))
        amount = ndimage.map_coordinates(weight, where, order=1, mode="constant")
        known = ndimage.map_coordinates(held * weight, where, order=1, mode="constant")
        beyond = ndimage.map_coordinates(full, where, order=0, mode="nearest")
        out[i] = np.where(amount > 0.05, known / np.maximum(amount, 0.05), beyond)
    return torch.from_numpy(1.0 / out)


def filter_locally(
    volume: Tensor, resolution: Tensor, pixel_size: float, *, levels: int = 16, edge_shells: float = 2.0
) -> Tensor:
    """Low-pass a map at each voxel's own resolution.

    Parameters
    ----------
    volume : Tensor, float32, shape (n, n, n)
    resolution : Tensor, shape (n, n, n)
        A.
    pixel_size : float
        A.
    levels : int
        Cut-offs that are computed; between neighbouring ones, even in frequency, the result is interpolated.
    edge_shells : float
        Width of each filter's raised-cosine edge.

    Returns
    -------
    Tensor, float32, shape (n, n, n)
    """
    n = volume.shape[-1]
    shell = (n * pixel_size / resolution.to(torch.float32)).clamp(max=n / 2)
    low, high = float(shell.min()), float(shell.max())
    count = max(1, min(levels, math.ceil(high - low) + 1))
    step = (high - low) / max(1, count - 1)
    spectrum = to_fourier(volume, 3)
    place = (shell - low) / step if step > 0 else torch.zeros_like(shell)
    out = torch.zeros_like(volume)
    for i in range(count):
        weight = (1.0 - (place - i).abs()).clamp(min=0.0)
        if bool(weight.any()):
            out += weight * to_real(low_pass_shell(spectrum, low + i * step, edge_shells), n, 3)
    return out
