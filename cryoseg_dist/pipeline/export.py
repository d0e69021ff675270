"""The files that others script against: ``P/export``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryoseg_dist.formats.fsc_files import write_fsc_star, write_fsc_xml
from cryoseg_dist.formats.mrc import create_stack, write_stack, write_volume
from cryoseg_dist.formats.star import write_star
from cryoseg_dist.pipeline.maps import Refined
from cryoseg_dist.pipeline.micrographs import CtfFits, Micrographs, Picks
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.provenance import Provenance
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.reading import read
from cryoseg_dist.schema import columns
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.stages.postprocess import PostprocessResult
from cryoseg_dist.store.checksums import write_sums
from cryoseg_dist.store.project import write_atomically

STACK_BATCH = 1024
# Resolution in A written for a fit that holds nowhere.
NO_RINGS = 100.0


def optics_table(optics: Optics, size: int | None = None) -> pd.DataFrame:
    """The optics group as RELION 3.1 has it: of particles where a box is given, of micrographs otherwise."""
    row: dict[str, Any] = {
        "optics_group_name": "opticsGroup1",
        "optics_group": 1,
        "voltage": optics.voltage,
        "spherical_aberration": optics.spherical_aberration,
        "amplitude_contrast": optics.amplitude_contrast,
    }
    if size is None:
        row["micrograph_pixel_size"] = optics.pixel_size
    else:
        row |= {"pixel_size": optics.pixel_size, "image_size": size, "image_dimensionality": 2}
    return pd.DataFrame([row])


def export_ctf(path: Path, micrographs: Micrographs, fits: CtfFits, optics: Optics, made: Provenance) -> None:
    """``micrographs_ctf.star``: every micrograph that was accepted."""
    names = (
        "defocus_u",
        "defocus_v",
        "defocus_angle",
        "phase_shift",
        "ctf_figure_of_merit",
        "ctf_max_resolution",
        "ctf_astigmatism",
    )
    rows = [
        {
            "micrograph_name": micrographs.paths[i],
            "optics_group": 1,
            **{n: NO_RINGS if fits.records[i][n] is None else fits.records[i][n] for n in names},
        }
        for i in fits.accepted
    ]
    write_star(path, {"optics": optics_table(optics), "micrographs": pd.DataFrame(rows)}, made.lines())


def export_picks(path: Path, micrographs: Micrographs, picks: Picks, optics: Optics, made: Provenance) -> None:
    """``picks.star``: all picks, with the micrograph that each lies on, named as in ``micrographs_ctf.star``."""
    table = pd.DataFrame(
        {
            "micrograph_name": np.array([str(p) for p in micrographs.paths])[picks.index],
            "coordinate_x": picks.x,
            "coordinate_y": picks.y,
            "autopick_figure_of_merit": picks.score,
            "optics_group": 1,
        }
    )
    write_star(path, {"optics": optics_table(optics), "particles": table}, made.lines())


def export_particles(path: Path, particles: Particles, made: Provenance, *, stack: str | None = None) -> None:
    """``particles.star``, with the columns RELION knows and those that came with the particles.

    Parameters
    ----------
    stack : str, optional
        Name of the stack that the images were written to, in the table's order. Not given for images in foreign
        stacks: their names are kept.
    """
    table = particles.table.drop(columns=[c for c in ("store_index",) if c in particles.table])
    if stack is not None:
        table = table.assign(image_name=[f"{i:06d}@{stack}" for i in range(1, len(table) + 1)])
    first = [c.name for c in columns.PARTICLES if c.name in table]
    table = table[[*first, *(c for c in table if c not in first)]]
    groups = particles.optics_groups
    optics = optics_table(particles.optics, particles.size) if groups is None else groups
    write_star(path, {"optics": optics, "particles": table}, made.lines())


def export_stack(session: Session, path: Path, particles: Particles, made: Provenance) -> None:
    """``particles.mrcs``, float32, which every version of RELION reads."""
    partial = path.with_name(f".{path.name}.partial")
    out = create_stack(partial, len(particles), particles.size, particles.optics.pixel_size, made.lines())
    for first in range(0, len(particles), STACK_BATCH):
        rows = np.arange(first, min(first + STACK_BATCH, len(particles)))
        source, some = particles.read_of(rows)
        images = read(session.project, source)
        out[rows] = images if some is None else images[some]
    out.flush()
    partial.replace(path)


def export_averages(path: Path, averages: np.ndarray, pixel_size: float, made: Provenance) -> None:
    """``classes.mrcs``: class averages in the order of their numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_stack(path, averages.astype(np.float32), pixel_size, made.lines())


def export_maps(
    folder: Path, refined: Refined, result: PostprocessResult, made: Provenance, *, half_maps: bool = True
) -> None:
    """Maps, mask and FSC."""
    pixel = refined.particles.optics.pixel_size
    size = refined.particles.size
    for name, volume in (
        ("map.mrc", result.sharpened),
        ("map_unsharpened.mrc", result.unsharpened),
        *((("half1.mrc", refined.half1), ("half2.mrc", refined.half2)) if half_maps else ()),
        ("mask.mrc", result.mask),
    ):
        write_volume(folder / name, volume.numpy(), pixel, made.lines())
    curves = {name: curve.numpy() for name, curve in result.curves.items()}
    figures = {"rlnFinalResolution": result.resolution, "rlnBfactorUsedForSharpening": result.b_factor or 0.0}
    write_fsc_star(folder / "fsc.star", curves, size, pixel, figures, comments=made.lines())
    title = "Corrected half-map FSC"
    write_fsc_xml(folder / "fsc.xml", curves["corrected"], size, pixel, title, made.lines())


def export_result(folder: Path, figures: Mapping[str, Any]) -> None:
    """``result.json``: every figure of the run; and, last of all, the checksums of everything in the folder."""
    write_atomically(folder / "result.json", json.dumps(figures, indent=1, sort_keys=True, default=str) + "\n")
    write_sums(folder)
