"""2D classification: the best poses of particles in every class, on a coarse grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.matching import Observations, search_chunks, shift_phases
from cryoseg_dist.kernels.planes import prepare_planes, sample_planes
from cryoseg_dist.kernels.slices import disc_pixels
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Read, Region, Unit, UnitResult
from cryoseg_dist.stages.classify import BATCH, PADDING, Sampling, ctf_at, observe_masked, shell_of
from cryoseg_dist.stages.refine_expectation import batch_images, shift_grid

# Poses kept in each class, and what is kept of one: log-likelihood, psi (degrees), origin x, y (px).
POSES_A_CLASS, CANDIDATE_COLUMNS = 2, 4


@dataclass(frozen=True)
class ClassSearchStage:
    """The best in-plane poses of particles in each class, given class averages.

    Attributes
    ----------
    optics : Optics
        Of the particle images.
    diameter : float
        A; images are masked softly beyond it.
    sampling : Sampling
    noise : ndarray, float32, shape (size // 2 + 1,)
        Noise variance of one component, by shell.
    averages : Region
        Real-space averages (K, y, x).
    """

    optics: Optics
    diameter: float
    sampling: Sampling
    noise: np.ndarray
    averages: Region

    @property
    def name(self) -> str:
        """Stage name."""
        return "classify"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """The averages."""
        return {"averages": self.averages}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> "_State":
        """Rotate the averages over the grid."""
        averages = torch.from_numpy(shared["averages"].astype(np.float32))
        n_classes, size = averages.shape[0], averages.shape[-1]
        ky, kx = disc_pixels(size, self.sampling.coarse_shell)
        psi = torch.arange(round(360.0 / self.sampling.angular_step)) * self.sampling.angular_step
        planes, which = prepare_planes(averages, PADDING), torch.arange(n_classes).repeat_interleave(len(psi))
        references = sample_planes(planes, which, psi.repeat(n_classes), ky, kx, PADDING).to(device)
        shifts = shift_grid(self.sampling.shift_range_px, self.sampling.shift_step_px)
        phases = shift_phases(shifts, ky, kx, size).to(device)
        return _State(size, ky, kx, shell_of(ky, kx, size), psi, shifts, list(references.split(len(psi))), phases)

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Candidates of one batch of particles.

        Unit parameters: ``ctf`` (n, 4) and optionally ``rows``, the images to take of those read. Writes ``candidates``
        (1, unit size, K, 2, 4), the best first in each class.
        """
        images = torch.from_numpy(batch_images(unit.parameters, inputs["images"]).astype(np.float32))
        transfer = torch.from_numpy(np.asarray(unit.parameters["ctf"], dtype=np.float32))
        out = np.zeros(unit.writes["candidates"].shape, dtype=np.float32)
        for first in range(0, len(images), BATCH):
            rows = slice(first, min(first + BATCH, len(images)))
            out[0, rows] = self._batch(images[rows], transfer[rows], state).numpy()
        return UnitResult({"candidates": out}, {"n": len(images)})

    def _batch(self, images: Tensor, transfer: Tensor, state: "_State") -> Tensor:
        c = ctf_at(transfer, state.ky, state.kx, state.size, self.optics)
        variance = torch.from_numpy(self.noise)[state.shell]
        seen = observe_masked(images, c, variance, state.ky, state.kx, self.optics, self.diameter)
        seen = Observations(seen.data.to(state.phases.device), seen.weight.to(state.phases.device))
        found = []
        for best in search_chunks(seen, state.phases, state.references, POSES_A_CLASS):
            psi = state.psi[best.rotation.cpu() % len(state.psi)]
            found.append(
                torch.cat((torch.stack((best.score.cpu(), psi), dim=-1), state.shifts[best.shift.cpu()]), dim=-1)
            )
        return torch.stack(found, dim=1)


@dataclass(frozen=True)
class _State:
    """What a worker keeps in one iteration; pixels lie in the order of their radius, references by class."""

    size: int
    ky: Tensor
    kx: Tensor
    shell: Tensor
    psi: Tensor
    shifts: Tensor
    references: list[Tensor]
    phases: Tensor
