"""From a STAR file of particles, made here or elsewhere, to maps: reconstruction and refinement.

Images are read where they are. Everything that a file lacks is told at once, before any work.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryoseg_dist.errors import BadInputError, CryosegError
from cryoseg_dist.formats.images import image_header
from cryoseg_dist.formats.star import StarTables, read_star
from cryoseg_dist.pipeline import export
from cryoseg_dist.pipeline.maps import Refined, accumulation, half_sets_of, reference_map, run_refine
from cryoseg_dist.pipeline.pages import write_report
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.run import RunResult, finish_maps
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.events import StageFinished, StageStarted, UnitFinished
from cryoseg_dist.schema import columns
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ImageFile, Outcome, Unit
from cryoseg_dist.stages.reconstruct import FoldStage, complete, maps_of_sums, pose_table
from cryoseg_dist.store.ledger import Ledger

# Images a fold reads at once, and images of a fold at most: what an interruption can cost.
PART_IMAGES, FOLD_IMAGES = 256, 16384
# Faults of one kind that are spelled out.
FAULTS_SHOWN = 10
# Zernike polynomials of an optics group: to the ninth degree.
MOST_COEFFICIENTS = 60
IMAGE_COLUMNS = ("image_name", "defocus_u", "defocus_v", "defocus_angle")
POSE_COLUMNS = ("rot", "tilt", "psi")
OPTICS_COLUMNS = ("voltage", "spherical_aberration", "amplitude_contrast", "pixel_size")
# Columns that may be absent, and what absence means.
OPTIONAL = {"phase_shift": 0.0, "origin_x": 0.0, "origin_y": 0.0}
# What optics can be; beyond it a table lies.
RANGES = {
    "voltage": (20.0, 1500.0),
    "spherical_aberration": (0.0, 20.0),
    "amplitude_contrast": (0.0, 0.99),
    "pixel_size": (0.05, 50.0),
}
# Corrections that RELION applies and that are not applied here, with the value that means none.
NOT_APPLIED = {
    "rlnMagMat00": 1.0,
    "rlnMagMat01": 0.0,
    "rlnMagMat10": 0.0,
    "rlnMagMat11": 1.0,
    "ctf_b_factor": 0.0,
    "rlnCtfScalefactor": 1.0,
}


def read_particles(path: Path, diameter: float | None, *, poses: bool) -> Particles:
    """Particles of a STAR file, with images in the stacks that it names.

    Parameters
    ----------
    path : Path
        Image names are relative to its folder, or to the nearest folder above in which the stack exists.
    diameter : float, optional
        A; the box when not given.
    poses : bool
        Angles are needed.

    Raises
    ------
    BadInputError
        Lists every column and stack that is missing, or says what in the file is not supported.
    """
    tables = read_star(path)
    rows, optics = tables.rows, tables.optics
    where = str(path)
    faults = missing_columns(tables, (*IMAGE_COLUMNS, *(POSE_COLUMNS if poses else ())))
    sources: list[ImageFile] = []
    size = 0
    if rows.empty:
        faults.append("no particles")
    elif "image_name" in rows:
        sources, size, problems = find_images(list(rows["image_name"]), path)
        faults += problems
    if faults:
        raise BadInputError(where, "particles with their columns and images", "; ".join(faults))
    used = optics[optics["optics_group"].isin(rows["optics_group"])]
    faults = unsupported(rows, used, size)
    if faults:
        raise BadInputError(
            where, "particles that can be reconstructed together", "; ".join(faults), "Split or correct the file."
        )
    groups = {int(row["optics_group"]): optics_of(row) for _, row in used.iterrows()}
    table = rows.assign(**{name: value for name, value in OPTIONAL.items() if name not in rows})
    if "random_subset" in table and not set(table["random_subset"]) - {0}:
        table = table.drop(columns="random_subset")
    one = next(iter(groups.values()))
    return Particles(
        content_name(path, sources),
        table,
        one,
        size,
        size * one.pixel_size if diameter is None else diameter,
        sources=tuple(sources),
        optics_groups=optics,
        groups=groups,
    )


def optics_of(row: pd.Series) -> Optics:
    """A row of the optics table with all that is corrected for.

    Raises
    ------
    BadInputError
        Aberrations that are no list of numbers.
    """
    return Optics(
        float(row["pixel_size"]),
        float(row["voltage"]),
        float(row["spherical_aberration"]),
        float(row["amplitude_contrast"]),
        (float(row.get("beam_tilt_x", 0.0)), float(row.get("beam_tilt_y", 0.0))),
        coefficients(row.get("odd_zernike", "")),
        coefficients(row.get("even_zernike", "")),
    )


def coefficients(text: str) -> tuple[float, ...]:
    """Numbers of ``[a, b, ...]``; none of an empty list.

    Raises
    ------
    BadInputError
        Something else, or more than any microscope needs.
    """
    parts = [part for part in text.strip("[] ").split(",") if part.strip()]
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = (np.nan,)
    if not np.isfinite(values).all() or len(values) > MOST_COEFFICIENTS:
        raise BadInputError("aberrations", f"at most {MOST_COEFFICIENTS} numbers as [a, b, ...]", repr(text[:80]))
    return values


def missing_columns(tables: StarTables, names: tuple[str, ...]) -> list[str]:
    """What the tables lack, in RELION's labels."""
    labels = {c.name: c.label for c in columns.OPTICS + columns.PARTICLES}
    lacking = [f"_{labels[n]}" for n in names if n not in tables.rows]
    of_optics = [f"_{labels[n]}" for n in OPTICS_COLUMNS if n not in tables.optics]
    faults = [f"no column {', '.join(lacking)}"] if lacking else []
    return faults + ([f"no column {', '.join(of_optics)} in data_optics"] if of_optics else [])


