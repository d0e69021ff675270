"""Class probabilities of each micrograph by the U-Net."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from cryoseg_dist.kernels.normalise import network_input
from cryoseg_dist.kernels.rescale import fourier_rescale, rescale_ratio, rescaled_shape
from cryoseg_dist.kernels.tiles import Tiling, padded_tiling, predict, valid_tiling
from cryoseg_dist.networks.inference import class_probabilities, for_inference
from cryoseg_dist.networks.unet import Architecture, UNet, valid_input_extent
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.schema.work import ArraySpec, Read, Region, Unit, UnitResult

# The coarse level serves where it is at most this much coarser than the network's pixel.
LEVEL_TOLERANCE = 1.05


class SegmentSettings(Settings):
    """Segmentation by the U-Net."""

    model: str | None = None
    """Weights (safetensors) of a network from `cryoseg train`; the shipped model when not given."""
    tile_size: int | None = Field(default=512, ge=16)
    """Side of a tile in pixels of the network's input, a multiple of 2**depth; one pass when not given."""
    border: Literal["mirror", "zero"] = "mirror"
    """What the network sees beyond the micrograph's border."""
    compiled: bool = False
    """Compile the network on a GPU: some ten seconds a worker, then half as fast again."""


def array_spec(run: str, n_micrographs: int, classes: int, extent: tuple[int, int], pixel_size: float) -> ArraySpec:
    """The array ``<run>/probability``: probabilities times 255."""
    return ArraySpec(
        f"{run}/probability",
        (n_micrographs, classes, *extent),
        ("micrograph", "class", "y", "x"),
        "uint8",
        (1, 1, *extent),
        (1, classes, *extent),
        unit="1/255",
        doc="Class probabilities times 255",
        attributes={"pixel_size": pixel_size},
    )


@dataclass(frozen=True, slots=True)
class SegmentGeometry:
    """How a micrograph becomes the network's input.

    Attributes
    ----------
    array : str
        ``micrographs`` or ``level8``: the coarsest that holds the detail.
    source_shape : tuple of int
    source_pixel_size, pixel_size : float
        A, of that array and of the network's input.
    extent : tuple of int
        Rows and columns of the input.
    """

    array: str
    source_shape: tuple[int, int]
    source_pixel_size: float
    pixel_size: float
    extent: tuple[int, int]


def geometry(
    diameter: float,
    particle_px: float,
    micrograph: tuple[tuple[int, int], float],
    level: tuple[tuple[int, int], float],
) -> SegmentGeometry:
    """Choose the source array and the network's pixel size for a particle.

    Parameters
    ----------
    diameter : float
        A.
    particle_px : float
        Pixels that a particle measures in the network's input.
    micrograph, level : tuple
        Shape (y, x) and pixel size in A of the two arrays.
    """
    wanted = diameter / particle_px
    name, (shape, pixel) = ("level8", level) if level[1] <= wanted * LEVEL_TOLERANCE else ("micrographs", micrograph)
    ratio = (
        min(rescale_ratio(pixel, wanted), rescale_ratio(1.0, 1.0)) if name == "level8" else rescale_ratio(pixel, wanted)
    )
    return SegmentGeometry(name, shape, pixel, float(pixel / ratio), rescaled_shape(shape, ratio))


def plan(run: str, ingest_run: str, micrographs: Sequence[int], classes: int, where: SegmentGeometry) -> list[Unit]:
    """One unit a micrograph."""
    return [
        Unit(
            key=f"segment/{m:06d}",
            reads={"image": Region(f"{ingest_run}/{where.array}", (m, 0, 0), (m + 1, *where.source_shape))},
            writes={"probability": Region(f"{run}/probability", (m, 0, 0, 0), (m + 1, classes, *where.extent))},
            parameters={"index": m},
        )
        for m in micrographs
    ]


def network_tiling(architecture: Architecture) -> Tiling:
    """How tiles of this network must be cut."""
    if architecture.padded:
        return padded_tiling(architecture.stride, architecture.reach)
    return valid_tiling(
        architecture.stride, architecture.margin, lambda output: valid_input_extent(architecture, output)[0]
    )


@dataclass(frozen=True)
class SegmentStage:
    """Segments a micrograph.

    Attributes
    ----------
    settings : SegmentSettings
    architecture : Architecture
    weights : Mapping of str to ndarray
        Of a network without batch normalisation.
    diameter : float
        A.
    protein_dark : bool
    where : SegmentGeometry
    """

    settings: SegmentSettings
    architecture: Architecture
    weights: Mapping[str, np.ndarray]
    diameter: float
    protein_dark: bool
    where: SegmentGeometry

    @property
    def name(self) -> str:
        """Stage name."""
        return "segment"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Nothing is read; the weights travel with the stage."""
        return {}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> UNet:
        """Build the network on its device."""
        network = UNet(self.architecture)
        network.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in self.weights.items()})
        return for_inference(network, torch.device(device), self.settings.compiled)

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Segment one micrograph; the record holds each class's share of the area."""
        network: UNet = state
        device = next(network.parameters()).device
        image = torch.from_numpy(inputs["image"][0].astype(np.float32)).to(device)
        ratio = rescale_ratio(self.where.source_pixel_size, self.where.pixel_size)
        if ratio != 1:
            image = fourier_rescale(image, ratio)
        prepared = network_input(image, self.diameter / self.where.pixel_size, self.protein_dark)
        with torch.inference_mode():
            probability = predict(
                prepared[None],
                lambda batch: class_probabilities(network, batch),
                network_tiling(self.architecture),
                self.settings.tile_size,
                self.settings.border,
            )
        scaled = (probability * 255.0).round().to(torch.uint8).cpu()
        share = [float(v) for v in (probability > 0.5).float().mean(dim=(1, 2)).cpu()]
        return UnitResult({"probability": scaled.numpy()[None]}, {"area": share})
