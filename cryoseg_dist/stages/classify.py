"""2D classification: the expectation step over batches of particles.

Maximum likelihood over class, in-plane angle and shift with the CTF on the side of the images: a coarse search by matrix
products, a finer one around the best poses, and soft insertion into the class averages.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.matching import Observations, observe, search, shift_phases
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.planes import empty_planes, insert_planes, prepare_planes, sample_planes
from cryoseg_dist.kernels.slices import disc_pixels, take_pixels
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.schema.work import Read, Unit, UnitResult
from cryoseg_dist.stages.refine_expectation import batch_images, shift_grid

# Class, psi (degrees), origin x, y (px), weight, log-likelihood.
ASSIGNMENT_COLUMNS = 6
PADDING = 2
# Images matched at once, and references a matrix product: they bound the memory of a unit.
BATCH, CHUNK = 32, 1024
# Share of an iteration's resolution that the first pass uses.
COARSE = 0.7


class ClassifySettings(Settings):
    """2D classification and the choice of good classes."""

    enabled: bool = True
    """Classify, and go on with the particles of good classes."""
    n_classes: int | None = Field(default=None, ge=1, le=500)
    """Number of classes; one for 60 particles, but 6 to 50, when not given."""
    iterations: int = Field(default=25, ge=1)
    """Rounds of matching and averaging."""
    batch: int = Field(default=2000, ge=50)
    """Particles of the first iteration; all from the middle on."""
    first_resolution: float = Field(default=40.0, gt=0)
    """Resolution in A of the first iteration."""
    last_resolution: float = Field(default=10.0, gt=0)
    """Resolution in A of the last iterations."""
    angular_step: float = Field(default=10.0, gt=0, le=30)
    """Largest step in degrees of the coarse in-plane search; finer where the resolution needs it."""
    offset_range: float | None = Field(default=None, gt=0)
    """Largest shift in A; a tenth of the diameter when not given."""
    tau_fudge: float = Field(default=2.0, gt=0)
    """Factor on the signal-to-noise ratio in the averages' filter."""
    poses_kept: int = Field(default=8, ge=1, le=64)
    """Poses of each particle that enter the averages."""
    unit_size: int = Field(default=256, ge=32)
    """Particles a unit of work."""
    min_share: float = Field(default=0.1, ge=0)
    """Smallest good class, as a share of the mean class size."""
    max_relative_resolution: float = Field(default=2.0, ge=1)
    """Worst resolution of a good class over that of the best."""
    min_contrast: float = Field(default=5.0, ge=0)
    """Least power of what is bright inside the particle's disc of a good average over that around it."""
    max_rejected: float = Field(default=0.5, ge=0, le=1)
    """Largest share of particles that may be thrown away."""
    keep: list[int] | None = None
    """Numbers of the classes to keep, from 1, instead of the automatic choice."""
    seed: int = 0
    """Seed of the first averages and of the batches."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one iteration samples poses.

    Attributes
    ----------
    angular_step : float
        Degrees, of the first pass; the second is twice as fine.
    shift_range_px, shift_step_px : float
        Of the first pass; the second is twice as fine.
    max_shell, coarse_shell : float
        Fourier pixels used in the second pass and in the first.
    """

    angular_step: float
    shift_range_px: float
    shift_step_px: float
    max_shell: float
    coarse_shell: float