def unsupported(rows: pd.DataFrame, optics: pd.DataFrame, size: int) -> list[str]:
    """What is in the file but cannot be honoured."""
    labels = {c.name: c.label for c in columns.OPTICS + columns.PARTICLES}
    faults = []
    for name in ("pixel_size", "image_size"):
        if name in optics and optics[name].nunique() > 1:
            faults.append(f"optics groups of different _{labels[name]} ({sorted(optics[name].unique().tolist())})")
    if "image_size" in optics and optics["image_size"].nunique() == 1 and int(optics["image_size"].iloc[0]) != size:
        faults.append(f"_rlnImageSize {int(optics['image_size'].iloc[0])}, but images of {size} pixels")
    for name, (low, high) in RANGES.items():
        outside = optics[name][~optics[name].between(low, high)]
        if len(outside):
            faults.append(f"_{labels[name]} {outside.iloc[0]:g}, not {low:g} to {high:g}")
    if "ctf_premultiplied" in optics and (optics["ctf_premultiplied"] != 0).any():
        faults.append("images that were multiplied by their CTF (_rlnCtfDataAreCtfPremultiplied 1)")
    for name, neutral in NOT_APPLIED.items():
        for table in (rows, optics):
            if name in table and not (pd.to_numeric(table[name], errors="coerce") == neutral).all():
                faults.append(f"_{labels.get(name, name)}, a correction that is not applied here")
    if "random_subset" in rows and set(rows["random_subset"]) not in ({0}, {1, 2}):
        faults.append(f"_rlnRandomSubset of {sorted(set(rows['random_subset']))}, not 1 and 2")
    return faults


def find_images(names: list[str], star: Path) -> tuple[list[ImageFile], int, list[str]]:
    """Where each image is, the box, and what is wrong."""
    stacks: dict[str, Path | None] = {}
    last: dict[str, int] = {}
    sections = np.empty(len(names), dtype=np.int64)
    stack_names = []
    for i, name in enumerate(names):
        section, at, stack = name.partition("@")
        if not at or not section.isdigit() or int(section) < 1:
            return [], 0, [f"image name {name!r} in row {i + 1}, not section@stack with sections from 1"]
        sections[i] = int(section) - 1
        stack_names.append(stack)
        last[stack] = max(last.get(stack, 0), int(section))
    boxes: dict[tuple[int, int], str] = {}
    absent, faults = [], []
    for stack, highest in last.items():
        stacks[stack] = found = find_stack(stack, star.parent)
        if found is None:
            absent.append(stack)
            continue
        try:
            n, height, width = image_header(found).shape
        except CryosegError as fault:
            faults.append(str(fault))
            continue
        boxes.setdefault((height, width), stack)
        if highest > n:
            faults.append(f"section {highest} of {stack}, which holds {n}")
    if absent:
        more = f" and {len(absent) - FAULTS_SHOWN} more" if len(absent) > FAULTS_SHOWN else ""
        faults.append(f"no stack {', '.join(absent[:FAULTS_SHOWN])}{more} in {star.parent.absolute()} or above")
    if len(boxes) > 1 or any(h != w for h, w in boxes):
        faults.append("images that are not squares of one size: " + ", ".join(f"{b} in {s}" for b, s in boxes.items()))
    if faults:
        return [], 0, faults
    sources = [ImageFile(str(stacks[s]), (int(k),)) for s, k in zip(stack_names, sections, strict=True)]
    return sources, next(iter(boxes))[0], []


def find_stack(name: str, folder: Path) -> Path | None:
    """A stack in a folder or the nearest one above it, as names in a RELION project start from the project."""
    start = folder.absolute()
    for place in (start, *start.parents):
        if (place / name).is_file():
            return place / name
    return None


