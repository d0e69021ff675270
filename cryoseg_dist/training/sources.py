"""What a training draws from, put together from what a user has."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.networks.unet import UNet
from cryoseg_dist.store.checksums import sha256_of
from cryoseg_dist.training.micrographs import leave_out_unlabelled, micrograph_source, mixed_source, read_labelled
from cryoseg_dist.training.sample import SampleSource
from cryoseg_dist.training.synthetic import synthetic_sample


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Micrographs and where their particles are listed.

    Attributes
    ----------
    micrographs : tuple of Path
    labels : Path
        See :func:`cryoseg_dist.training.micrographs.read_labelled`.
    pixel_size, diameter : float
        A.
    protein_dark : bool
    """

    micrographs: tuple[Path, ...]
    labels: Path
    pixel_size: float
    diameter: float
    protein_dark: bool = True


def _files(labels: Path) -> list[Path]:
    return sorted(p for p in labels.iterdir() if p.is_file()) if labels.is_dir() else [labels]


def training_source(
    sets: Sequence[LabelledSet], *, synthetic_share: float, start: UNet | None = None
) -> tuple[SampleSource, str]:
    """Patches of labelled micrographs, synthetic ones, or both.

    Parameters
    ----------
    sets : sequence of LabelledSet
        None for a training on synthetic patches alone.
    synthetic_share : float
        Share of synthetic patches where there are labelled ones, in [0, 1]. Some keep a fine-tuned network from
        forgetting what carbon and other particles look like.
    start : UNet, optional
        The network that is fine-tuned: what it finds and no list names is left out of the loss.

    Returns
    -------
    source : Callable
    data : str
        What distinguishes these data from others, for :func:`cryoseg_dist.training.train.train`.

    Raises
    ------
    BadInputError
        The share is impossible, or the files are bad.
    """
    if not 0.0 <= synthetic_share <= 1.0:
        raise BadInputError("train", "a synthetic share between 0 and 1", f"{synthetic_share:g}")
    if not sets:
        return synthetic_sample, "synthetic"
    micrographs = []
    described: list[object] = [synthetic_share]
    for one in sets:
        held = read_labelled(one.micrographs, one.labels, one.pixel_size, one.diameter, one.protein_dark)
        micrographs += held if start is None else [leave_out_unlabelled(m, start) for m in held]
        names = [p.name for p in one.micrographs]
        described.append([names, [sha256_of(p) for p in _files(one.labels)], one.pixel_size, one.diameter])
    real = micrograph_source(micrographs)
    if synthetic_share == 0.0:
        return real, json.dumps(described)
    return mixed_source([(1.0 - synthetic_share, real), (synthetic_share, synthetic_sample)]), json.dumps(described)
