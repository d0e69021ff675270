"""Fourier shell correlation by direction: whether a map is resolved equally well along all axes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoseg_dist.kernels.coverage import sphere_points
from cryoseg_dist.kernels.fourier import frequencies, hermitian_weights, shells
from cryoseg_dist.kernels.fsc import crossing

# Products of axes and samples that are held at once.
_HELD = 1 << 24
# Independent values (real and imaginary parts) below which a cone says nothing of its own.
_FEWEST = 8
# Cones that overlap little, of those that tile a half sphere, and draws that a chance level is taken from.
_SEPARATE, _DRAWS = 48, 60
# A ratio of the poorest to the best direction below this is called preferred orientation.
ANISOTROPY_LIMIT = 0.5


@dataclass(frozen=True, slots=True)
class ConicalFsc:
    """FSC within double cones about many axes.

    Attributes
    ----------
    axes : Tensor, shape (a, 3)
        Unit vectors, xyz, spread evenly over a half sphere.
    curves : Tensor, float64, shape (a, n // 2 + 1)
    areas : Tensor, float64, shape (a,)
        Area under each curve weighted by the square of the shell, up to its first fall below the threshold.
    shells : Tensor, float64, shape (a,)
        Shell, interpolated, at which each curve falls below the threshold.
    ratio : float
        cFAR, the smallest area over the largest; 1 for a map that is resolved alike in all directions.
    chance : float
        Ratio that a map of equal resolution in all directions falls below in one case of twenty, by the scatter of
        the few samples that each cone holds.
    """

    axes: Tensor
    curves: Tensor
    areas: Tensor
    shells: Tensor
    ratio: float
    chance: float

    @property
    def isotropic(self) -> bool:
        """Whether nothing speaks for a preferred orientation: the ratio is high, or no lower than chance makes it."""
        return self.ratio >= min(ANISOTROPY_LIMIT, self.chance)

    @property
    def worst_axis(self) -> tuple[float, float, float]:
        """Axis of the smallest area, xyz."""
        x, y, z = (float(v) for v in self.axes[int(self.areas.argmin())])
        return x, y, z


def half_sphere_points(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Nearly even axes: the upper half of a Fibonacci lattice, float32, shape (count, 3), xyz."""
    return sphere_points(2 * count, device)[:count]


def conical_fsc(
    a: Tensor,
    b: Tensor,
    *,
    n_axes: int = 256,
    half_angle: float = 20.0,
    threshold: float = 0.143,
    filled: float = 1.0,
) -> ConicalFsc:
    """Correlate two transforms within double cones.

    Parameters
    ----------
    a, b : Tensor, complex, shape (n, n, n // 2 + 1)
        Half spectra of cubes with the same origin.
    n_axes : int
    half_angle : float
        Of the cones, degrees.
    threshold : float
        Correlation at which a direction's signal ends.
    filled : float
        Share of the box that the maps fill, such as the mean of their mask: samples closer than the mask allows
        are not independent, which the chance level takes into account.

    Returns
    -------
    ConicalFsc

    Notes
    -----
    Cones as in Tan et al. 2017; weighted areas and their ratio (cFAR) as cryoSPARC defines them. In shells so
    small that fewer than eight independent values fall into a cone, the curve takes the value of the whole shell.
    Where a direction ends is read from the correlation of three neighbouring shells together, lest the scatter of
    so few samples ends it.
    """
    n = a.shape[0]
    top = n // 2
    axes = half_sphere_points(n_axes, a.device)
    index = shells(n, 3, a.device)
    keep = (index <= top) & (index > 0)
    flat, order = torch.sort(index[keep], stable=True)
    fz, fy, fx = (f.expand(index.shape)[keep][order] for f in frequencies((n, n, n), a.device))
    directions = torch.stack((fx, fy, fz), dim=1)
    directions /= directions.norm(dim=1, keepdim=True)
    weight = hermitian_weights(n, a.device).expand(index.shape)[keep][order]
    va, vb = a[keep][order], b[keep][order]
    values = torch.stack(
        ((va * vb.conj()).real, va.abs().square(), vb.abs().square(), torch.ones_like(weight)), dim=1
    ).to(torch.float32)
    values *= weight[:, None]
    bounds = torch.searchsorted(flat, torch.arange(1, top + 2, device=flat.device)).tolist()
    limit = math.cos(math.radians(half_angle))
    sums = torch.zeros((n_axes, top + 1, 4), dtype=torch.float64, device=a.device)
    whole = torch.zeros((top + 1, 4), dtype=torch.float64, device=a.device)
    step = max(1, _HELD // n_axes)
    for shell in range(1, top + 1):
        for first in range(bounds[shell - 1], bounds[shell], step):
            rows = slice(first, min(first + step, bounds[shell]))
            inside = ((directions[rows] @ axes.T).abs_() >= limit).to(torch.float32)
            sums[:, shell] += (inside.T @ values[rows]).to(torch.float64)
            whole[shell] += values[rows].to(torch.float64).sum(dim=0)
    few = filled * sums[..., 3] < _FEWEST
    curves = torch.where(few, _correlation(whole)[None], _correlation(sums))
    curves[:, 0] = 1.0
    joined = sums.clone()
    joined[:, 1:] += sums[:, :-1]
    joined[:, :-1] += sums[:, 1:]
    smooth = torch.where(few, curves, _correlation(joined))
    areas, ends = _areas(curves, smooth, threshold)
    largest = float(areas.max())
    chance = _chance(_correlation(whole), sums[..., 3].mean(dim=0) * filled, few.all(dim=0), threshold)
    return ConicalFsc(axes, curves, areas, ends, float(areas.min()) / largest if largest > 0 else 0.0, chance)


def _areas(curves: Tensor, smooth: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Weighted area under each curve, and the shell at which it ends."""
    ends = torch.tensor([crossing(c, threshold) for c in smooth.cpu()], dtype=torch.float64, device=curves.device)
    number = torch.arange(curves.shape[-1], dtype=torch.float64, device=curves.device)
    counted = number < ends[:, None].ceil()
    return (curves.clamp(min=0.0) * number.square() * counted).sum(dim=1), ends


def _chance(curve: Tensor, samples: Tensor, few: Tensor, threshold: float) -> float:
    """Ratio of the areas that scatter alone falls below once in twenty times.

    Parameters
    ----------
    curve : Tensor, shape (shells,)
        FSC of whole shells.
    samples : Tensor, shape (shells,)
        Independent values of a cone: a sample and its Friedel mate hold two, the real and the imaginary part.
    few : Tensor of bool, shape (shells,)
        Shells in which cones take the value of the shell.
    """
    generator = torch.Generator().manual_seed(0)
    c, free = curve.cpu().clamp(-0.999, 0.999), (samples.cpu() - 1.5).clamp(min=1.0)
    noise = torch.randn((_DRAWS * _SEPARATE, c.numel()), generator=generator, dtype=torch.float64)
    noise = torch.where(few.cpu(), 0.0, noise)
    # Fisher's transform makes the scatter of a correlation normal.
    curves = torch.tanh(torch.atanh(c) + noise / free.sqrt())
    joined = torch.nn.functional.avg_pool1d(curves[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    areas = _areas(curves, torch.where(few.cpu(), curves, joined), threshold)[0].reshape(_DRAWS, _SEPARATE)
    ratios = areas.amin(dim=1) / areas.amax(dim=1).clamp(min=1e-12)
    return float(torch.quantile(ratios, 0.05))


def _correlation(sums: Tensor) -> Tensor:
    power = (sums[..., 1] * sums[..., 2]).sqrt()
    return torch.where(power > 0, sums[..., 0] / power.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
