"""Gold-standard refinement: the schedule, the maximisation step and convergence.

One iteration is an expectation (``stages.refine_expectation``, on the workers) followed by an accumulation
(``stages.reconstruct``); this module decides what comes next and makes the references. The half sets meet in the FSC
and below the resolution at which they are joined, nowhere else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import shells, to_fourier, to_real
from cryoseg_dist.kernels.fsc import crossing, fsc_of_maps
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.orientation_grid import angular_step, n_orientations, random_perturbation, rim_displacement
from cryoseg_dist.kernels.sharpen import low_pass_shell
from cryoseg_dist.kernels.symmetry import is_cubic
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.stages.reconstruct import damped_map, relative_regularisation
from cryoseg_dist.stages.refine_expectation import Sampling

# Origins are never known better than this, in pixels, from the others alone.
LEAST_ORIGIN_SD = 1.0
# A map whose angular accuracy falls below this share of the last still improves, wherever its FSC crosses 0.143.
SHARPER = 0.97
# Low pass in A of the first reference, and that of cubic groups in units of what 7.5 degrees move at the particle's rim.
LOW_PASS, CUBIC_LOW_PASS = 40.0, 1.4
# Particles of a unit whose angular accuracy is estimated.
TESTED = 8


class RefineSettings(Settings):
    """Maximum-likelihood refinement."""

    initial_low_pass: float | None = Field(default=None, gt=0)
    """Low pass in A of the first reference; when not given 40, or for T, O and I 0.092 of the diameter. The FSC of the half sets is theirs
    alone at finer resolutions than this."""
    max_iterations: int = Field(default=25, ge=1)
    """Iterations at most."""
    first_order: int = Field(default=2, ge=0, le=5)
    """HEALPix order of the first grid (2: 15 degrees, twice as fine after oversampling)."""
    most_orientations: int = Field(default=40_000, ge=100)
    """Grids of more orientations than this (after symmetry) are searched around each particle's last pose only."""
    last_order: int = Field(default=6, ge=2, le=8)
    """Finest HEALPix order."""
    offset_range: float | None = Field(default=None, gt=0)
    """Largest shift in A in the global search; a seventh of the diameter when not given."""
    offset_sd: float = Field(default=10.0, gt=0)
    """Standard deviation in A of the prior of the origins in the first iteration; measured from then on."""
    poses_kept: int = Field(default=256, ge=1, le=1024)
    """Poses of each particle that enter the map, at most. Where images tell little, leaving likely poses out lets noise align."""
    share: float = Field(default=0.999, gt=0.5, lt=1)
    """Share of the posterior that the finer pass covers, and that enters the map of the poses kept."""
    join_halves: float = Field(default=40.0, gt=0)
    """Resolution in A below which the half sets share one map, so that both keep one orientation and hand."""
    unit_size: int = Field(default=256, ge=1)
    """Particles of a unit of work."""
    micrograph_scales: bool = True
    """Measure the grey scale of each micrograph's particles, for ice and dose differ."""
    seed: int = 0
    """Seed of half sets and grids."""


@dataclass(frozen=True, slots=True)
class RefineState:
    """Where a refinement stands after an iteration.

    Attributes
    ----------
    iteration : int
        0 before the first.
    order : int
        HEALPix order of the next expectation.
    resolution_shell : float
        Where the FSC of the half maps falls below 0.143.
    stalled : int
        Iterations since the map last improved.
    best_shell : float
    square_shift : float
        Mean squared change of the origins in px^2.
    origin_sd : float
        Standard deviation of a component of the origins in px.
    angular_accuracy : float
        How well the last references told orientations apart, in degrees; 0 when not known.
    noise : tuple of tuple of float
        Noise variance by half set and shell.
    scales : tuple of tuple of float
        Grey scale by half set and micrograph; nothing where they are not measured.
    converged : bool
    """

    iteration: int
    order: int
    resolution_shell: float
    stalled: int
    best_shell: float
    square_shift: float
    origin_sd: float
    noise: tuple[tuple[float, ...], ...]
    scales: tuple[tuple[float, ...], ...] = ()
    angular_accuracy: float = 0.0
    converged: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RefineState":
        """From :meth:`to_json`."""
        return cls(**{**values, **{name: tuple(tuple(row) for row in values[name]) for name in ("noise", "scales")}})

    def noise_array(self) -> np.ndarray:
        """Noise variance, float32, shape (2, n_shells)."""
        return np.asarray(self.noise, dtype=np.float32)


