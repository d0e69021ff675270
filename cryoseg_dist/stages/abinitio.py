"""A first map by stochastic expectation-maximisation, for any point group.

Online EM: each iteration matches a random batch at low resolution against the current map, and the sums of past batches
fade. The resolution grows with the iterations. It starts from the particles themselves in random orientations, several
times over: without symmetry most starts end in a wrong map, whose likelihood is lower. All starts see the same batches,
and the less likely half is given up again and again until one remains.

Particles of the cubic groups are nearly balls: at low resolution nothing tells their orientations apart, and a map that has become a
ball with noise on it stays one, at whatever resolution. They start at the resolution where the group shows, and in small batches,
whose chance differences let one start or another find the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.orientation_grid import angular_step, rim_displacement
from cryoseg_dist.kernels.sharpen import low_pass_shell
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.symmetry import is_cubic, operators
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.stages.reconstruct import relative_regularisation
from cryoseg_dist.stages.refine_expectation import Sampling

# Starts without symmetry and of cubic groups, and of cyclic and dihedral groups: some end in a wrong map whatever the group.
STARTS, FEWER_STARTS = 8, 4
# Resolutions in A of the first and the last iteration, and particles of the first batch.
FIRST, LAST, BATCH = 35.0, 15.0, 300
# The same for cubic groups, resolutions in units of what a step of the finer grid moves at the particle's rim.
CUBIC_FIRST, CUBIC_LAST, CUBIC_BATCH = 1.75, 1.0, 100
# Shares of the iterations after which half of the starts are given up: late, for likelihoods tell right from wrong at 22 A, not at 30.
HALVINGS = (0.3, 0.45, 0.6)
# Iterations that likelihoods are averaged over, and the gain between two such spans that is worth going on for.
SPAN, GAIN = 5, 0.01


class AbinitioSettings(Settings):
    """Stochastic expectation-maximisation from scratch."""

    iterations: int = Field(default=40, ge=2)
    """Batches matched; up to as many again while the likelihood grows."""
    batch: int | None = Field(default=None, ge=10)
    """Particles a batch in the first iteration, three times as many in the last; when not given 300, or 100 for T, O and I."""
    starts: int | None = Field(default=None, ge=1, le=64)
    """Independent starts, of which the likeliest is taken; when not given eight without symmetry and for T, O and I, else four."""
    first_resolution: float | None = Field(default=None, gt=0)
    """Resolution in A of the first iteration; when not given 35, or for T, O and I 0.115 of the diameter."""
    last_resolution: float | None = Field(default=None, gt=0)
    """Resolution in A of the last iteration; when not given 15, or for T, O and I 0.065 of the diameter."""
    order: int = Field(default=2, ge=0, le=4)
    """HEALPix order of the grid; twice as fine after oversampling."""
    poses_kept: int = Field(default=64, ge=1, le=256)
    """Poses of each particle that enter the map."""
    memory: float = Field(default=0.8, ge=0, lt=1)
    """Share of the past sums kept in an iteration."""
    offset_range: float | None = Field(default=None, gt=0)
    """Largest shift in A; a tenth of the diameter when not given."""
    seed: int = 0
    """Seed of batches and starts."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one iteration uses.

    Attributes
    ----------
    particles : ndarray, int64
        Indices of the batch, ascending.
    max_shell : float
        Fourier pixels.
    memory : float
        Share of the past sums kept.
    """

    particles: np.ndarray
    max_shell: float
    memory: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """What suits a particle where the settings leave it open.

    Attributes
    ----------
    starts : int
    batch : int
        Particles of the first batch.
    first_resolution, last_resolution : float
        A.
    """

    starts: int
    batch: int
    first_resolution: float
    last_resolution: float


def schedule_for(symmetry: str, diameter: float, settings: AbinitioSettings) -> Schedule:
    """Starts, batches and resolutions for a point group and a diameter in A."""
    starts = STARTS if len(operators(symmetry)) == 1 else FEWER_STARTS
    batch, first, last = BATCH, FIRST, LAST
    if is_cubic(symmetry):
        rim = rim_displacement(0.5 * angular_step(settings.order), diameter)
        starts, batch, first, last = STARTS, CUBIC_BATCH, CUBIC_FIRST * rim, CUBIC_LAST * rim
    return Schedule(
        settings.starts or starts,
        settings.batch or batch,
        settings.first_resolution or first,
        settings.last_resolution or last,
    )


def step(
    iteration: int, n_particles: int, size: int, pixel_size: float, schedule: Schedule, settings: AbinitioSettings
) -> Step:
    """The batch and the resolution of an iteration."""
    done = min(1.0, iteration / max(1, settings.iterations - 1))
    n = min(n_particles, round(schedule.batch * (1.0 + 2.0 * done)))
    rng = np.random.default_rng([settings.seed, iteration])
    particles = np.sort(rng.choice(n_particles, n, replace=False))
    first, last = (size * pixel_size / r for r in (schedule.first_resolution, schedule.last_resolution))
    shell = first + (last - first) * min(1.0, max(0.0, (done - 0.2) / 0.6))
    shell = min(max(shell, 4.0), (size - 1) // 2)
    memory = settings.memory if iteration else 0.0
    return Step(particles, shell, memory)


def sampling(step: Step, size: int, pixel_size: float, diameter: float, settings: AbinitioSettings) -> Sampling:
    """A global search at the iteration's resolution, in one pass where a step of the grid is finer than that."""
    range_px = (settings.offset_range or 0.1 * diameter) / pixel_size
    step_px = min(max(1.0, 0.4 * size / step.max_shell), range_px)
    two_passes = size * pixel_size / step.max_shell < rim_displacement(angular_step(settings.order), diameter)
    return Sampling(settings.order, False, range_px, step_px, step.max_shell, step.max_shell, two_passes)


