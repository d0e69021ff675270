"""STAR files of RELION 3.0, 3.1 and later, in this package's column names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
from starfile.writer import StarWriter

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.schema import columns
from cryoseg_dist.schema.columns import Column
from cryoseg_dist.schema.work import ImageFile

OLD_OPTICS = ("voltage", "spherical_aberration", "amplitude_contrast", "beam_tilt_x", "beam_tilt_y")
# Text even where it looks like a number (a micrograph called 0007).
TEXT_LABELS = (
    *(c.label for c in columns.OPTICS + columns.MICROGRAPHS + columns.PARTICLES if c.dtype == "str"),
    "rlnImageOriginalName",
    "rlnParticleName",
    "rlnOriginalParticleName",
    "rlnMicrographMovieName",
    "rlnMicrographMetadata",
    "rlnMtfFileName",
    "rlnOddZernike",
    "rlnEvenZernike",
)
# CTF programs write an infinite resolution where nothing fits.
MAY_BE_INFINITE = ("ctf_max_resolution",)
LARGEST_INTEGER, MOST_DIGITS = 2**53, 12
# Nine digits keep float32 exact and a pixel of a large micrograph to 1e-4.
FLOAT_FORMAT = "%.9g"


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


def _internal(table: pd.DataFrame, known: Sequence[Column], where: str) -> pd.DataFrame:
    """With this package's names; a table that has one of them twice is refused."""
    out = table.rename(columns={c.label: c.name for c in known})
    twice = out.columns[out.columns.duplicated()]
    if len(twice):
        raise BadInputError(where, "every column once", f"{str(twice[0])[:80]!r} more than once")
    return out


def _typed(table: pd.DataFrame, known: Sequence[Column], where: str) -> pd.DataFrame:
    out = table.copy()
    for column in known:
        if column.name not in out:
            continue
        if column.dtype == "str":
            out[column.name] = out[column.name].astype(object).map(str)
            continue
        values = pd.to_numeric(out[column.name], errors="coerce")
        numbers = values.to_numpy(np.float64)
        limit = LARGEST_INTEGER if column.dtype == "int64" else np.inf
        bad = np.isnan(numbers) if column.name in MAY_BE_INFINITE else ~(np.abs(numbers) < limit)
        if bad.any():
            row = int(np.argmax(bad))
            raise BadInputError(
                f"{where}: _{column.label}", "numbers", f"{str(out[column.name].iloc[row])[:80]!r} in row {row + 1}"
            )
        out[column.name] = values.astype("int64" if column.dtype == "int64" else "float64")
    return out


def read_blocks(path: Path) -> dict[str, pd.DataFrame]:
    """Read every data block of a STAR file with its own labels; a block of single values becomes one row.

    Raises
    ------
    BadInputError
        Missing file, or no STAR.
    """
    where = str(path)
    if not path.is_file():
        raise BadInputError(where, "a STAR file", "no such file", "Check the path.")
    try:
        blocks = starfile.read(path, always_dict=True, parse_as_string=list(TEXT_LABELS))
    except Exception as fault:  # the parser raises many kinds on text that is no STAR
        raise BadInputError(where, "a STAR file", f"{type(fault).__name__}: {fault}") from None
    return {name: b if isinstance(b, pd.DataFrame) else pd.DataFrame([b]) for name, b in blocks.items()}


def read_star(path: Path) -> StarTables:
    """Read particles or micrographs with their optics.

    RELION 3.0 files, which hold optics in every row and origins in pixels, come out like 3.1 files.

    Raises
    ------
    BadInputError
        Missing file, no table, text where numbers belong, or rows of an optics group that is not listed.
    """
    where = str(path)
    tables = read_blocks(path)
    found = sorted(tables)
    optics = tables.pop("optics", pd.DataFrame())
    named = [tables[n] for n in ("particles", "micrographs") if n in tables]
    candidates = named or [t for t in tables.values() if len(t.columns)]
    if not candidates:
        raise BadInputError(where, "a table of particles or micrographs", f"tables {found}")
    rows = _internal(candidates[0].reset_index(drop=True), columns.PARTICLES + columns.MICROGRAPHS, where)
    optics = _internal(optics.reset_index(drop=True), columns.OPTICS, where)
    if optics.empty:
        rows, optics = _split_optics(rows, where)
    optics = _typed(optics, columns.OPTICS, where)
    rows = _typed(rows, columns.PARTICLES + columns.MICROGRAPHS, where)
    rows = _pixel_origins_to_angstrom(_grouped(rows, optics, where), optics, where)
    return StarTables(optics, rows, path)


def _grouped(rows: pd.DataFrame, optics: pd.DataFrame, where: str) -> pd.DataFrame:
    """Rows whose optics groups are all in the optics table; a single group needs no column."""
    if optics.empty:
        return rows
    if "optics_group" not in optics:
        raise BadInputError(f"{where}: data_optics", "a column _rlnOpticsGroup", "a table without it")
    twice = optics["optics_group"][optics["optics_group"].duplicated()]
    if len(twice):
        raise BadInputError(f"{where}: data_optics", "every group once", f"group {twice.iloc[0]} listed twice")
    if "optics_group" not in rows:
        if len(optics) > 1:
            raise BadInputError(where, "a column _rlnOpticsGroup", f"rows without it, and {len(optics)} optics groups")
        return rows.assign(optics_group=int(optics["optics_group"].iloc[0]))
    unknown = sorted(set(rows["optics_group"]) - set(optics["optics_group"]))
    if unknown:
        raise BadInputError(
            where,
            f"optics groups {sorted(optics['optics_group'])}",
            f"rows of groups {unknown}",
            "Add the groups to data_optics.",
        )
    return rows


