"""Images of a project's exported particles, in its arrays: read from there, on disk or in an object store."""

from pathlib import Path

import numpy as np

from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store.project import Project

# Says which array holds the images of ``export/particles.star``, and which where each of them is in it.
EXPORTED = "state/exported.json"
PLACES_A_SHARD = 1 << 20


def keep_places(project: Project, run: str, particles: Particles) -> None:
    """Keep where in the store the images of the exported table are."""
    index = particles.table["store_index"].to_numpy(np.int64)
    name, shard = f"{run}/exported", (min(len(index), PLACES_A_SHARD),)
    project.remove(name)
    project.create(
        ArraySpec(name, index.shape, ("particle",), "int64", shard, shard, doc="Index of exported particles")
    )
    project.write(Region(name, (0,), index.shape), index)
    project.write_json(EXPORTED, {"images": particles.array, "places": name})


def places_of(root: Path) -> tuple[str, int, np.ndarray] | None:
    """Array of the images of a project, their box, and the place of each; None where it kept none.

    Raises
    ------
    BadInputError
        No project.
    """
    if not (root / EXPORTED).is_file():
        return None
    project = Project(root)
    held = project.read_json(EXPORTED) or {}
    images, places = str(held["images"]), str(held["places"])
    return images, project.shape(images)[-1], project.read(project.whole(places))
