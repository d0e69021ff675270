"""Tables of particles, made here or elsewhere (RELION's STAR, cryoSPARC's .cs), and the images that they name.

Images are read where they are. Everything that a table lacks is told at once, before any work.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cryoseg_dist.errors import BadInputError, CryosegError
from cryoseg_dist.formats.cs import CORRECTIONS, read_cs
from cryoseg_dist.formats.images import image_header
from cryoseg_dist.formats.star import StarTables, read_star, require
from cryoseg_dist.pipeline.image_places import find_image
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.stored_images import places_of
from cryoseg_dist.schema import columns
from cryoseg_dist.schema.optics import NOT_MAGNIFIED, Optics
from cryoseg_dist.schema.work import ImageFile

# Faults of one kind that are spelled out.
FAULTS_SHOWN = 10
# Characters of a strange name that are repeated.
SHOWN = 80
# Beyond it no map fits a memory.
LARGEST_BOX = 4096
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
    "mag_00": (0.8, 1.2),
    "mag_01": (-0.2, 0.2),
    "mag_10": (-0.2, 0.2),
    "mag_11": (0.8, 1.2),
}
# What envelopes can be.
ENVELOPE_RANGES = {"ctf_scale": (0.0, 1000.0), "ctf_b_factor": (-2000.0, 20000.0)}
# Anisotropic magnification: entries of the matrix and what means none.
MAGNIFICATION = dict(zip(("mag_00", "mag_01", "mag_10", "mag_11"), NOT_MAGNIFIED, strict=True))
# Corrections that RELION applies and that are not applied here, with the value that means none.
NOT_APPLIED = {
    # Of particles they are applied.
    "rlnCtfScalefactor": 1.0,
    "rlnCtfBfactor": 0.0,
    **dict.fromkeys(CORRECTIONS, 0.0),
}


def read_particles(
    path: Path,
    diameter: float | None,
    *,
    poses: bool,
    passthrough: Sequence[Path] = (),
    classes: Collection[int] = (),
    roots: Sequence[Path] = (),
) -> Particles:
    """Particles of a STAR file or a cryoSPARC table, with images in the stacks that it names.

    Parameters
    ----------
    path : Path
        A table, whose image names are relative to its folder or to the nearest folder above in which the stack exists;
        or a project, whose exported particles are taken, with images from its arrays.
    diameter : float, optional
        A; the box when not given.
    poses : bool
        Angles are needed.
    passthrough : sequence of Path
        Further cryoSPARC tables of the same particles.
    classes : collection of int
        Numbers of the classes whose particles are taken; all particles when empty.
    roots : sequence of Path
        Folders that stacks may lie in, links followed; anywhere when empty.

    Raises
    ------
    BadInputError
        Lists every column and stack that is missing, or says what in the file is not supported.
    """
    tables = read_table(path, passthrough)
    stored = places_of(path) if path.is_dir() else None
    project, path = path, tables.path
    if classes:
        tables = of_classes(tables, classes)
    rows, optics = tables.rows, tables.optics
    where = str(path)
    faults = missing_columns(tables, (*IMAGE_COLUMNS, *(POSE_COLUMNS if poses else ())))
    sources: list[ImageFile] = []
    size = 0
    if rows.empty:
        faults.append("no particles")
    elif "image_name" in rows and stored is not None:
        # The sections of the exported stack are numbered as the places are.
        section = rows["image_name"].str.partition("@")[0].astype(np.int64).to_numpy() - 1
        rows, size = rows.assign(store_index=stored[2][section]), stored[1]
    elif "image_name" in rows:
        sources, size, problems = find_images(list(rows["image_name"]), path, roots)
        faults += problems
    if faults:
        raise BadInputError(where, "particles with their columns and images", "; ".join(faults))
    used = optics[optics["optics_group"].isin(rows["optics_group"])]
    faults = unsupported(rows, used, size, magnified=poses)
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
        content_name((path, *passthrough), sources, classes),
        table,
        one,
        size,
        size * one.pixel_size if diameter is None else diameter,
        sources=None if stored is not None else tuple(sources),
        array=None if stored is None else stored[0],
        project=None if stored is None else str(project.absolute()),
        optics_groups=optics,
        groups=groups,
    )


def read_table(path: Path, passthrough: Sequence[Path] = ()) -> StarTables:
    """A STAR file, that of a project, or a cryoSPARC table with its passthrough tables.

    Raises
    ------
    BadInputError
        Neither of them, or passthrough tables beside a STAR file.
    """
    if path.is_dir():
        path = path / "export" / "particles.star"
    if path.suffix.lower() == ".cs":
        return read_cs(path, passthrough)
    if passthrough:
        raise BadInputError("--passthrough", "a cryoSPARC table (.cs) to add to", str(path))
    return read_star(path)


def class_numbers(text: str, tables: StarTables) -> list[int]:
    """Class numbers of ``1,3``, or those of the table for ``all``.

    Raises
    ------
    BadInputError
        Another text, or a table without classes.
    """
    require(tables.rows, ("class_number",), str(tables.path))
    if text.strip().lower() == "all":
        return sorted({int(n) for n in tables.rows["class_number"]})
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise BadInputError("--classes", "numbers such as 1,3, or all", repr(text))
    return sorted({int(part) for part in parts})


def of_classes(tables: StarTables, classes: Collection[int]) -> StarTables:
    """The particles of some classes.

    Raises
    ------
    BadInputError
        No class numbers, or a class without particles.
    """
    require(tables.rows, ("class_number",), str(tables.path))
    held = set(tables.rows["class_number"])
    empty = sorted(set(classes) - held)
    if empty:
        raise BadInputError(
            "--classes",
            f"classes of {tables.path} ({', '.join(map(str, sorted(held)))})",
            ", ".join(map(str, empty)),
        )
    return replace(tables, rows=tables.rows[tables.rows["class_number"].isin(classes)].reset_index(drop=True))


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
        magnification_of(row),
    )


def magnification_of(row: pd.Series) -> tuple[float, float, float, float]:
    """The magnification matrix of a row of the optics table by rows."""
    a, b, c, d = (float(row.get(name, neutral)) for name, neutral in MAGNIFICATION.items())
    return a, b, c, d


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


def unsupported(rows: pd.DataFrame, optics: pd.DataFrame, size: int, *, magnified: bool) -> list[str]:
    """What is in the file but cannot be honoured; anisotropic magnification where ``magnified`` alone."""
    labels = {c.name: c.label for c in columns.OPTICS + columns.PARTICLES}
    faults = []
    for name in ("pixel_size", "image_size"):
        if name in optics and optics[name].nunique() > 1:
            faults.append(f"optics groups of different _{labels[name]} ({sorted(optics[name].unique().tolist())})")
    if "image_size" in optics and optics["image_size"].nunique() == 1 and int(optics["image_size"].iloc[0]) != size:
        faults.append(f"_rlnImageSize {int(optics['image_size'].iloc[0])}, but images of {size} pixels")
    for table, ranges in ((optics, RANGES), (rows, ENVELOPE_RANGES)):
        for name, (low, high) in ranges.items():
            values = table[name] if name in table else pd.Series(dtype=float)
            outside = values[~values.between(low, high)]
            if len(outside):
                faults.append(f"_{labels[name]} {outside.iloc[0]:g}, not {low:g} to {high:g}")
    if "ctf_premultiplied" in optics and (optics["ctf_premultiplied"] != 0).any():
        faults.append("images that were multiplied by their CTF (_rlnCtfDataAreCtfPremultiplied 1)")
    for name, neutral in NOT_APPLIED.items():
        for table in (rows, optics):
            if name in table and not (pd.to_numeric(table[name], errors="coerce") == neutral).all():
                faults.append(f"_{labels.get(name, name)}, a correction that is not applied here")
    if not magnified and any((optics[n] != neutral).any() for n, neutral in MAGNIFICATION.items() if n in optics):
        faults.append("_rlnMagMat00 to 11, a correction that reconstruction applies and refinement does not")
    if "random_subset" in rows and set(rows["random_subset"]) not in ({0}, {1, 2}):
        faults.append(f"_rlnRandomSubset of {sorted(set(rows['random_subset']))}, not 1 and 2")
    return faults


def find_images(names: list[str], table: Path, roots: Sequence[Path] = ()) -> tuple[list[ImageFile], int, list[str]]:
    """Where each image is, the box, and what is wrong."""
    stacks: dict[str, Path | None] = {}
    last: dict[str, int] = {}
    sections = np.empty(len(names), dtype=np.int64)
    stack_names = []
    for i, name in enumerate(names):
        section, at, stack = name.partition("@")
        # Digits of other scripts count as digits for Python, not here; no stack has 10^9 sections.
        if not at or not (section.isascii() and section.isdecimal()) or not 0 < int(section[:10]) < 10**9:
            shown = repr(name[:SHOWN])
            return [], 0, [f"image name {shown} in row {i + 1}, not section@stack with sections from 1"]
        sections[i] = int(section) - 1
        stack_names.append(stack)
        last[stack] = max(last.get(stack, 0), int(section))
    boxes: dict[tuple[int, int], str] = {}
    absent, faults = [], []
    for stack, highest in last.items():
        try:
            stacks[stack] = found = find_image(stack, table.parent, roots)
            if found is None:
                absent.append(stack[:SHOWN])
                continue
            n, height, width = image_header(found).shape
        except CryosegError as fault:
            faults.append(str(fault))
            continue
        boxes.setdefault((height, width), stack)
        if highest > n:
            faults.append(f"section {highest} of {stack}, which holds {n}")
    if absent:
        more = f" and {len(absent) - FAULTS_SHOWN} more" if len(absent) > FAULTS_SHOWN else ""
        faults.append(f"no stack {', '.join(absent[:FAULTS_SHOWN])}{more} in {table.parent.absolute()} or above")
    if len(boxes) > 1 or any(h != w for h, w in boxes):
        sizes = [f"{b} in {s}" for b, s in boxes.items()]
        faults.append("images that are not squares of one size: " + ", ".join(sizes[:FAULTS_SHOWN]))
    if not faults and next(iter(boxes))[0] > LARGEST_BOX:
        faults.append(f"images of {next(iter(boxes))[0]} pixels, more than {LARGEST_BOX}")
    if faults:
        rest = [f"{len(faults) - FAULTS_SHOWN} more faults"] if len(faults) > FAULTS_SHOWN else []
        return [], 0, faults[:FAULTS_SHOWN] + rest
    sources = [ImageFile(str(stacks[s]), (int(k),)) for s, k in zip(stack_names, sections, strict=True)]
    return sources, next(iter(boxes))[0], []


def content_name(tables: Sequence[Path], sources: list[ImageFile], classes: Collection[int]) -> str:
    """A digest of the tables, the choice of classes, and the stacks' names, sizes and times."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in tables))
    for stack in sorted({s.path for s in sources}):
        stat = Path(stack).stat()
        digest.update(f"{stack}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    if classes:
        digest.update(f"classes {sorted(classes)}".encode())
    return f"star-{digest.hexdigest()[:16]}"


def findable(particles: Particles, folder: Path) -> Particles:
    """Particles whose image names lead to their stacks from a folder: kept where they do, absolute elsewhere."""
    if particles.project is not None:
        stack = Path(particles.project) / "export" / "particles.mrcs"
        sections = particles.table["image_name"].str.partition("@")[0]
        return replace(particles, table=particles.table.assign(image_name=sections + f"@{stack}"))
    stacks: dict[str, str] = {}
    names = []
    for name, source in zip(particles.table["image_name"], particles.sources or (), strict=True):
        section, _, stack = name.partition("@")
        if stack not in stacks:
            kept = find_image(stack, folder) == Path(source.path)
            stacks[stack] = stack if kept else source.path
        names.append(f"{section}@{stacks[stack]}")
    return replace(particles, table=particles.table.assign(image_name=names))