def initial_low_pass(symmetry: str, diameter: float, settings: RefineSettings) -> float:
    """Low pass in A of the first reference: where a particle of a cubic group still differs from a ball."""
    cubic = CUBIC_LOW_PASS * rim_displacement(7.5, diameter)
    return settings.initial_low_pass or (min(LOW_PASS, cubic) if is_cubic(symmetry) else LOW_PASS)


def first_state(power: Tensor, size: int, pixel_size: float, low_pass: float, settings: RefineSettings) -> RefineState:
    """The state before the first iteration.

    Parameters
    ----------
    power : Tensor, shape (size // 2 + 1,)
        Mean power of the images by shell, which is nearly all noise.
    low_pass : float
        Of the first reference, A.
    """
    noise = tuple((0.5 * power.clamp(min=1e-8)).tolist())
    shell = size * pixel_size / low_pass
    return RefineState(
        0, settings.first_order, shell, 0, 0.0, math.inf, settings.offset_sd / pixel_size, (noise, noise)
    )


def sampling(
    state: RefineState, size: int, pixel_size: float, diameter: float, symmetry: str, settings: RefineSettings
) -> Sampling:
    """How the next expectation samples poses.

    The first pass uses the frequencies that its angular step can tell apart at the particle's edge, the second those
    to a little beyond the resolution.
    """
    step = angular_step(state.order)
    nyquist = (size - 1) // 2
    margin = 4 + 0.15 * nyquist if state.iteration else 2
    # The best so far: where the FSC is ragged, its first crossing jumps.
    fine = min(nyquist, max(state.resolution_shell, state.best_shell) + margin)
    displacement = rim_displacement(step, diameter)
    coarse = min(fine, max(5.0, 1.2 * size * pixel_size / displacement))
    local = n_orientations(state.order, symmetry) > settings.most_orientations
    range_px = (settings.offset_range or diameter / 7.0) / pixel_size
    if state.iteration and math.isfinite(state.square_shift):
        # Five times the last change, as origins settle.
        range_px = min(range_px, max(2.0, 5.0 * math.sqrt(0.5 * state.square_shift)))
    step_px = min(max(0.5, 0.35 * size / fine), range_px)
    if local:
        range_px = min(range_px, 2.0 * step_px)
    return Sampling(state.order, local, range_px, step_px, fine, coarse, origin_sd_px=state.origin_sd)