def content_name(path: Path, sources: list[ImageFile]) -> str:
    """A digest of the table, and of the stacks' names, sizes and times."""
    digest = hashlib.sha256(path.read_bytes())
    for stack in sorted({s.path for s in sources}):
        stat = Path(stack).stat()
        digest.update(f"{stack}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return f"star-{digest.hexdigest()[:16]}"


def plan_folds(
    run: str, particles: Particles, half: np.ndarray, poses: np.ndarray, n_folds: int
) -> dict[str, list[Unit]]:
    """Folds of each half set: stretches of particles, read in parts."""
    groups: dict[str, list[Unit]] = {}
    for h in (0, 1):
        groups[f"half{h + 1}"] = folds = []
        for number, members in enumerate(np.array_split(np.flatnonzero(half == h), n_folds)):
            pieces = [members[i : i + PART_IMAGES] for i in range(0, len(members), PART_IMAGES)]
            parts = [{"ctf": particles.transfer(rows), "poses": poses[rows]} for rows in pieces]
            reads = {f"images/{i}": particles.read_of(rows)[0] for i, rows in enumerate(pieces)}
            folds.append(Unit(f"{run}/{h}/{number:04d}", reads, {}, {"half": h, "parts": parts}))
    return groups


def run_reconstruct(session: Session, particles: Particles, max_resolution: float | None) -> Refined:
    """Half maps from the poses of the table; finished folds are not computed again.

    Parameters
    ----------
    max_resolution : float, optional
        A; finer frequencies are left out.
    """
    s = session.settings
    settings, symmetry = s.reconstruct, s.particle.symmetry
    size, pixel, padding = particles.size, particles.optics.pixel_size, settings.padding
    max_shell = None if max_resolution is None else min(size / 2, size * pixel / max_resolution)
    half = half_sets_of(particles, s.refine.seed)
    config = {"padding": padding, "max_shell": max_shell, "seed": s.refine.seed}
    run = session.run_id("reconstruct", config, {"particles": particles.run})
    accumulate = accumulation(session)
    n_largest = max(int((half == h).sum()) for h in (0, 1))
    # Held, so that a run goes on with its folds whatever the number of workers is now.
    held = session.project.read_json(f"state/{run}/folds.json")
    if held is None:
        wanted = max(-(-settings.folds_per_worker * accumulate.workers // 2), -(-n_largest // FOLD_IMAGES))
        held = {"folds": max(1, min(wanted, n_largest))}
        session.project.write_json(f"state/{run}/folds.json", held)
    t = particles.table
    poses = pose_table(t["rot"], t["tilt"], t["psi"], t["origin_x"], t["origin_y"], pixel)
    groups = plan_folds(run, particles, half, poses, int(held["folds"]))
    done = len(Ledger(session.project.ledger_path(run)).load())
    started = time.monotonic()
    session.emit(StageStarted("reconstruct", run, sum(map(len, groups.values())), done))

    def tell(_group: str, units: Any) -> None:
        for unit in units:
            session.emit(UnitFinished("reconstruct", run, unit.key, Outcome.DONE, 0.0, 0, 0, 1, ""))

    stage = FoldStage(particles.microscope, size, padding, max_shell=max_shell)
    sums = accumulate.sums(stage, groups, checkpoint=run, on_fold=tell)
    totals = [complete(sums[name], symmetry, size, padding) for name in groups]
    totals.append(totals[0] + totals[1])
    half1, half2, full = maps_of_sums(totals, size, padding, settings.wiener, max_shell)
    outcomes = {str(Outcome.DONE): sum(map(len, groups.values()))}
    session.emit(StageFinished("reconstruct", run, outcomes, time.monotonic() - started))
    table = t.assign(random_subset=half + 1)
    return Refined(run, replace(particles, table=table), half1, half2, (), full)


def reconstruct(session: Session, particles: Particles, max_resolution: float | None = None) -> RunResult:
    """Reconstruct from known poses and export the maps."""
    started = time.monotonic()
    refined = run_reconstruct(session, particles, max_resolution)
    return export_all(session, refined, {"reconstruct": round(time.monotonic() - started, 2)})


def refine(session: Session, particles: Particles, reference: Path) -> RunResult:
    """Refine particles against a map and export the maps.

    Raises
    ------
    BadInputError
        The reference is no cubic map.
    """
    started = time.monotonic()
    stat = reference.stat()
    name = f"reference:{reference.absolute()}:{stat.st_size}:{stat.st_mtime_ns}"
    volume = reference_map(reference, particles.size, particles.optics.pixel_size)
    refined = run_refine(session, particles, volume, name, any_scale=True)
    return export_all(session, refined, {"refine": round(time.monotonic() - started, 2)})


def findable(particles: Particles, folder: Path) -> Particles:
    """Particles whose image names lead to their stacks from a folder: kept where they do, absolute elsewhere."""
    stacks: dict[str, str] = {}
    names = []
    for name, source in zip(particles.table["image_name"], particles.sources or (), strict=True):
        section, _, stack = name.partition("@")
        if stack not in stacks:
            kept = find_stack(stack, folder) == Path(source.path)
            stacks[stack] = stack if kept else source.path
        names.append(f"{section}@{stacks[stack]}")
    return replace(particles, table=particles.table.assign(image_name=names))


def export_all(session: Session, refined: Refined, seconds: Mapping[str, float]) -> RunResult:
    """Post-process half maps and write ``export``."""
    refined = replace(refined, particles=findable(refined.particles, session.project.export))
    result = RunResult(session, particles=refined.particles, refined=refined, seconds=dict(seconds))
    started = time.monotonic()
    result.maps = finish_maps(session, refined)
    result.seconds["postprocess"] = round(time.monotonic() - started, 2)
    write_report(session, result)
    export.export_result(session.project.export, result.figures())
    return result
