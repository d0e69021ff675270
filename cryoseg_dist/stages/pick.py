"""Particle centres from the class probabilities."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field

from cryoseg_dist.kernels.peaks import automatic_threshold, disc_mean, find_peaks
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.schema.work import ArraySpec, Read, Region, Unit, UnitResult

PARTICLE, FORBIDDEN = 1, slice(2, None)


class PickSettings(Settings):
    """Picking."""

    threshold: float | None = Field(default=None, ge=0, le=1)
    """Lowest score of a pick; chosen from the scores of all micrographs when not given."""
    lowest_score: float = Field(default=0.2, ge=0, le=1)
    """Candidates below this score are not kept at all."""
    highest_threshold: float = Field(default=0.5, ge=0, le=1)
    """The automatic threshold never exceeds this."""
    min_distance: float = Field(default=0.7, gt=0)
    """Closest distance of two picks, in particle diameters."""
    core_radius: float = Field(default=0.33, gt=0)
    """Radius of the label that the network was trained on, in particle diameters."""
    border: float = Field(default=0.4, ge=0)
    """Distance of a pick from the micrograph's edge, in particle diameters, at least."""
    veto: float = Field(default=0.5, gt=0, le=1)
    """Mean probability of carbon or contamination around a candidate at which it is refused."""


def most_picks(extent: tuple[int, int], pixel_size: float, diameter: float, settings: PickSettings) -> int:
    """Upper bound of the picks of a micrograph: a hexagonal packing at the smallest distance, and its border."""
    distance = settings.min_distance * diameter / pixel_size
    rows, columns = (n / distance + 2 for n in extent)
    return math.ceil(rows * columns * 2 / math.sqrt(3))


def array_spec(run: str, n_micrographs: int, n_picks: int) -> ArraySpec:
    """The array ``<run>/picks``: x, y in pixels of the micrograph and score, padded with NaN."""
    return ArraySpec(
        f"{run}/picks",
        (n_micrographs, n_picks, 3),
        ("micrograph", "pick", "value"),
        "float32",
        (1, n_picks, 3),
        (1, n_picks, 3),
        unit="px, px, score",
        doc="Candidate centres, best first; NaN beyond the last",
    )


def plan(run: str, probability: str, shape: tuple[int, ...], micrographs: Sequence[int], n_picks: int) -> list[Unit]:
    """One unit a micrograph; ``shape`` is that of the probability array."""
    return [
        Unit(
            key=f"pick/{m:06d}",
            reads={"probability": Region(probability, (m, 0, 0, 0), (m + 1, *shape[1:]))},
            writes={"picks": Region(f"{run}/picks", (m, 0, 0), (m + 1, n_picks, 3))},
            parameters={"index": m},
        )
        for m in micrographs
    ]


@dataclass(frozen=True, slots=True)
class PickStage:
    """Finds candidates in one micrograph.

    Attributes
    ----------
    settings : PickSettings
    diameter_px : float
        In pixels of the probabilities.
    scale : float
        Pixels of the micrograph a pixel of the probabilities.
    """

    settings: PickSettings
    diameter_px: float
    scale: float

    @property
    def name(self) -> str:
        """Stage name."""
        return "pick"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Nothing is shared."""
        return {}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> None:
        """Nothing is kept."""

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Find candidates; the record counts those found, refused and beyond the border."""
        probability = torch.from_numpy(inputs["probability"][0].astype(np.float32) / 255.0)
        s = self.settings
        core = s.core_radius * self.diameter_px
        peaks = find_peaks(probability[PARTICLE], core, s.min_distance * self.diameter_px, s.lowest_score)
        height, width = probability.shape[1:]
        edge = s.border * self.diameter_px
        inside = (peaks.x >= edge) & (peaks.y >= edge) & (peaks.x <= width - 1 - edge) & (peaks.y <= height - 1 - edge)
        forbidden = disc_mean(probability[FORBIDDEN].sum(dim=0), 0.5 * self.diameter_px)
        at = (peaks.y.round().long().clamp(0, height - 1), peaks.x.round().long().clamp(0, width - 1))
        clean = forbidden[at] < s.veto
        keep = inside & clean
        found = torch.stack((peaks.x * self.scale, peaks.y * self.scale, peaks.score), dim=1)[keep].numpy()
        out = np.full(unit.writes["picks"].shape, np.nan, dtype=np.float32)
        out[0, : len(found)] = found
        record = {
            "index": int(unit.parameters["index"]),
            "n_candidates": len(found),
            "n_refused": int((inside & ~clean).sum()),
            "n_border": int((~inside).sum()),
            "scores": [round(float(v), 3) for v in found[:: max(1, len(found) // 200), 2]],
        }
        return UnitResult({"picks": out}, record)


def choose_threshold(records: Sequence[Mapping[str, Any]], settings: PickSettings) -> float:
    """The score from which candidates are picks, from the scores of all micrographs."""
    if settings.threshold is not None:
        return settings.threshold
    scores = torch.tensor([s for record in records for s in record["scores"]])
    return automatic_threshold(scores, settings.lowest_score, max(settings.highest_threshold, settings.lowest_score))