def random_poses(n: int, start: int, settings: AbinitioSettings) -> np.ndarray:
    """Random orientations without shifts, (n, 1, 12), for the first map of a start."""
    generator = torch.Generator().manual_seed(settings.seed * 7919 + start)
    matrices = random_rotations(n, generator).flatten(1).float().numpy()
    return np.concatenate((matrices, np.zeros((n, 2)), np.ones((n, 1))), axis=1)[:, None].astype(np.float32)


def map_of(total: Tensor, size: int, pixel_size: float, diameter: float, max_shell: float, padding: int) -> Tensor:
    """The current map: lightly regularised, positive in sum, low-passed, flattened outside the particle."""
    share = torch.full((size // 2 + 1,), 0.3)
    regularisation = relative_regularisation(total, size, padding, share)
    volume = finish(total, size, padding=padding, regularisation=regularisation)
    smooth = to_real(low_pass_shell(to_fourier(volume, 3), max_shell + 1.0, 2.0), size, 3)
    radius = min(0.5 * diameter / pixel_size, 0.5 * size - 4)
    return smooth * soft_sphere(size, radius, 4.0)


def surviving(iteration: int, likelihoods: Sequence[Sequence[float]], settings: AbinitioSettings) -> list[int]:
    """Places of the starts that go on after so many iterations, in ascending order.

    Parameters
    ----------
    iteration : int
        Iterations done.
    likelihoods : sequence of sequence of float
        Of each start that is still alive, one an iteration.
    """
    n, ends = len(likelihoods), [round(share * settings.iterations) for share in HALVINGS]
    to_come = sum(iteration < end for end in ends)
    # As many as the halvings to come bring down to one.
    halve = iteration in ends and n > 2**to_come
    keep = 1 if to_come == 0 else -(-n // 2) if halve else n
    recent = [float(np.mean(values[-SPAN:])) for values in likelihoods]
    return sorted(sorted(range(n), key=lambda i: (-recent[i], i))[:keep])


def settled(likelihoods: Sequence[float], settings: AbinitioSettings) -> bool:
    """Whether more iterations would bring nothing: the schedule is over and the likelihood no longer grows."""
    n = len(likelihoods)
    if n < settings.iterations:
        return False
    if n >= 2 * settings.iterations or n < 2 * SPAN:
        return True
    now, before = float(np.mean(likelihoods[-SPAN:])), float(np.mean(likelihoods[-2 * SPAN : -SPAN]))
    return now - before < GAIN * abs(before)