def default_classes(n_particles: int) -> int:
    """One class for 60 particles, 6 to 50."""
    return int(min(50, max(6, n_particles // 60)))


def progress(iteration: int, settings: ClassifySettings) -> float:
    """How far the annealing is: 0 in the first iteration, 1 from 60 % on."""
    return min(1.0, iteration / max(1.0, 0.6 * (settings.iterations - 1)))


def batch_rows(iteration: int, n_particles: int, settings: ClassifySettings) -> np.ndarray:
    """Particles of an iteration, ascending; all of them once the annealing is done."""
    first = min(n_particles, settings.batch)
    n = round(first + (n_particles - first) * progress(iteration, settings))
    rng = np.random.default_rng([settings.seed, iteration])
    return np.sort(rng.choice(n_particles, n, replace=False))


def sampling(iteration: int, size: int, pixel_size: float, diameter: float, settings: ClassifySettings) -> Sampling:
    """Sampling of an iteration: as fine as its resolution needs."""
    first, last = (size * pixel_size / r for r in (settings.first_resolution, settings.last_resolution))
    shell = first + (last - first) * progress(iteration, settings)
    shell = min(max(shell, 4.0), (size - 1) // 2)
    coarse = max(min(shell, 4.0), COARSE * shell)
    needed = math.degrees(2.0 * size * pixel_size / coarse / diameter)
    n_angles = math.ceil(360.0 / min(settings.angular_step, needed))
    range_px = (settings.offset_range or 0.1 * diameter) / pixel_size
    return Sampling(360.0 / n_angles, range_px, min(max(1.0, 0.4 * size / coarse), range_px), shell, coarse)


def random_assignment(n: int, n_classes: int, settings: ClassifySettings) -> np.ndarray:
    """Equal random classes without rotation or shift, (n, 6), for the first averages."""
    rng = np.random.default_rng(settings.seed)
    out = np.zeros((n, ASSIGNMENT_COLUMNS), dtype=np.float32)
    out[:, 0] = rng.permutation(n) % n_classes
    out[:, 4] = 1.0
    return out


@dataclass(frozen=True)
class ClassifyStage:
    """Classes and in-plane poses of particles, and their sums, given class averages.

    Attributes
    ----------
    optics : Optics or tuple of Optics
        Of the particle images: one, or those of the optics groups.
    diameter : float
        A; images are masked softly beyond it where poses are sought.
    sampling : Sampling
    noise : ndarray, float32, shape (size // 2 + 1,)
        Noise variance of one component, by shell.
    poses_kept : int
    averages : Read
        Real-space averages (K, y, x).
    """

    optics: Optics | tuple[Optics, ...]
    diameter: float
    sampling: Sampling
    noise: np.ndarray
    poses_kept: int
    averages: Read

    @property
    def name(self) -> str:
        """Stage name."""
        return "classify"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """The averages."""
        return {"averages": self.averages}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> "_State":
        """Transform the averages and rotate them over the coarse grid."""
        averages = torch.from_numpy(shared["averages"].astype(np.float32))
        n_classes, size = averages.shape[0], averages.shape[-1]
        planes = prepare_planes(averages, PADDING)
        ky, kx = disc_pixels(size, size / 2)
        square = ky * ky + kx * kx
        near, coarse = (
            int((square <= shell * shell).sum()) for shell in (self.sampling.max_shell, self.sampling.coarse_shell)
        )
        angles = torch.arange(round(360.0 / self.sampling.angular_step)) * self.sampling.angular_step
        which = torch.arange(n_classes).repeat_interleave(len(angles))
        psi = angles.repeat(n_classes)
        references = sample_planes(planes, which, psi, ky[:coarse], kx[:coarse], PADDING)
        shell = torch.round((ky * ky + kx * kx).float().sqrt()).long().clamp(max=size // 2)
        chunks = [c.to(device) for c in references.split(CHUNK)]
        microscope = Microscope(self.optics, size, ky, kx)
        return _State(size, n_classes, planes, microscope, ky, kx, near, coarse, shell, which, psi, chunks, device)

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Match one batch of particles and sum it up.

        Unit parameters: ``ctf`` (n, 4, 5 or 7), the columns of :class:`~cryoseg_dist.kernels.microscope.Microscope`; optionally ``rows``, the images to
        take of those read, and ``fixed`` (n, 6), an assignment to sum up without matching. Writes ``partials``
        (1, K, m, m // 2 + 1, 3) and ``assignment`` (1, unit size, 6).
        The record holds sums for the noise spectrum.
        """
        images = torch.from_numpy(batch_images(unit.parameters, inputs["images"]).astype(np.float32))
        transfer = torch.from_numpy(np.asarray(unit.parameters["ctf"], dtype=np.float32))
        fixed = unit.parameters.get("fixed")
        total = empty_planes(state.n_classes, state.size, PADDING)
        out = np.zeros((len(images), ASSIGNMENT_COLUMNS), dtype=np.float32)
        noise = torch.zeros(state.size // 2 + 1, dtype=torch.float64)
        for first in range(0, len(images), BATCH):
            rows = slice(first, first + BATCH)
            given = None if fixed is None else torch.from_numpy(np.asarray(fixed[rows], dtype=np.float32))
            out[rows] = self._batch(images[rows], transfer[rows], given, state, total, noise).numpy()
        assignment = np.zeros(unit.writes["assignment"].shape, dtype=np.float32)
        assignment[0, : len(out)] = out
        count = 2 * len(images) * torch.bincount(state.shell, minlength=state.size // 2 + 1)
        record = {
            "noise": noise.tolist(),
            "count": count.tolist(),
            "n": len(images),
            "max_probability": float(out[:, 4].sum()),
            "log_likelihood": float(out[:, 5].sum()),
        }
        return UnitResult({"partials": total.numpy()[None], "assignment": assignment}, record)

    def _batch(
        self, images: Tensor, transfer: Tensor, fixed: Tensor | None, state: "_State", total: Tensor, noise: Tensor
    ) -> Tensor:
        size, microscope = state.size, state.microscope
        c = microscope.ctf(transfer)
        variance = torch.from_numpy(self.noise)[state.shell]

        def spectra(images: Tensor) -> Tensor:
            return microscope.in_phase(take_pixels(to_fourier(images), state.ky, state.kx), transfer)

        whole = spectra(images)
        if fixed is None:
            pixel_size = microscope.groups[0].pixel_size
            mask = soft_sphere(size, min(0.5 * self.diameter / pixel_size, 0.5 * size - 3), 3.0, 2)
            n = state.near
            poses = self._poses(observe(spectra(images * mask)[:, :n], c[:, :n], variance[:n]), state)
        else:
            poses = fixed[:, None]
        weighted = observe(whole, c, variance)
        b, k = poses.shape[:2]
        flat = poses.flatten(0, 1)
        which = flat[:, 0].long()
        of = torch.arange(b).repeat_interleave(k)
        insert_planes(
            total,
            weighted.data,
            weighted.weight,
            of,
            which,
            flat[:, 1],
            flat[:, 2:4],
            flat[:, 4],
            state.ky,
            state.kx,
            size=size,
            padding=PADDING,
        )
        best = poses[:, 0]
        power = whole.abs().square()
        if fixed is None:
            n = state.near
            signal = c[:, :n] * sample_planes(
                state.planes, best[:, 0].long(), best[:, 1], state.ky[:n], state.kx[:n], PADDING
            )
            moved = whole[:, :n] * shift_phases(best[:, 2:4], state.ky[:n], state.kx[:n], size)
            power[:, :n] = (moved - signal).abs().square()
        noise.index_add_(0, state.shell, power.sum(dim=0).double())
        return best

    def _poses(self, observations: Observations, state: "_State") -> Tensor:
        """Poses (b, k, 6) of the batch, the most likely first; their weights sum to one."""
        s, n, k = self.sampling, state.near, self.poses_kept
        ky, kx = state.ky[:n], state.kx[:n]
        shifts = shift_grid(s.shift_range_px, s.shift_step_px)
        phases = shift_phases(shifts, ky, kx, state.size)
        low = observations.within(state.coarse)
        low = Observations(low.data.to(state.device), low.weight.to(state.device))
        found = search(low, phases[:, : state.coarse].to(state.device), state.references, k)
        b, k = found.score.shape
        rotation, shift = found.rotation.cpu(), found.shift.cpu()
        # Each of the best poses is split in two angles and four shifts.
        psi = state.psi[rotation][..., None] + 0.25 * s.angular_step * torch.tensor([-1.0, 1.0])
        sub = 0.25 * s.shift_step_px * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
        moved = shifts[shift][..., None, :] + sub
        which = state.which[rotation]
        references = sample_planes(
            state.planes, which.flatten().repeat_interleave(2), psi.flatten(), ky, kx, PADDING
        ).reshape(b, k, 2, n)
        energy = torch.einsum("bp,bkrp->bkr", observations.weight, references.abs().square())
        around = shift_phases(sub, ky, kx, state.size)
        data = (observations.data[:, None] * phases[shift])[:, :, None] * around
        cross = torch.view_as_real(data).flatten(3) @ torch.view_as_real(references).flatten(3).transpose(2, 3)
        score = (cross - 0.5 * energy[:, :, None]).flatten(1)
        top = score.topk(min(self.poses_kept, score.shape[1]), dim=1)
        parent, rest = top.indices // 8, top.indices % 8
        row = torch.arange(b)[:, None]
        weight = torch.exp(top.values - torch.logsumexp(score, dim=1, keepdim=True))
        origin = moved[row, parent, rest // 2]
        return torch.stack(
            (
                which[row, parent].float(),
                psi[row, parent, rest % 2],
                origin[..., 0],
                origin[..., 1],
                weight / weight.sum(dim=1, keepdim=True),
                top.values,
            ),
            dim=-1,
        )


@dataclass(frozen=True)
class _State:
    """What a worker keeps in one iteration; pixels lie in the order of their radius."""

    size: int
    n_classes: int
    planes: Tensor
    microscope: Microscope
    ky: Tensor
    kx: Tensor
    near: int
    coarse: int
    shell: Tensor
    which: Tensor
    psi: Tensor
    references: list[Tensor]
    device: str
