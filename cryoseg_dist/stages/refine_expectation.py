"""The expectation step of refinement: posterior poses of a batch of particles."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.matching import (
    Best,
    Observations,
    joined,
    observe,
    search,
    shift_phases,
    significant,
)
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.orientation_grid import (
    angular_step,
    neighbours,
    orientation_grid,
    subdivide,
)
from cryoseg_dist.kernels.second_pass import FineSlices, first_distinct, numbered, split_cells
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels, take_pixels
from cryoseg_dist.kernels.staging import Staging
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Read, Unit, UnitResult
from cryoseg_dist.stages.refine_state import CHUNK, State, room_on
from cryoseg_dist.stages.refine_sums import Sums

# Columns of a pose: rotation matrix (9), origin x, y in pixels, weight.
POSE_COLUMNS = 12
CTF_COLUMNS = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")
# Poses of the first pass that the second may refine, and their distinct rotations and shifts.
CANDIDATES, MOST_ROTATIONS, MOST_SHIFTS = 256, 48, 12


def batch_images(parameters: Mapping[str, Any], images: np.ndarray) -> np.ndarray:
    """The images of a batch: those in ``rows`` where the unit read more than it needs."""
    rows = parameters.get("rows")
    return images if rows is None else images[np.asarray(rows)]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How densely poses are sampled in one iteration.

    Attributes
    ----------
    order : int
        HEALPix order of the first pass; the second is twice as fine.
    local : bool
        Search around each particle's last pose only.
    shift_range_px, shift_step_px : float
        Of the first pass, around the last origin; the second is twice as fine.
    max_shell : float
        Fourier pixels used in the second pass.
    coarse_shell : float
        Fourier pixels used in the first pass.
    two_passes : bool
        Without the second pass, poses are those of the grid.
    origin_sd_px : float
        Standard deviation of each component of the origins, whose prior is a Gaussian about zero; flat when infinite.
    """

    order: int
    local: bool
    shift_range_px: float
    shift_step_px: float
    max_shell: float
    coarse_shell: float
    two_passes: bool = True
    origin_sd_px: float = math.inf

    def log_prior(self, origins: Tensor) -> Tensor:
        """Logarithm of the prior of origins (..., 2) in pixels, up to a constant."""
        return -0.5 * origins.square().sum(dim=-1) / self.origin_sd_px**2