def _numbers(table: pd.DataFrame, label: str, where: str) -> pd.Series:
    values = pd.to_numeric(table[label], errors="coerce").astype("float64")
    if values.isna().any():
        row = int(np.argmax(values.isna().to_numpy()))
        raise BadInputError(f"{where}: _{label}", "numbers", f"{table[label].iloc[row]!r} in row {row + 1}")
    return values


def _split_optics(rows: pd.DataFrame, where: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Move the per-row optics of RELION 3.0 files to a table of groups.

    There the pixel size is that of the row's image: detector pixel in um / magnification.
    """
    rows = _internal(rows, columns.OPTICS, where)
    pixel = "pixel_size" if "image_name" in rows else "micrograph_pixel_size"
    old = ("rlnDetectorPixelSize", "rlnMagnification")
    if set(old) <= set(rows):
        if pixel not in rows:
            magnification = _numbers(rows, old[1], where)
            if not (magnification > 0).all():
                raise BadInputError(f"{where}: _{old[1]}", "positive numbers", "0 or less")
            rows[pixel] = (1e4 * _numbers(rows, old[0], where) / magnification).round(9)
        rows = rows.drop(columns=list(old))
    held = [name for name in (*OLD_OPTICS, pixel) if name in rows]
    if not held:
        return rows, pd.DataFrame()
    groups = rows.groupby(held, sort=False, dropna=False).ngroup()
    optics = rows.loc[~groups.duplicated(), held].reset_index(drop=True)
    optics.insert(0, "optics_group", np.arange(1, len(optics) + 1))
    optics.insert(0, "optics_group_name", [f"opticsGroup{i + 1}" for i in range(len(optics))])
    rows = rows.drop(columns=held)
    rows["optics_group"] = groups.to_numpy() + 1
    return rows, optics


def _pixel_origins_to_angstrom(rows: pd.DataFrame, optics: pd.DataFrame, where: str) -> pd.DataFrame:
    """RELION 3.0 origins, in pixels of the particle image, in A; left alone where no pixel size is known."""
    old = {"rlnOriginX": "origin_x", "rlnOriginY": "origin_y"}
    present = [label for label in old if label in rows and old[label] not in rows]
    if not present or "pixel_size" not in optics:
        return rows
    out = rows.copy()
    pixel = out["optics_group"].map(optics.set_index("optics_group")["pixel_size"])
    for label in present:
        out[old[label]] = _numbers(out, label, where) * pixel
    return out.drop(columns=present)


def per_row(tables: StarTables, name: str) -> np.ndarray:
    """An optics value for every row, shape (n,).

    Raises
    ------
    BadInputError
        The optics table lacks the column.
    """
    require(tables.optics, ("optics_group", name), f"{tables.path}: data_optics", "Give the value in data_optics.")
    return tables.rows["optics_group"].map(tables.optics.set_index("optics_group")[name]).to_numpy()


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


def write_star(
    path: Path, tables: Mapping[str, pd.DataFrame | Mapping[str, object]], comments: Sequence[str] = ()
) -> None:
    """Write tables with RELION 3.1 labels, atomically.

    Parameters
    ----------
    path : Path
    tables : Mapping of str to DataFrame
        Data blocks by name (``optics``, ``particles``, ``micrographs``), with internal column names; other names,
        RELION's own, are written as they are. A mapping becomes a block of single values.
    comments : sequence of str
        Lines that head the file.
    """
    blocks: dict[str, pd.DataFrame | dict[str, object]] = {}
    for name, table in tables.items():
        if isinstance(table, Mapping):
            blocks[name] = dict(table)
            continue
        known = columns.OPTICS if name == "optics" else columns.MICROGRAPHS + columns.PARTICLES
        blocks[name] = table.rename(columns={c.name: c.label for c in known})
    path.parent.mkdir(parents=True, exist_ok=True)
    # starfile dates its files; the same tables shall give the same bytes.
    text = "".join(f"{line}\n" for line in (*(f"# {comment}" for comment in comments), *_lines(blocks)))
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _lines(blocks: Mapping[str, pd.DataFrame | dict[str, object]]) -> Iterator[str]:
    writer = StarWriter(dict(blocks), float_format=FLOAT_FORMAT)
    for line in writer.data_block_generator():
        if line.startswith("data_"):
            # RELION takes tables without it for those of version 3.0.
            yield "# version 30001"
            yield ""
        yield line


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
        digits = section.lstrip("0") if section.isascii() and section.isdigit() else ""
        if not at or not digits or len(digits) > MOST_DIGITS:
            raise BadInputError("_rlnImageName", "section@stack with sections from 1", repr(name[:80]))
        path = str(base / stack)
        if not reads or reads[-1][0] != path:
            reads.append((path, []))
        reads[-1][1].append(int(section) - 1)
    return tuple(ImageFile(path, tuple(sections)) for path, sections in reads)
