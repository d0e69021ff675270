"""How large 2D classes become, and what the choice among them keeps of particles and of junk put among them.

Run from the checkout, on a project whose particles were extracted (``cryoseg extract ... --project P``)::

    python tests/benchmarks/class_sizes.py --project P --labels COORDS --junk 15 15

Junk are windows of the same micrographs: so many a micrograph between particles, about half a diameter from the nearest, and so
many on ice, further from all. Particles are the picks, and the listed centres where there are lists of them.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from cryoseg_dist.formats.coordinates import read_coordinates
from cryoseg_dist.pipeline.classes import run_classify
from cryoseg_dist.pipeline.config import RunSettings
from cryoseg_dist.pipeline.micrographs import Micrographs, Picks, require_diameter, run_ctf, run_ingest, run_pick
from cryoseg_dist.pipeline.particles import run_extract
from cryoseg_dist.pipeline.session import open_session

# Kinds of junk by the distance of their centres from the nearest particle, in diameters; least distance between two of them.
KINDS = {"between": (0.46, 0.62), "ice": (0.77, np.inf)}
APART = 0.4
# Scores that tell junk from picks.
MARKS = {"between": -1.0, "ice": -2.0}


def windows_off(known: np.ndarray, shape: tuple[int, int], near: float, far: float, apart: float, n: int) -> np.ndarray:
    """At most ``n`` centres (x, y) in pixels whose nearest known one lies between two distances."""
    generator = np.random.default_rng(0)
    places = generator.uniform((apart, apart), (shape[1] - apart, shape[0] - apart), (20_000, 2))
    distance, _ = cKDTree(known).query(places)
    taken: list[np.ndarray] = []
    for place in places[(distance > near) & (distance < far)]:
        if len(taken) == n:
            break
        if all(np.hypot(*(place - other)) >= apart for other in taken):
            taken.append(place)
    return np.array(taken).reshape(-1, 2)


def with_junk(
    picks: Picks, micrographs: Micrographs, labels: Path | None, numbers: dict[str, int], diameter_px: float
) -> Picks:
    """The picks, and windows off them with the scores of junk."""
    rows = [np.column_stack((picks.index, picks.x, picks.y, picks.score))]
    for m in np.unique(picks.index):
        known = np.column_stack((picks.x, picks.y))[picks.index == m]
        listed = sorted(labels.glob(f"{Path(micrographs.paths[m]).stem}.*")) if labels is not None else []
        known = np.concatenate([known, *(read_coordinates(path) for path in listed)])
        for kind, (near, far) in KINDS.items():
            centres = windows_off(
                known, micrographs.shape, near * diameter_px, far * diameter_px, APART * diameter_px, numbers[kind]
            )
            rows.append(np.column_stack((np.full(len(centres), m), centres, np.full(len(centres), MARKS[kind]))))
    every = np.concatenate(rows)
    every = every[np.argsort(every[:, 0], kind="stable")]
    name = f"{picks.run}+{numbers}"
    return replace(picks, run=name, index=every[:, 0].astype(int), x=every[:, 1], y=every[:, 2], score=every[:, 3])


def main() -> None:
    """Parse the command line, add junk, classify and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="folder of known centres, a file a micrograph")
    parser.add_argument("--junk", type=int, nargs=2, default=(15, 15), metavar=("BETWEEN", "ICE"), help="a micrograph")
    parser.add_argument("--classify", type=json.loads, default={}, help="settings of the classification, as JSON")
    options = parser.parse_args()
    given = json.loads((options.project / "settings.json").read_text())
    given["engine"] = {"engine": "inline"}
    # Not those of the project, which an earlier call may have left.
    given["classify"] = options.classify
    settings = RunSettings.model_validate(given)
    with open_session(settings, options.project, [], ["class_sizes"]) as session:
        micrographs = run_ingest(session)
        fits = run_ctf(session, micrographs)
        picks = run_pick(session, micrographs, fits)
        diameter_px = require_diameter(session) / settings.data.pixel_size
        picks = with_junk(picks, micrographs, options.labels, dict(zip(KINDS, options.junk, strict=True)), diameter_px)
        particles = run_extract(session, micrographs, fits, picks)
        classified = run_classify(session, particles)
    counts = classified.counts
    print(
        f"{len(particles)} windows in {len(counts)} classes; largest over mean {counts.max() / counts.mean():.2f}; "
        f"selected {int(classified.selected.sum())}"
    )
    score, kept = (t.table["autopick_figure_of_merit"].to_numpy() for t in (particles, classified.particles))
    for kind, value in (("particles", None), *MARKS.items()):
        n, n_kept = (int((v >= 0).sum() if value is None else (v == value).sum()) for v in (score, kept))
        print(f"{kind}: {n}, kept {n_kept / max(1, n):.3f}")


if __name__ == "__main__":
    main()
