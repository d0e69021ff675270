"""STAR files of RELION 3.0, 3.1 and later, in this package's column names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.schema import columns
from cryoseg_dist.schema.columns import Column
from cryoseg_dist.schema.work import ImageFile

OLD_OPTICS = ("voltage", "spherical_aberration", "amplitude_contrast")


@dataclass(frozen=True)
class StarTables:
    """A STAR file's optics groups and rows.

    Attributes
    ----------
    optics : DataFrame
        One row a group, with internal column names; empty where the file has none.
    rows : DataFrame
        Particles or micrographs. Labels that this package does not know keep their RELION name.
    path : Path
    """

    optics: pd.DataFrame
    rows: pd.DataFrame
    path: Path


def _renamed(table: pd.DataFrame, known: Sequence[Column], to_internal: bool) -> pd.DataFrame:
    names = {c.label: c.name for c in known} if to_internal else {c.name: c.label for c in known}
    return table.rename(columns=names)


def _typed(table: pd.DataFrame, known: Sequence[Column], where: str) -> pd.DataFrame:
    out = table.copy()
    for column in known:
        if column.name not in out:
            continue
        if column.dtype == "str":
            out[column.name] = out[column.name].astype(str)
            continue
        values = pd.to_numeric(out[column.name], errors="coerce")
        if values.isna().any():
            row = int(np.argmax(values.isna().to_numpy()))
            raise BadInputError(
                f"{where}: {column.label}", "numbers", f"{out[column.name].iloc[row]!r} in row {row + 1}"
            )
        out[column.name] = values.astype(column.dtype)
    return out


def read_star(path: Path) -> StarTables:
    """Read particles or micrographs with their optics.

    RELION 3.0 files, which hold optics in every row and origins in pixels, come out like 3.1 files.

    Raises
    ------
    BadInputError
        Missing file, no table, or text where numbers belong.
    """
    where = str(path)
    if not path.is_file():
        raise BadInputError(where, "a STAR file", "no such file")
    try:
        blocks = starfile.read(path, always_dict=True)
    except Exception as fault:  # the parser raises many kinds on text that is no STAR
        raise BadInputError(where, "a STAR file", f"{type(fault).__name__}: {fault}") from None
    tables = {name: b if isinstance(b, pd.DataFrame) else pd.DataFrame([b]) for name, b in blocks.items()}
    optics = tables.pop("optics", pd.DataFrame())
    named = [tables[n] for n in ("particles", "micrographs") if n in tables]
    candidates = named or [t for t in tables.values() if len(t.columns)]
    if not candidates:
        raise BadInputError(where, "a table of particles or micrographs", f"tables {sorted(blocks)}")
    rows = _renamed(candidates[0].reset_index(drop=True), columns.PARTICLES + columns.MICROGRAPHS, True)
    optics = _renamed(optics.reset_index(drop=True), columns.OPTICS, True)
    if optics.empty:
        rows, optics = _split_optics(rows)
    rows = _pixel_origins_to_angstrom(rows, optics)
    return StarTables(
        _typed(optics, columns.OPTICS, where), _typed(rows, columns.PARTICLES + columns.MICROGRAPHS, where), path
    )


def _split_optics(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Move the per-row optics of RELION 3.0 files to a table of groups."""
    rows = _renamed(rows, columns.OPTICS, True)
    if {"rlnDetectorPixelSize", "rlnMagnification"} <= set(rows) and "pixel_size" not in rows:
        rows["pixel_size"] = 1e4 * rows["rlnDetectorPixelSize"].astype(float) / rows["rlnMagnification"].astype(float)
    held = [name for name in (*OLD_OPTICS, "pixel_size") if name in rows]
    if not held:
        return rows, pd.DataFrame()
    groups = rows.groupby(held, sort=False).ngroup()
    optics = rows.loc[~groups.duplicated(), held].reset_index(drop=True)
    optics.insert(0, "optics_group", np.arange(1, len(optics) + 1))
    optics.insert(0, "optics_group_name", [f"opticsGroup{i + 1}" for i in range(len(optics))])
    rows = rows.drop(columns=held)
    rows["optics_group"] = groups.to_numpy() + 1
    return rows, optics


def _pixel_origins_to_angstrom(rows: pd.DataFrame, optics: pd.DataFrame) -> pd.DataFrame:
    old = {"rlnOriginX": "origin_x", "rlnOriginY": "origin_y"}
    present = [label for label in old if label in rows and old[label] not in rows]
    if not present or "pixel_size" not in optics:
        return rows
    out = rows.copy()
    pixel = out["optics_group"].map(optics.set_index("optics_group")["pixel_size"]).astype(float)
    for label in present:
        out[old[label]] = out.pop(label).astype(float) * pixel
    return out


def require(table: pd.DataFrame, names: Sequence[str], where: str, remedy: str = "") -> None:
    """Refuse a table that lacks columns.

    Raises
    ------
    BadInputError
        Lists all that are missing, by RELION label.
    """
    labels = {c.name: c.label for c in columns.OPTICS + columns.MICROGRAPHS + columns.PARTICLES}
    missing = [labels.get(n, n) for n in names if n not in table]
    if missing:
        raise BadInputError(where, f"columns {', '.join('_' + m for m in missing)}", "a table without them", remedy)


def write_star(path: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables with RELION 3.1 labels, atomically.

    Parameters
    ----------
    path : Path
    tables : Mapping of str to DataFrame
        Data blocks by name (``optics``, ``particles``, ``micrographs``, ``fsc``), with internal column names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = {}
    for name, table in tables.items():
        known = columns.OPTICS if name == "optics" else columns.MICROGRAPHS + columns.PARTICLES
        blocks[name] = _renamed(table, known, False)
    partial = path.with_name(f".{path.name}.partial.star")
    starfile.write(blocks, partial, overwrite=True, float_format="%.6f")
    partial.replace(path)


def image_reads(image_names: Sequence[str], base: Path) -> tuple[ImageFile, ...]:
    """Reads of particle images named ``section@stack``, neighbours in one stack joined.

    Parameters
    ----------
    image_names : sequence of str
    base : Path
        Folder that relative stack names start from.

    Raises
    ------
    BadInputError
        A name that does not read as section@stack.
    """
    reads: list[tuple[str, list[int]]] = []
    for name in image_names:
        section, at, stack = name.partition("@")
        if not at or not section.isdigit() or int(section) < 1:
            raise BadInputError("_rlnImageName", "section@stack with sections from 1", repr(name))
        path = str(base / stack)
        if not reads or reads[-1][0] != path:
            reads.append((path, []))
        reads[-1][1].append(int(section) - 1)
    return tuple(ImageFile(path, tuple(sections)) for path, sections in reads)
