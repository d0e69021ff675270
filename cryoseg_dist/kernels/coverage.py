"""How evenly views cover the sphere, and what that does to Fourier space."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Share of its even sampling below which a direction counts as empty.
_EMPTY = 0.1
# Sampling factor below which views are called uneven (Baldwin & Lyumkin 2021).
UNEVEN = 0.81
# Sampling of the poorest direction from which on views are called good without reserve.
_WELL = 0.5
# Share of empty directions above which views are called incomplete.
INCOMPLETE = 0.005
# Grid on which the point spread function is measured, and the half width in Fourier pixels of its envelope.
_PSF_SIZE, _PSF_WIDTH = 48, 4.0

Kind = Literal["even", "preferred", "cone", "wedge", "gaps"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Evenness of a set of views.

    Attributes
    ----------
    sampling_factor : float
        Harmonic mean over directions of the sampling of Fourier space relative to an even one; 1 is even, 0 leaves
        directions without any data (Baldwin & Lyumkin 2020).
    empty_fraction : float
        Share of directions in Fourier space with less than a tenth of their even share.
    worst_sampling : float
        Sampling of the poorest direction relative to an even one.
    efficiency : float
        One less twice the relative deviation of the point spread function's width over all directions (Naydenova &
        Russo 2017): 1 for even views, about 0 for a single one.
    empty_axis : tuple of float
        Main axis (xyz) of the empty directions; zero where there are none.
    empty_half_angle : float
        Degrees: of the cone about ``empty_axis`` that is empty, or of the wedge; 0 where there is none.
    empty_shape : {"none", "cone", "wedge", "scattered"}
        What the empty directions form.
    elongation : float
        How much longer than wide a point becomes along the axis that is seen least, by the directions that are seen
        at all (Radermacher 1988); 1 where all are.
    peak_axis : tuple of float
        View axis (xyz) about which most particles lie.
    peak_share : float
        Share of the particles whose views lie within 15 degrees of it, relative to even views.
    """

    sampling_factor: float
    empty_fraction: float
    worst_sampling: float
    efficiency: float = math.nan
    empty_axis: tuple[float, float, float] = (0.0, 0.0, 0.0)
    empty_half_angle: float = 0.0
    empty_shape: Literal["none", "cone", "wedge", "scattered"] = "none"
    elongation: float = 1.0
    peak_axis: tuple[float, float, float] = (0.0, 0.0, 0.0)
    peak_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the figures of a coverage mean.

    Attributes
    ----------
    kind : {"even", "preferred", "cone", "wedge", "gaps"}
    words : str
        One or two plain sentences.
    """

    kind: Kind
    words: str

    @property
    def even(self) -> bool:
        """Whether nothing is wrong."""
        return self.kind == "even"


def sphere_points(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Nearly even unit vectors on the sphere (Fibonacci lattice), float32, shape (count, 3), xyz."""
    i = torch.arange(count, dtype=torch.float64, device=device)
    z = 1.0 - (2.0 * i + 1.0) / count
    longitude = i * math.pi * (3.0 - math.sqrt(5.0))
    r = torch.sqrt(1.0 - z * z)
    return torch.stack([r * torch.cos(longitude), r * torch.sin(longitude), z], dim=1).to(torch.float32)


def relative_sampling(views: Tensor, directions: Tensor, half_width: float = 0.05, chunk: int = 20_000) -> Tensor:
    """Sampling of Fourier-space directions by central slices, relative to even views.

    A view fills the slice perpendicular to it, so a direction of Fourier space is sampled by the views that lie
    within ``half_width`` of its great circle.

    Parameters
    ----------
    views : Tensor, shape (n, 3)
        Unit view axes, xyz, symmetry-related copies included.
    directions : Tensor, shape (d, 3)
    half_width : float
        Sine of the angle that still counts as on the circle.
    chunk : int
        Views handled at a time.

    Returns
    -------
    Tensor, float64, shape (d,)
    """
    hits = torch.zeros(len(directions), dtype=torch.float64, device=views.device)
    for part in torch.split(views, chunk):
        hits += ((directions @ part.T).abs() < half_width).sum(dim=1)
    # Evenly spread views fall within the band with probability ``half_width``.
    return hits / max(1.0, half_width * views.shape[0])