def perturbation(state: RefineState, settings: RefineSettings) -> np.ndarray:
    """The grid's rotation in the next expectation, shape (3, 3)."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.iteration)
    return random_perturbation(state.order, generator).numpy()


def noise_spectra(records: Sequence[Mapping[str, Any]], halves: Sequence[int], previous: np.ndarray) -> np.ndarray:
    """Noise variance by half set (or start) and shell from the records of an expectation.

    Shells without pixels keep their previous value.
    """
    out = previous.astype(np.float64).copy()
    for half in range(len(out)):
        some = [r for r, h in zip(records, halves, strict=True) if h == half]
        total = np.sum([r["noise"] for r in some], axis=0)
        count = np.sum([r["count"] for r in some], axis=0)
        out[half] = np.where(count > 0, total / np.maximum(count, 1), out[half])
    return np.maximum(out, 1e-8).astype(np.float32)


@dataclass(frozen=True)
class Maximized:
    """The maps of an iteration.

    Attributes
    ----------
    references : tuple of Tensor
        Regularised, joined at low resolution, flattened outside the particle: what the next expectation sees.
    raw : tuple of Tensor
        Unregularised half maps.
    full : Tensor
        The map of both half sets together.
    curve : Tensor, float64, shape (n // 2 + 1,)
        FSC of the half maps inside a soft sphere.
    """

    references: tuple[Tensor, Tensor]
    raw: tuple[Tensor, Tensor]
    full: Tensor
    curve: Tensor


def particle_sphere(size: int, pixel_size: float, diameter: float) -> Tensor:
    """Soft sphere of the particle's diameter, or the largest that the box holds."""
    return soft_sphere(size, min(0.5 * diameter / pixel_size, 0.5 * size - 4), 4.0)


def masked_fsc(half1: Tensor, half2: Tensor, pixel_size: float, diameter: float) -> Tensor:
    """FSC of two half maps inside the particle's sphere, float64, shape (n // 2 + 1,)."""
    sphere = particle_sphere(half1.shape[-1], pixel_size, diameter)
    return fsc_of_maps(half1 * sphere, half2 * sphere)


def maximize(
    totals: Sequence[Tensor], size: int, pixel_size: float, diameter: float, padding: int, settings: RefineSettings
) -> Maximized:
    """Half maps and next references from the completed accumulators of the two half sets."""
    sphere = particle_sphere(size, pixel_size, diameter)
    raw = [finish(t, size, padding=padding) for t in totals]
    curve = masked_fsc(raw[0], raw[1], pixel_size, diameter)
    c = curve.clamp(0.001, 0.999)
    filtered = [
        to_fourier(
            finish(t, size, padding=padding, regularisation=relative_regularisation(t, size, padding, (1.0 - c) / c)),
            3,
        )
        for t in totals
    ]
    joined = 0.5 * (filtered[0] + filtered[1])
    low = shells(size, 3) <= size * pixel_size / settings.join_halves
    references = [to_real(torch.where(low, joined, f), size, 3) * sphere for f in filtered]
    full = damped_map(totals, curve, size, padding)
    return Maximized((references[0], references[1]), (raw[0], raw[1]), full, curve)


def starting_reference(volume: Tensor, pixel_size: float, diameter: float, low_pass: float) -> Tensor:
    """The first reference: low-passed at so many A, flattened outside the particle."""
    size = volume.shape[-1]
    sphere = particle_sphere(size, pixel_size, diameter)
    return to_real(low_pass_shell(to_fourier(volume, 3), size * pixel_size / low_pass, 2.0), size, 3) * sphere


def next_state(
    state: RefineState,
    curve: Tensor,
    noise: np.ndarray,
    square_shift: float,
    square_origin: float,
    accuracy: float,
    size: int,
    pixel_size: float,
    diameter: float,
    settings: RefineSettings,
) -> RefineState:
    """Decide on the next iteration: finer when resolution and angular accuracy stall, finished when finer brings nothing.

    Poses are fine enough when a step moves the particle's edge by less than a quarter of the resolution, or when it is below three
    quarters of the angular accuracy, as in RELION: finer poses would fit the noise.
    """
    shell = crossing(curve, 0.143)
    improved = shell > state.best_shell + 0.5 or 0 < accuracy < SHARPER * state.angular_accuracy
    stalled = 0 if improved else state.stalled + 1
    order, converged = state.order, False
    step = 0.5 * angular_step(order)
    displacement = rim_displacement(step, diameter)
    fine_enough = (
        displacement < 0.25 * size * pixel_size / shell or step < 0.75 * accuracy or order >= settings.last_order
    )
    if stalled >= 1 and not fine_enough:
        order, stalled = order + 1, 0
    elif stalled >= 2 and fine_enough:
        converged = True
    return replace(
        state,
        iteration=state.iteration + 1,
        order=order,
        resolution_shell=shell,
        stalled=stalled,
        best_shell=max(shell, state.best_shell),
        square_shift=square_shift,
        origin_sd=max(LEAST_ORIGIN_SD, math.sqrt(0.5 * square_origin)),
        noise=tuple(tuple(float(v) for v in row) for row in noise),
        angular_accuracy=accuracy,
        converged=converged or state.iteration + 1 >= settings.max_iterations,
    )


def half_sets(n: int, seed: int) -> np.ndarray:
    """Random half set (0 or 1) of each of ``n`` particles, equal in number to within one."""
    order = np.random.default_rng(seed).permutation(n)
    out = np.zeros(n, dtype=np.int64)
    out[order[n // 2 :]] = 1
    return out
