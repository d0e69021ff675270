"""Folds of particles into Fourier space: the maximisation step of refinement and `cryoseg reconstruct`."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.kernels.accumulator import empty_accumulator, enforce_friedel
from cryoseg_dist.kernels.conjugate_gradient import NormalEquations, Solution, solve
from cryoseg_dist.kernels.coverage import Coverage, place_of
from cryoseg_dist.kernels.ewald import curvature, weigh_sheets
from cryoseg_dist.kernels.finishing import finish, shell_weights
from cryoseg_dist.kernels.insertion import insert
from cryoseg_dist.kernels.insertion_numba import Workspace, poses_at_once
from cryoseg_dist.kernels.interpolation import Interpolation
from cryoseg_dist.kernels.magnification import stretch
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import by_rows, disc_pixels
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.kernels.staging import Staging
from cryoseg_dist.kernels.symmetrisation import symmetrise
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.kernels.weighing import weigh
from cryoseg_dist.kernels.weighing_numba import weighed
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.schema.work import Read, Unit
from cryoseg_dist.stages.fold_parts import Part, ahead, batches, parts_of

# Bytes of images at once on a GPU.
GPU_BYTES = 2**30


class EwaldSphere(StrEnum):
    """Curvature of what an image holds of Fourier space."""

    FLAT = "flat"
    """A central slice: particles are thin."""
    POSITIVE = "positive"
    """Defocus grows along the viewing direction."""
    NEGATIVE = "negative"
    """Defocus falls along the viewing direction."""


class ReconstructSettings(Settings):
    """Reconstruction from known poses."""

    padding: int = Field(default=2, ge=1, le=4)
    """Oversampling of Fourier space."""
    interpolation: Interpolation = Interpolation.TRILINEAR
    """How `cryoseg reconstruct` spreads Fourier pixels over voxels: `trilinear`, or `kaiser_bessel`, which takes longer and loses less with
    a padding of 1."""
    ewald: EwaldSphere = EwaldSphere.FLAT
    """Ewald-sphere correction of `cryoseg reconstruct` for thick particles at high resolution. Handedness and microscope decide between
    `positive` and `negative`: try both, the better resolution is right."""
    solver: Literal["direct", "cg"] = "direct"
    """How `cryoseg reconstruct` makes maps of its sums: division voxel by voxel, or conjugate gradients within the particle's sphere
    or `support`."""
    support: str = ""
    """Soft mask (MRC) that the solver `cg` holds the map within; the particle's sphere when empty."""
    cg_iterations: int = Field(default=30, ge=1)
    """Iterations of conjugate gradients at most."""
    cg_tolerance: float = Field(default=0.01, gt=0, lt=1)
    """Share of the noise's energy below which the error left by conjugate gradients does not matter."""
    split_every: int = Field(default=4, ge=2)
    """Partial sums merged at once."""
    folds_per_worker: int | None = Field(default=None, ge=1)
    """Partial sums a worker makes; when not given two, or fewer where keeping them would take long beside making them."""
    half_maps: bool = True
    """Write half1.mrc and half2.mrc, as RELION and cryoSPARC do; the FSC needs the half maps in any case."""