def empty_cells(views: Tensor, shell: float, n_directions: int = 2000) -> float:
    """Share of the cells of a shell of Fourier space that no slice passes through.

    Parameters
    ----------
    views : Tensor, shape (n, 3)
        Unit view axes, xyz, symmetry-related copies included.
    shell : float
        Radius in Fourier pixels; a cell is one pixel thick.
    n_directions : int
        Cells tested, spread evenly over the shell.
    """
    directions = sphere_points(n_directions, views.device).to(views.dtype)
    sampled = relative_sampling(views, directions, min(1.0, 0.5 / max(shell, 0.5))) > 0
    return 1.0 - float(sampled.to(torch.float64).mean())


def view_coverage(views: Tensor, n_directions: int = 500, half_width: float = 0.05, chunk: int = 20_000) -> Coverage:
    """Sampling of Fourier space by central slices.

    Parameters
    ----------
    views : Tensor, shape (n, 3)
        Unit view axes, xyz, symmetry-related copies included.
    n_directions : int
        Directions tested.
    half_width, chunk
        As in :func:`relative_sampling`.
    """
    directions = sphere_points(n_directions, views.device).to(views.dtype)
    sampling = relative_sampling(views, directions, half_width, chunk)
    floor = 1.0 / max(1.0, half_width * views.shape[0])
    empty = directions[sampling < _EMPTY]
    shape, axis, half_angle = _empty_region(empty, directions[sampling >= _EMPTY], half_width)
    peak, share = _peak(views, directions, chunk)
    return Coverage(
        sampling_factor=float(1.0 / (1.0 / sampling.clamp(min=0.5 * floor)).mean()),
        empty_fraction=len(empty) / n_directions,
        worst_sampling=float(sampling.min()),
        efficiency=point_spread_efficiency(directions, sampling),
        empty_axis=axis,
        empty_half_angle=half_angle,
        empty_shape=shape,
        elongation=elongation(directions[sampling >= _EMPTY]),
        peak_axis=peak,
        peak_share=share,
    )


def elongation(seen: Tensor) -> float:
    """How much longer than wide a point becomes when only some directions of Fourier space are seen.

    Parameters
    ----------
    seen : Tensor, shape (d, 3)
        Unit directions that are, evenly spread where they are.

    Returns
    -------
    float
        Root of the ratio of the largest to the smallest mean square component: the curvatures of the point spread function
        at its peak, which for a missing cone or wedge are Radermacher's (1988) elongation factors. Infinite for a plane.
    """
    if not len(seen):
        return 1.0
    d = seen.to(torch.float64)
    values = torch.linalg.eigvalsh(d.T @ d / len(d))
    return float((values[2] / values[0].clamp(min=1e-12)).sqrt())


def _vector(values: Tensor) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _peak(views: Tensor, directions: Tensor, chunk: int) -> tuple[tuple[float, float, float], float]:
    """Axis about which views crowd, and how many times the even share lies within 15 degrees of it."""
    limit = math.cos(math.radians(15.0))
    near = torch.zeros(len(directions), dtype=torch.float64, device=views.device)
    for part in torch.split(views, chunk):
        near += ((directions @ part.T).abs() >= limit).sum(dim=1)
    best = int(near.argmax())
    axis = directions[best] * (1.0 if directions[best, 2] >= 0 else -1.0)
    return _vector(axis), float(near[best]) / max(1, len(views)) / (1.0 - limit)