@dataclass(frozen=True)
class ExpectationStage:
    """Posterior poses of particles, given a map for each half set, or several maps that all are matched with.

    Attributes
    ----------
    optics : Optics or tuple of Optics
        Of the particle images: one, or those of the optics groups.
    symmetry : str
    diameter : float
        A; images are masked softly beyond it.
    sampling : Sampling
    noise : ndarray, float32, shape (m, size // 2 + 1)
        Noise variance of one component, a map and shell.
    perturbation : ndarray, shape (3, 3)
        Rotation of the whole grid in this iteration.
    poses_kept : int
        Poses written a particle.
    share : float
        Posterior that the second pass must cover.
    any_scale : bool
        The maps' grey scale is not that of the images.
    references : Mapping of str to Read
        Real-space maps; a unit's ``half`` is the place of its map.
    tested : int
        Particles of a unit whose angular accuracy is estimated; none where the maps' grey scale is foreign.
    name : str
        Stage that the expectation is a step of.
    """

    optics: Optics | tuple[Optics, ...]
    symmetry: str
    diameter: float
    sampling: Sampling
    noise: np.ndarray
    perturbation: np.ndarray
    poses_kept: int
    share: float
    any_scale: bool
    references: Mapping[str, Read]
    tested: int = 0
    name: str = "refine"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """The maps."""
        return self.references

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> State:
        """Transform the maps, and slice them at the coarse grid for a global search."""
        maps = [torch.from_numpy(m.astype(np.float32)).to(device) for m in shared.values()]
        size, volumes = maps[0].shape[-1], [prepare_volume(m) for m in maps]
        ky, kx = disc_pixels(size, size / 2, device)
        square = ky * ky + kx * kx
        n_fine, n_coarse = (
            int((square <= shell * shell).sum()) for shell in (self.sampling.max_shell, self.sampling.coarse_shell)
        )
        n_scored = n_fine if device == "cpu" else min(-(-n_fine // 16) * 16, len(ky))
        room = room_on(ky.device, len(volumes))
        children = subdivide(angular_step(self.sampling.order)).float().to(device)
        nothing: list[list[Tensor]] = [[] for _ in volumes]
        staging = None if device == "cpu" else Staging(ky.device)
        grid = torch.empty((0, 3, 3))
        state = State(size, volumes, ky, kx, n_fine, n_coarse, n_scored, grid, nothing, [], children, room, staging)
        if self.sampling.local:
            return state
        grid = orientation_grid(self.sampling.order, self.symmetry, torch.from_numpy(self.perturbation)).float()
        grid = grid.to(device)
        slices = [
            [project_pixels(v, part, ky[:n_coarse], kx[:n_coarse]) for part in grid.split(CHUNK)] for v in volumes
        ]
        fine = [FineSlices(v, ky[:n_scored], kx[:n_scored], grid, children, room.kept) for v in volumes]
        return replace(state, grid=grid, slices=slices, fine=fine)

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Poses of one batch of particles of one half set.

        Unit parameters: ``half`` (which map), ``ctf`` (n, 4, 5 or 7), the columns of :class:`~cryoseg_dist.kernels.microscope.Microscope`,
        ``poses`` (n, 11) with the last rotation and origin, and optionally ``rows``, the images to take of those read, and ``micrographs``
        (n,), numbers from 0 of the micrographs whose grey scales are measured. Writes ``poses``
        (1, unit size, poses_kept, 12), zero beyond the last particle. The record holds sums for the noise
        spectrum and figures of the posterior.
        """
        images = torch.from_numpy(batch_images(unit.parameters, inputs["images"]))
        last = torch.from_numpy(np.asarray(unit.parameters["poses"], dtype=np.float32))
        transfer = torch.from_numpy(np.asarray(unit.parameters["ctf"], dtype=np.float32))
        half = int(unit.parameters["half"])
        given = () if self.any_scale else unit.parameters.get("micrographs", ())
        micrographs = torch.as_tensor(np.asarray(given, dtype=np.int64))
        n_micrographs = int(micrographs.max()) + 1 if len(micrographs) else 0
        sums = Sums(state.size // 2 + 1, 0 if self.any_scale else self.tested, n_micrographs)
        out = np.zeros((len(images), self.poses_kept, POSE_COLUMNS), dtype=np.float32)
        batch = state.room.batch
        for first in range(0, len(images), batch):
            rows = slice(first, first + batch)
            out[rows] = self._batch(
                images[rows], transfer[rows], last[rows], micrographs[rows], half, state, sums
            ).numpy()
        written = np.zeros(unit.writes["poses"].shape, dtype=np.float32)
        written[0, : len(out)] = out
        return UnitResult({"poses": written}, sums.record())

    def _batch(
        self, images: Tensor, transfer: Tensor, last: Tensor, micrographs: Tensor, half: int, state: State, sums: Sums
    ) -> Tensor:
        size, n = state.size, state.n_scored
        device = state.ky.device
        images = images.float() if state.staging is None else state.staging.upload(images.numpy()).float()
        microscope = Microscope(self.optics, size, state.ky, state.kx)
        c = microscope.ctf(transfer)
        mask = soft_sphere(size, 0.5 * self.diameter / microscope.groups[0].pixel_size, 5.0, 2).to(device)
        # The last origin is applied once, in whole pixels before the mask, which is about the particle; shifts are searched around it.
        centre = last[:, 9:11].to(device)
        whole_px = centre.round()
        images = moved(images, whole_px.long())
        home = shift_phases(centre - whole_px, state.ky, state.kx, size)
        home = microscope.in_phase(home, transfer)
        seen = take_pixels(to_fourier(images * mask), state.ky, state.kx)[:, :n] * home[:, :n]
        noise = torch.from_numpy(self.noise[half]).to(device)[state.shell]
        scored = noise[:n].clone()
        scored[state.n_fine :] = torch.inf
        observations = observe(seen, c[:, :n], scored)
        rotations, shifts, scores = self._poses(observations, last, half, state)
        weights = torch.softmax(scores, dim=1)
        # Beyond that share of what was kept, poses would only take time.
        weights = weights * (weights.cumsum(dim=1) - weights < self.share)
        weights = weights / weights.sum(dim=1, keepdim=True)
        whole = take_pixels(to_fourier(images), state.ky, state.kx) * home
        likeliest = sums.add(whole, c, rotations, shifts, centre, weights, scores, state, half, self.any_scale)
        if len(micrographs):
            sums.add_scales(likeliest, noise[: state.n_fine], micrographs)
        sums.add_accuracy(observations, rotations[:, 0], state, half)
        poses = torch.cat((rotations.flatten(2), shifts + centre[:, None], weights[..., None]), dim=2)
        padded = torch.zeros((len(images), self.poses_kept, POSE_COLUMNS))
        padded[:, : poses.shape[1]] = poses.cpu()
        return padded

    def _poses(
        self, observations: Observations, last: Tensor, half: int, state: State
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Best rotations (b, k, 3, 3), shifts in px (b, k, 2) and their log-likelihoods, best first."""
        s, device = self.sampling, state.ky.device
        ky, kx, n = state.ky[: state.n_scored], state.kx[: state.n_scored], state.n_coarse
        shifts = shift_grid(s.shift_range_px, s.shift_step_px).to(device)
        phases = shift_phases(shifts, ky[:n], kx[:n], state.size)
        centre = last[:, 9:11].to(device)
        prior = s.log_prior(centre[:, None] + shifts)
        coarse = observations.within(n)
        if s.local:
            around = self._around(last, device)
            found = self._near(coarse, phases, around, prior, half, state)
        else:
            keep = CANDIDATES if s.two_passes else self.poses_kept
            found = search(coarse, phases, state.slices[half], keep, prior=prior, any_scale=self.any_scale)
            if not s.two_passes:
                return state.grid[found.rotation], shifts[found.shift], found.score
        count = significant(found.score, found.log_sum, self.share)
        at = first_distinct(found.shift, count, MOST_SHIFTS)

        def own_slices(rows: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rotations = (state.children @ around[rows[:, None], cells][:, :, None]).flatten(1, 2)
            slices = project_pixels(state.volumes[half], rotations.flatten(0, 1), ky, kx)
            return rotations, slices, numbered(rotations)

        return split_cells(
            observations,
            first_distinct(found.rotation, count, MOST_ROTATIONS),
            torch.where(at[..., None] < 0, torch.nan, shifts[at]),
            own_slices if s.local else lambda _, cells: state.fine[half].of(cells),
            lambda rows, fine: s.log_prior(centre[rows, None] + fine),
            ky,
            kx,
            size=state.size,
            shift_step_px=s.shift_step_px,
            keep=self.poses_kept,
            any_scale=self.any_scale,
            room_bytes=state.room.slices,
        )

    def _around(self, last: Tensor, device: torch.device) -> Tensor:
        """Rotations that a local search tries for each particle, (b, c, 3, 3)."""
        step = angular_step(self.sampling.order)
        near = torch.from_numpy(self.perturbation) @ neighbours(step, 3.0 * step)
        return near.float().to(device) @ last[:, None, :9].unflatten(-1, (3, 3)).to(device)

    def _near(
        self, coarse: Observations, phases: Tensor, around: Tensor, prior: Tensor, half: int, state: State
    ) -> Best:
        """First pass of a local search, so many particles at once as there is room for their slices."""
        n = state.n_coarse
        parts = []
        for rows in torch.arange(len(around)).split(max(1, state.room.slices // (8 * n * around.shape[1]))):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            slices = project_pixels(state.volumes[half], around[here].flatten(0, 1), state.ky[:n], state.kx[:n])
            parts.append(
                search(
                    coarse[here],
                    phases,
                    [slices],
                    CANDIDATES,
                    index=numbered(around[here]),
                    prior=prior[here],
                    any_scale=self.any_scale,
                )
            )
        return joined(parts)


def moved(images: Tensor, shifts: Tensor) -> Tensor:
    """Images (b, n, n) moved by whole pixels (b, 2) in x and y, around the edges."""
    axis = torch.arange(images.shape[-1], device=images.device)
    x, y = ((axis - shift[:, None]) % len(axis) for shift in shifts.unbind(dim=1))
    return images[torch.arange(len(images), device=images.device)[:, None, None], y[:, :, None], x[:, None, :]]


def shift_grid(extent_px: float, step_px: float) -> Tensor:
    """Shifts (x, y) on a square grid within a circle, the zero shift first; shape (t, 2)."""
    n = math.floor(extent_px / step_px + 1e-6)
    axis = torch.arange(-n, n + 1, dtype=torch.float32) * step_px
    grid = torch.cartesian_prod(axis, axis)
    length = grid.norm(dim=1)
    grid = grid[length <= extent_px + 1e-6]
    return grid[torch.argsort(grid.norm(dim=1), stable=True)]