def _fold_device(total_bytes: int) -> torch.device:
    """A GPU where there is one with room for a sum, its copy and the images of a batch; else the processor."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info()
    return torch.device("cuda" if free > 2.5 * total_bytes + 6 * GPU_BYTES else "cpu")


@dataclass(frozen=True)
class FoldStage:
    """Sums the central slices of a batch of particles.

    A fold reads its images in parts, ``images/0`` and so on. Its parameters are ``half`` (0 or 1) and ``parts``, one mapping
    a part: ``ctf`` (n, 4, 5 or 7), the columns of :class:`~cryoseg_dist.kernels.microscope.Microscope`; ``rows``, the images to take of those
    read (all when absent); and ``poses`` (n, k, 12), rotation matrix, origin x, y in pixels, weight, unless they are read as
    ``poses/0`` and so on, (1, at least n, k, 12).

    Attributes
    ----------
    optics : Optics or tuple of Optics
        One, or those of the optics groups.
    size : int
        Extent of the images.
    padding : int
    noise : ndarray, float32, shape (2, size // 2 + 1), optional
        Noise variance by half set and shell that slices are weighted with.
    max_shell : float, optional
        Fourier pixels beyond this radius are left out; the inscribed circle when not given.
    threads : int
        That add to the sum of one fold on a processor.
    interpolation : Interpolation
    ewald : EwaldSphere
    diameter : float
        Of the particle, A; needed where the Ewald sphere is curved.
    """

    optics: Optics | tuple[Optics, ...]
    size: int
    padding: int = 2
    noise: np.ndarray | None = None
    max_shell: float | None = None
    threads: int = 1
    interpolation: Interpolation = Interpolation.TRILINEAR
    ewald: EwaldSphere = EwaldSphere.FLAT
    diameter: float = 0.0

    @property
    def name(self) -> str:
        """Stage name."""
        return "reconstruct"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Nothing is shared."""
        return {}

    @property
    def partial_shape(self) -> tuple[int, ...]:
        """Extent of a partial sum."""
        m = self.size * self.padding
        return (m, m, m // 2 + 1, 3)

    def without(self, unit: Unit, reads: Collection[str]) -> Unit | None:
        """The unit without the parts that need some of its reads, None where none is left."""
        parts = unit.parameters["parts"]
        left = [i for i in range(len(parts)) if not {f"images/{i}", f"poses/{i}"} & set(reads)]
        if not left:
            return None
        kept = {
            f"{kind}/{new}": unit.reads[f"{kind}/{old}"]
            for new, old in enumerate(left)
            for kind in ("images", "poses")
            if f"{kind}/{old}" in unit.reads
        }
        return Unit(unit.key, kept, unit.writes, {**unit.parameters, "parts": [parts[i] for i in left]})

    def partial(self, unit: Unit, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The sum over one fold, with Friedel mates, float32, of ``partial_shape``."""
        plain = self.interpolation is Interpolation.TRILINEAR and self.ewald is EwaldSphere.FLAT
        device = _fold_device(4 * math.prod(self.partial_shape)) if plain else torch.device("cpu")
        staging = None if device.type == "cpu" else Staging(device)
        total = empty_accumulator(self.size, self.padding, device)
        groups = (self.optics,) if isinstance(self.optics, Optics) else self.optics
        # What magnification stretches must stay within the grid.
        within = min(self.max_shell or self.size / 2, self.size / 2 / stretch(groups))
        ky, kx = disc_pixels(self.size, within, device)
        if device.type == "cpu":
            # Line by line, so that neighbours in memory follow one another; a GPU takes ring after ring.
            order = by_rows(ky, kx)
            ky, kx = ky[order], kx[order]
        inverse_noise = self._inverse_noise(int(unit.parameters["half"]), ky, kx)
        seen = (Microscope(self.optics, self.size, ky, kx), inverse_noise, ky, kx)
        workspace = None
        if staging is None:
            room = poses_at_once(self.partial_shape[0], len(ky))
            workspace = Workspace.of(room, len(ky))
        else:
            room = max(1, GPU_BYTES // (4 * self.size**2))
        sheets = self._sheets(batches(parts_of(unit, inputs), room), staging, seen, room)
        for data, weights, bend, poses, image in sheets if staging is not None else ahead(sheets, self.threads):
            insert(
                total,
                data,
                weights,
                poses[:, :9].reshape(-1, 3, 3),
                poses[:, 9:11],
                ky,
                kx,
                size=self.size,
                padding=self.padding,
                pose_image=image,
                pose_weight=poses[:, 11],
                interpolation=self.interpolation,
                curvature=bend,
                threads=self.threads,
                workspace=workspace,
            )
        enforce_friedel(total)
        return total.numpy() if staging is None else staging.download(total)

    def _sheets(
        self, parts: Iterator[Part], staging: Staging | None, seen: tuple[Microscope, Tensor, Tensor, Tensor], room: int
    ) -> Iterator[tuple[Tensor, Tensor, float, Tensor, Tensor]]:
        """What is inserted of each batch, its weights and curvature, poses and the image of each: one flat sheet, or both of the Ewald
        sphere. On the processor a flat one lies in memory that the next but one uses again.
        """
        microscope, inverse_noise, ky, kx = seen
        spare = cycle([weighed(room, len(ky)) for _ in range(2)] if staging is None else [None])
        for images, columns, poses in parts:
            pose = torch.from_numpy(poses)
            image, slot = torch.nonzero(pose[..., 11] > 0, as_tuple=True)
            given, flat = torch.from_numpy(columns), pose[image, slot]
            microscope.magnify(flat[:, :9].unflatten(1, (3, 3)), given[image])
            used = flat.to(ky.device), image.to(ky.device)
            some = torch.from_numpy(images) if staging is None else staging.upload(images)
            if self.ewald is EwaldSphere.FLAT:
                yield *weigh(some, microscope, given, inverse_noise, ky, kx, next(spare)), 0.0, *used
                continue
            above, below, weights = weigh_sheets(some, microscope, given, inverse_noise, ky, kx, self.diameter)
            bend = curvature(microscope.groups[0].voltage, self.size, microscope.groups[0].pixel_size)
            bend = bend if self.ewald is EwaldSphere.POSITIVE else -bend
            yield above, weights, bend, *used
            yield below, weights, -bend, *used

    def _inverse_noise(self, half: int, ky: Tensor, kx: Tensor) -> Tensor:
        if self.noise is None:
            return torch.ones(ky.shape, device=ky.device)
        shell = torch.round((ky * ky + kx * kx).float().sqrt()).long().clamp(max=self.size // 2)
        return (1.0 / torch.from_numpy(self.noise[half]).to(ky.device))[shell]


def complete(total: np.ndarray, symmetry: str, size: int, padding: int, max_shell: float | None = None) -> Tensor:
    """A sum of folds with the symmetry of its particle, to a shell where no more was summed."""
    return symmetrise(torch.from_numpy(total), operators(symmetry), max_shell or size / 2, padding)


def relative_regularisation(accumulator: Tensor, size: int, padding: int, share: Tensor) -> Tensor:
    """What to add to the weights of each shell for a Wiener filter: ``share`` times their mean.

    Parameters
    ----------
    accumulator : Tensor
    share : Tensor, shape (size // 2 + 1,)
        Noise to signal ratio of the map, ``(1 - FSC) / FSC``.
    """
    mean = shell_weights(accumulator)
    at = (torch.arange(size // 2 + 1) * padding).clamp(max=mean.numel() - 1)
    return share.to(mean.dtype) * mean[at]


def maps_of_sums(
    totals: Sequence[Tensor],
    size: int,
    padding: int,
    max_shell: float | None = None,
    interpolation: Interpolation = Interpolation.TRILINEAR,
) -> list[Tensor]:
    """Unregularised map of each completed sum."""
    return [finish(t, size, padding=padding, max_shell=max_shell, interpolation=interpolation) for t in totals]


def noise_to_signal(curve: Tensor, n_halves: int) -> Tensor:
    """Noise to signal ratio by shell of a map that holds one half set or both, from their FSC (Rosenthal & Henderson 2003)."""
    half = curve.clamp(0.0005, 0.999)
    return (1.0 - half) / (n_halves * half)


def damped_map(totals: Sequence[Tensor], curve: Tensor, size: int, padding: int) -> Tensor:
    """The map of both half sets, damped where few views of a shell reached, as by a Wiener filter.

    Parameters
    ----------
    totals : sequence of two Tensor
        Completed sums of the half sets.
    curve : Tensor, shape (size // 2 + 1,)
        FSC of the undamped half maps. A voxel of a shell's mean weight keeps its amplitude: filtering by shell is left to
        sharpening.
    """
    half1, half2 = totals
    return finish(half1 + half2, size, padding=padding, shrinkage=noise_to_signal(curve, 2))


def solved_map(
    totals: Sequence[Tensor],
    curve: Tensor,
    size: int,
    padding: int,
    max_shell: float | None,
    support: Tensor,
    settings: ReconstructSettings,
) -> Solution:
    """The map of one half set or of both by conjugate gradients, for a molecule that lies within a support."""
    total = totals[0] if len(totals) == 1 else totals[0] + totals[1]
    return solve(
        NormalEquations(total, size, padding),
        noise_to_signal(curve, len(totals)),
        support,
        max_iterations=settings.cg_iterations,
        tolerance=settings.cg_tolerance,
        max_shell=max_shell,
    )


def solver_words(coverage: Coverage, size: int, pixel_size: float, extent: float) -> str:
    """What a solved map can hold and what it cannot, by its views.

    Parameters
    ----------
    coverage : Coverage
    size : int
        Extent of the box.
    pixel_size : float
        A.
    extent : float
        Longest extent of the support in A.
    """
    reach = size * pixel_size / extent
    text = (
        f"Solved by conjugate gradients for a map within {extent:.0f} A: a slice speaks for the frequencies within "
        f"{reach:.1f} Fourier pixels of it, and gaps narrower than that are filled from the data."
    )
    if coverage.empty_shape in ("cone", "wedge"):
        half_angle = coverage.empty_half_angle
        filled = min(coarsest_filled(half_angle, reach), size / 2)
        return (
            f"{text} The missing {coverage.empty_shape} of half angle {half_angle:.0f}° about {place_of(coverage.empty_axis)} is filled "
            f"for features coarser than {size * pixel_size / filled:.0f} A alone. Finer detail along that axis was never recorded and "
            f"is not restored: the map stays elongated, about {coverage.elongation:.1f} times."
        )
    if coverage.empty_shape == "scattered":
        return f"{text} {100 * coverage.empty_fraction:.0f} % of all directions were hardly seen: what lies deep in such gaps is not restored."
    return f"{text} The views leave no direction empty."


def coarsest_filled(half_angle: float, reach: float) -> float:
    """Shell at which a missing cone or wedge is twice as wide as what a slice at its rim speaks for."""
    return reach / math.sin(math.radians(min(max(half_angle, 1.0), 90.0)))


def pose_table(rot: Any, tilt: Any, psi: Any, origin_x: Any, origin_y: Any, pixel_size: float) -> np.ndarray:
    """Poses (n, 1, 12) of weight one from Euler angles in degrees and origins in A."""
    angles = [torch.from_numpy(np.array(a, dtype=np.float64)) for a in (rot, tilt, psi)]
    matrices = euler_to_matrix(*angles).flatten(1).numpy()
    origins = np.stack((np.asarray(origin_x), np.asarray(origin_y)), axis=1) / pixel_size
    return np.concatenate((matrices, origins, np.ones((len(matrices), 1))), axis=1)[:, None].astype(np.float32)