def _empty_region(
    empty: Tensor, seen: Tensor, half_width: float
) -> tuple[Literal["none", "cone", "wedge", "scattered"], tuple[float, float, float], float]:
    """What empty directions form, its axis, and its half angle in degrees.

    A cone of half angle ``a`` holds the share ``1 - cos a`` of all directions, a wedge ``2 a / pi``. The width of the
    band that counts as sampling a direction hides the rim: all of it where views end abruptly, as at a wedge, about
    half where they thin out, as at a cone. That is given back.
    """
    fraction = len(empty) / (len(empty) + len(seen))
    if fraction <= INCOMPLETE:
        return "none", (0.0, 0.0, 0.0), 0.0
    e = empty.to(torch.float64)
    # The axis crosses all of a cone; a wedge is flat, perpendicular to the axis of least extent.
    _, vectors = torch.linalg.eigh(e.T @ e / len(e))
    rim = math.degrees(math.asin(half_width))
    angle = math.degrees(math.acos(max(0.0, 1.0 - fraction)))
    axis = vectors[:, 2]
    inside = (e @ axis).abs() >= math.cos(math.radians(min(90.0, angle + 4.0)))
    invading = (seen.to(torch.float64) @ axis).abs() >= math.cos(math.radians(max(0.0, angle - 4.0)))
    if float(inside.to(torch.float64).mean()) > 0.95 and float(invading.to(torch.float64).mean()) < 0.1:
        upward = axis * (1.0 if axis[2] >= 0 else -1.0)
        return "cone", _vector(upward), min(90.0, angle + 0.5 * rim)
    wedge = 90.0 * fraction
    hinge, middle = _hinge(e, vectors[:, 0], vectors)

    def elevation(points: Tensor) -> Tensor:
        """Degrees over the wedge's middle plane, about its hinge."""
        p = points.to(torch.float64)
        return torch.rad2deg(torch.atan2((p @ vectors[:, 0]).abs(), (p @ middle).abs()))

    inside, invading = elevation(empty) <= wedge + 4.0, elevation(seen) < wedge - 4.0
    reaches = float((e @ hinge).abs().max()) > 0.85
    if reaches and float(inside.to(torch.float64).mean()) > 0.85 and float(invading.to(torch.float64).mean()) < 0.1:
        upward = middle * (1.0 if middle[2] >= 0 else -1.0)
        return "wedge", _vector(upward), min(90.0, wedge + rim)
    return "scattered", _vector(axis), 0.0


