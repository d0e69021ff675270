"""Training patches from micrographs with known particles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.coordinates import read_coordinates
from cryoseg_dist.formats.images import read_images
from cryoseg_dist.formats.star import read_star
from cryoseg_dist.kernels.normalise import CLIP, network_input
from cryoseg_dist.kernels.peaks import find_peaks
from cryoseg_dist.kernels.rescale import fourier_rescale, rescale_ratio
from cryoseg_dist.kernels.tiles import predict
from cryoseg_dist.networks.augment import random_deformation, random_grey_values, warp_image, warp_labels
from cryoseg_dist.networks.unet import UNet
from cryoseg_dist.schema.work import ImageFile
from cryoseg_dist.stages.segment import network_tiling
from cryoseg_dist.training.sample import CORE, PARTICLE, PARTICLE_PX, Sample, SampleSource, draw_cores

COORDINATE_SUFFIXES = (".csv", ".box", ".star")
UNKNOWN = 255


@dataclass(frozen=True, slots=True)
class LabelledMicrograph:
    """A micrograph at the network's pixel size, and what is known of it.

    Attributes
    ----------
    image : ndarray, float32, shape (y, x)
        As ``kernels.normalise.network_input`` gives it.
    labels : ndarray, int64, shape (y, x)
        Background, particle core, contamination, carbon.
    valid : ndarray, bool, shape (y, x)
        False where the truth is unknown.
    centres : ndarray, float64, shape (n, 2)
        Row and column of the particles in pixels of the image.
    """

    image: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    centres: np.ndarray


def centres_of_mask(particle: np.ndarray, diameter_px: float) -> np.ndarray:
    """Centres (row, column) of the discs that a mask is made of; touching ones are told apart."""
    mask = torch.from_numpy(particle.astype(np.float32))
    found = find_peaks(mask, 0.5 * diameter_px, 0.6 * diameter_px, 0.6)
    return torch.stack((found.y, found.x), dim=1).numpy().astype(np.float64)


def prepare_micrograph(
    image: np.ndarray,
    pixel_size: float,
    diameter: float,
    protein_dark: bool,
    *,
    centres: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    where: str = "micrograph",
) -> LabelledMicrograph:
    """Bring a micrograph and its labels to the network's pixel size.

    Parameters
    ----------
    image : ndarray, shape (y, x)
    pixel_size, diameter : float
        A.
    protein_dark : bool
    centres : ndarray, shape (n, 2), optional
        x, y in pixels of the micrograph.
    mask : ndarray, shape (y, x), optional
        0 background, 1 particle, 2 contamination, 3 carbon, 255 unknown; or two values, of which the larger
        is the particles. Each particle is a disc of about the particle's diameter.
    where : str
        Name in messages.

    Raises
    ------
    BadInputError
        Neither or both labels are given, the mask does not fit the image, or a centre lies outside.
    """
    if (centres is None) == (mask is None):
        raise BadInputError(where, "either coordinates or a mask", "both" if mask is not None else "neither")
    ratio = rescale_ratio(pixel_size, diameter / PARTICLE_PX)
    scaled = fourier_rescale(torch.from_numpy(np.asarray(image, dtype=np.float32)), ratio)
    prepared = network_input(scaled, PARTICLE_PX, protein_dark).numpy()
    height, width = prepared.shape
    labels = np.zeros((height, width), dtype=np.int64)
    valid = np.ones((height, width), dtype=bool)
    if mask is not None:
        if mask.shape != image.shape:
            raise BadInputError(where, f"a mask of {image.shape[1]} x {image.shape[0]}", f"{mask.shape[::-1]}")
        values = np.unique(mask)
        if len(values) == 2:
            mask = (mask == values[1]).astype(np.uint8)
        elif not set(values.tolist()) <= {0, 1, 2, 3, UNKNOWN}:
            raise BadInputError(where, "mask values 0, 1, 2, 3, 255 or two values", f"{values[:8].tolist()}")
        rows = np.minimum(np.rint(np.arange(height) / float(ratio)).astype(int), mask.shape[0] - 1)
        columns = np.minimum(np.rint(np.arange(width) / float(ratio)).astype(int), mask.shape[1] - 1)
        small = mask[rows[:, None], columns[None, :]]
        at = centres_of_mask(small == 1, PARTICLE_PX)
        labels[(small == 2) | (small == 3)] = small[(small == 2) | (small == 3)]
        valid = small != UNKNOWN
    else:
        xy = np.asarray(centres, dtype=np.float64).reshape(-1, 2)
        limit = np.array(image.shape[::-1])
        outside = int(np.count_nonzero(~((xy >= -0.5) & (xy <= limit - 0.5)).all(axis=1)))
        if outside:
            raise BadInputError(
                where, f"centres inside {limit[0]} x {limit[1]} pixels", f"{outside} outside", "Check their pixel size."
            )
        at = xy[:, ::-1] * float(ratio)
        # Particles that the border cuts are left out of most lists.
        margin = int(np.ceil(0.5 * PARTICLE_PX))
        inner = np.zeros_like(valid)
        inner[margin : height - margin, margin : width - margin] = True
        valid = inner
    labels, objects = draw_cores(at, labels, np.zeros_like(labels, dtype=np.int32))
    return LabelledMicrograph(prepared, labels, valid | (objects > 0), at)


def leave_out_unlabelled(micrograph: LabelledMicrograph, network: UNet, min_score: float = 0.3) -> LabelledMicrograph:
    """Do not learn from what a network takes for a particle and the labels do not name.

    Lists of particles are rarely complete; without this a missing one is taught as background.

    Parameters
    ----------
    micrograph : LabelledMicrograph
    network : UNet
        For inference.
    min_score : float
        Mean particle probability over a core from which a peak counts.
    """
    tiling = network_tiling(network.architecture)
    with torch.inference_mode():
        logits = predict(torch.from_numpy(micrograph.image)[None], network, tiling, None)
    found = find_peaks(logits.softmax(dim=0)[PARTICLE], CORE * PARTICLE_PX, 0.6 * PARTICLE_PX, min_score)
    valid = micrograph.valid.copy()
    y, x = np.ogrid[: valid.shape[0], : valid.shape[1]]
    for cy, cx in zip(found.y.tolist(), found.x.tolist(), strict=True):
        if len(micrograph.centres):
            nearest = np.hypot(*(micrograph.centres - (cy, cx)).T).min()
            if nearest < 0.5 * PARTICLE_PX:
                continue
        valid[np.hypot(y - cy, x - cx) < 0.5 * PARTICLE_PX] = False
    return replace(micrograph, valid=valid | (micrograph.labels == PARTICLE))


def micrograph_source(micrographs: Sequence[LabelledMicrograph], elastic_px: float = 10.0) -> SampleSource:
    """Patches at random places of micrographs, deformed and changed in grey value.

    Parameters
    ----------
    micrographs : sequence of LabelledMicrograph
    elastic_px : float
        Standard deviation of the elastic deformation in pixels.

    Raises
    ------
    BadInputError
        No micrograph, or none of them holds a particle.
    """
    held = tuple(micrographs)
    if not any((m.labels == PARTICLE).any() for m in held):
        raise BadInputError("train", "micrographs with particles", f"{len(held)} without any")

    def draw(rng: np.random.Generator, size: int) -> Sample:
        micrograph = held[int(rng.integers(len(held)))]
        deformation = random_deformation(size, rng, elastic_px=elastic_px, scale=0.15)
        top, left = (rng.uniform(min(0, n - size), max(0, n - size)) for n in micrograph.image.shape)
        deformation = replace(deformation, rows=deformation.rows + top, columns=deformation.columns + left)
        image = random_grey_values(warp_image(micrograph.image, deformation), rng)
        labels = warp_labels(micrograph.labels, deformation)
        # Cores do not touch, so that numbering them anew tells mirrored copies apart too.
        objects, _ = ndimage.label(labels == PARTICLE)
        valid = warp_labels(micrograph.valid.astype(np.uint8), deformation).astype(bool)
        return Sample(np.clip(image, -CLIP, CLIP), labels, objects.astype(np.int32), valid)

    return draw


def mixed_source(sources: Sequence[tuple[float, SampleSource]]) -> SampleSource:
    """Patches of several sources, each as often as its weight says."""
    weights = np.array([weight for weight, _ in sources], dtype=np.float64)
    shares = np.cumsum(weights / weights.sum())

    def draw(rng: np.random.Generator, size: int) -> Sample:
        index = min(int(np.searchsorted(shares, rng.random(), side="right")), len(sources) - 1)
        return sources[index][1](rng, size)

    return draw


def read_labelled(
    micrographs: Sequence[Path], labels: Path, pixel_size: float, diameter: float, protein_dark: bool
) -> list[LabelledMicrograph]:
    """Read micrographs and their labels.

    Parameters
    ----------
    micrographs : sequence of Path
    labels : Path
        A folder with a file of coordinates (CSV, box, STAR) or a mask (an image) of the same name as each
        micrograph, or one STAR file of particles that names their micrographs. Micrographs without labels are
        left out.
    pixel_size, diameter : float
        A.
    protein_dark : bool

    Raises
    ------
    BadInputError
        No micrograph has labels, or a file is bad.
    """
    by_stem: dict[str, np.ndarray | Path] = {}
    if labels.is_dir():
        for path in sorted(labels.iterdir()):
            if path.is_file():
                by_stem.setdefault(path.name.split(".mrc")[0].removesuffix(path.suffix), path)
    else:
        rows = read_star(labels).rows
        if not {"micrograph_name", "coordinate_x", "coordinate_y"} <= set(rows.columns):
            raise BadInputError(str(labels), "micrograph names and coordinates", ", ".join(rows.columns)[:200])
        for name, group in rows.groupby("micrograph_name"):
            by_stem[Path(str(name)).stem] = group[["coordinate_x", "coordinate_y"]].to_numpy(float)
    out = []
    for path in micrographs:
        stem = path.name.split(".mrc")[0].removesuffix(path.suffix)
        if stem not in by_stem:
            continue
        known = by_stem[stem]
        image = read_images(ImageFile(str(path)))[0]
        centres, mask = None, None
        if isinstance(known, np.ndarray):
            centres = known
        elif known.suffix.lower() in COORDINATE_SUFFIXES:
            centres = read_coordinates(known)
        else:
            mask = read_images(ImageFile(str(known)))[0]
        out.append(
            prepare_micrograph(image, pixel_size, diameter, protein_dark, centres=centres, mask=mask, where=str(path))
        )
    if not out:
        raise BadInputError(str(labels), "labels named like the micrographs", "none that match")
    return out
