"""What a worker of the expectation step keeps, and how much it holds at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoseg_dist.kernels.second_pass import FineSlices
from cryoseg_dist.kernels.staging import Staging

# Particles matched at once, and references a matrix product: they bound the memory of a unit.
BATCH, CHUNK = 48, 4096
# Slices of the second pass that a worker keeps for other particles, of each map, and those of single particles.
KEPT_BYTES, OWN_BYTES = 256 * 2**20, 32 * 2**20
# Memory of a GPU for each particle matched at once: scores of a chunk, its images and their shifts.
GPU_BYTES_A_PARTICLE = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker holds at once.

    Attributes
    ----------
    batch : int
        Particles matched at once.
    slices : int
        Bytes of slices that belong to single particles.
    kept : int
        Bytes of slices of the second pass that are kept for other particles, of each map.
    """

    batch: int
    slices: int
    kept: int


def room_on(device: torch.device, n_maps: int) -> Room:
    """What a worker on a device holds at once, given how many maps it matches with."""
    if device.type == "cpu":
        return Room(BATCH, OWN_BYTES, KEPT_BYTES)
    memory = torch.cuda.get_device_properties(device).total_memory
    return Room(max(64, memory // GPU_BYTES_A_PARTICLE), memory // 32, memory // (4 * n_maps))


@dataclass(frozen=True)
class State:
    """What a worker keeps in one iteration; pixels lie in the order of their radius.

    Poses are found with ``n_fine`` pixels, the first pass with ``n_coarse``. ``n_scored`` may be a few more, of infinite noise, so that rows of
    slices start where a GPU can read them at once.
    """

    size: int
    volumes: list[Tensor]
    ky: Tensor
    kx: Tensor
    n_fine: int
    n_coarse: int
    n_scored: int
    grid: Tensor
    slices: list[list[Tensor]]
    fine: list[FineSlices]
    children: Tensor
    room: Room
    staging: Staging | None

    @property
    def shell(self) -> Tensor:
        """Shell of each pixel, int64, shape (p,)."""
        return torch.round((self.ky * self.ky + self.kx * self.kx).float().sqrt()).long().clamp(max=self.size // 2)