def _hinge(empty: Tensor, flat: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Axis that a wedge hangs on, and its middle: of the two axes of the plane, the one towards which it is thinner."""
    one, other = vectors[:, 1], vectors[:, 2]
    width = []
    for axis in (one, other):
        near = (empty @ axis).abs() > 0.8
        width.append(float((empty[near] @ flat).abs().mean()) if bool(near.any()) else 0.0)
    return (one, other) if width[0] <= width[1] else (other, one)


def point_spread_efficiency(directions: Tensor, sampling: Tensor) -> float:
    """Evenness of the point spread function that views leave.

    Parameters
    ----------
    directions : Tensor, shape (d, 3)
        Spread evenly over the sphere.
    sampling : Tensor, shape (d,)
        Of each, relative to even views.

    Returns
    -------
    float
        ``1 - 2 s / m``, with mean ``m`` and standard deviation ``s`` over directions of the radius at which the point
        spread function has fallen to half (Naydenova & Russo 2017). Fourier space is weighted by its sampling
        under a Gaussian envelope, so that the figure is that of the views alone.
    """
    n = _PSF_SIZE
    f = torch.fft.fftfreq(n, dtype=torch.float64) * n
    z, y, x = torch.meshgrid(f, f, f[: n // 2 + 1].abs(), indexing="ij")
    r2 = x * x + y * y + z * z
    inside = (r2 > 0) & (r2 <= (n / 2) ** 2)
    points = torch.stack((x, y, z), dim=-1)[inside]
    points = (points / points.norm(dim=1, keepdim=True)).to(torch.float32)
    near = torch.empty(len(points), dtype=torch.int64)
    lattice = directions.to("cpu", torch.float32)
    for first in range(0, len(points), 20_000):
        rows = slice(first, first + 20_000)
        near[rows] = (points[rows] @ lattice.T).argmax(dim=1)
    transfer = torch.zeros(r2.shape, dtype=torch.float64)
    envelope = torch.exp(-math.log(2.0) * r2 / _PSF_WIDTH**2)
    transfer[inside] = sampling.cpu().to(torch.float64)[near]
    transfer[0, 0, 0] = sampling.cpu().to(torch.float64).mean()
    spread = torch.fft.fftshift(torch.fft.irfftn(transfer * envelope, s=(n, n, n)))
    return _evenness(spread, lattice)


def _evenness(spread: Tensor, directions: Tensor) -> float:
    """One less twice the relative deviation of the radius of half height, from the grid's middle."""
    n = spread.shape[0]
    radii = torch.arange(0.0, n / 2 - 1, 0.25, dtype=torch.float64)
    points = directions.to(torch.float64)[:, None] * radii[None, :, None]
    grid = (points / (n / 2) + 1.0 / n).to(torch.float64)[None, None]
    # grid_sample counts from -1 to 1 over the outer edges of the samples, x first.
    line = torch.nn.functional.grid_sample(spread[None, None], grid, align_corners=False)[0, 0, 0]
    half = 0.5 * line[:, :1]
    below = line < half
    first = torch.where(below.any(dim=1), below.to(torch.int8).argmax(dim=1), len(radii) - 1).clamp(min=1)
    row = torch.arange(len(line))
    high, low = line[row, first - 1], line[row, first]
    part = ((high - half[:, 0]) / (high - low).clamp(min=1e-12)).clamp(0.0, 1.0)
    reach = radii[first - 1] + 0.25 * part
    return 1.0 - 2.0 * float(reach.std(correction=0) / reach.mean())


def place_of(axis: tuple[float, float, float]) -> str:
    """An axis in words: its tilt from z and the rot that turns x towards it."""
    x, y, z = axis
    tilt = math.degrees(math.acos(max(-1.0, min(1.0, abs(z)))))
    rot = math.degrees(math.atan2(y, x) if z >= 0 else math.atan2(-y, -x))
    return "the z axis" if tilt < 5.0 else f"the axis at rot {rot:.0f}°, tilt {tilt:.0f}°"


def _times(ratio: float) -> str:
    return f"about {ratio:.1f} times" if ratio < 10.0 else "more than ten times"


def coverage_verdict(coverage: Coverage) -> Verdict:
    """What the views are worth, in plain words with the figures.

    A missing cone or wedge is named with its half angle, gaps of no such form with their share; complete but uneven
    views are a preferred orientation.
    """
    figures = (
        f"the sampling factor is {coverage.sampling_factor:.2f} and the efficiency {coverage.efficiency:.2f} (1 is even), "
        f"the poorest direction has {100 * coverage.worst_sampling:.0f} % of its even share"
    )
    share = f"{100 * coverage.empty_fraction:.0f} %"
    if coverage.empty_fraction > INCOMPLETE:
        if coverage.empty_shape in ("cone", "wedge"):
            kind: Kind = "cone" if coverage.empty_shape == "cone" else "wedge"
            return Verdict(
                kind,
                f"A missing {kind} of half angle {coverage.empty_half_angle:.0f}° about {place_of(coverage.empty_axis)}: "
                f"{share} of the directions of Fourier space are hardly seen at all; {figures}. "
                f"The map is elongated along that axis, {_times(coverage.elongation)}; "
                "tilting the stage or other grids help.",
            )
        return Verdict(
            "gaps",
            f"Parts of Fourier space are hardly seen at all ({share} of directions, in no one place): {figures}. "
            "The map is smeared along the missing directions; tilting the stage or other grids help.",
        )
    if coverage.sampling_factor < UNEVEN:
        return Verdict(
            "preferred",
            f"Preferred orientation: {coverage.peak_share:.1f} times the even share of particles is seen along "
            f"{place_of(coverage.peak_axis)}; {figures}. "
            "Some directions of the map are resolved worse than its resolution says.",
        )
    how = "well" if coverage.worst_sampling >= _WELL else "well enough, if not evenly"
    return Verdict("even", f"Views cover all directions {how}: {figures}.")
