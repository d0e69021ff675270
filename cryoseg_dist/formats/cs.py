"""Particle tables of cryoSPARC (``.cs``): NumPy structured arrays."""

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pandas as pd
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.star import StarTables
from cryoseg_dist.kernels.so3 import matrix_to_euler, quaternion_to_matrix

# Room for a thousand columns. NumPy reads a header as a Python literal, in time that grows with the square of its nesting.
LARGEST_HEADER, DEEPEST_HEADER = 65536, 8
DEGREES = {"ctf/df_angle_rad": "defocus_angle", "ctf/phase_shift_rad": "phase_shift"}
PLAIN = {
    "ctf/df1_A": "defocus_u",
    "ctf/df2_A": "defocus_v",
    "ctf/bfactor": "ctf_b_factor",
    "location/micrograph_path": "micrograph_name",
}
OPTICS = {
    "ctf/accel_kv": "voltage",
    "ctf/cs_mm": "spherical_aberration",
    "ctf/amp_contrast": "amplitude_contrast",
    "blob/psize_A": "pixel_size",
}
# Scales of the CTF: of the microscope, and what fits the map's slice to the particle best.
SCALES = ("ctf/scale", "alignments3D/alpha")
# Corrections of several values an image; kept as their largest value where they are not zero, so that nobody overlooks them.
CORRECTIONS = ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
# Columns that hold more than one value a row, and columns of text; every other one that is known holds one number.
WIDTHS = {"blob/shape": 2, "location/micrograph_shape": 2, "alignments3D/shift": 2, "alignments3D/pose": 3}
TEXTS = ("blob/path", "location/micrograph_path")
# What NumPy raises on headers that are none.
FAULTS = (ValueError, OSError, EOFError, SyntaxError, MemoryError, TokenError, RecursionError, OverflowError, TypeError)
NUMBERS = (
    "uid", "blob/idx", "blob/psize_A", "blob/sign", "ctf/df1_A", "ctf/df2_A", "ctf/bfactor", "ctf/df_angle_rad",
    "ctf/phase_shift_rad", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast", "ctf/exp_group_id", "location/center_x_frac",
    "location/center_y_frac", "alignments3D/split", "alignments3D/class", "alignments3D/psize_A", *SCALES,
)  # fmt: skip


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise BadInputError(str(path), "a cryoSPARC .cs file", "no such file", "Check the path.")
    try:
        _check_header(path)
        # Mapped: a header that promises more than the file holds takes no memory.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=LARGEST_HEADER)
        if not isinstance(mapped, np.memmap) or mapped.dtype.names is None or mapped.ndim != 1:
            raise BadInputError(str(path), "a table with named columns", "another array")
        if mapped.dtype.itemsize == 0:
            # Any number of rows fits an empty file.
            raise BadInputError(str(path), "a cryoSPARC .cs file", "rows without bytes")
        table = np.array(mapped)
    except FAULTS as fault:
        raise BadInputError(str(path), "a cryoSPARC .cs file", f"{type(fault).__name__}: {fault}"[:200]) from None
    for name in table.dtype.names or ():
        _check_column(path, name, table[name])
    return table


def _check_header(path: Path) -> None:
    """Refuse a header whose brackets nest deeper than those of columns do."""
    with path.open("rb") as stream:
        start = stream.read(LARGEST_HEADER)
    depth = 0
    for byte in start.partition(b"\n")[0]:
        depth += (byte in b"([{") - (byte in b")]}")
        if depth > DEEPEST_HEADER:
            raise BadInputError(str(path), "a cryoSPARC .cs file", "a header of nested brackets")


def _check_column(path: Path, name: str, values: np.ndarray) -> None:
    """Refuse a known column of another kind or extent, and numbers that are none."""
    where = f"{path}: {name}"
    kinds = "SU" if name in TEXTS else "biuf"
    if name in (*TEXTS, *NUMBERS, *WIDTHS):
        extent = (WIDTHS[name],) if name in WIDTHS else ()
        if values.dtype.kind not in kinds or values.shape[1:] != extent:
            got = f"{values.dtype} of shape {values.shape[1:]}"
            raise BadInputError(where, f"{'text' if name in TEXTS else 'numbers'} of shape {extent} a row", got)
    elif name in CORRECTIONS and values.dtype.kind not in kinds:
        raise BadInputError(where, "numbers", str(values.dtype))
    if values.dtype.kind == "f" and name in (*NUMBERS, *WIDTHS, *CORRECTIONS) and not np.isfinite(values).all():
        raise BadInputError(where, "finite numbers", "NaN or infinite ones")


def _columns(path: Path, passthrough: Sequence[Path]) -> dict[str, np.ndarray]:
    """Columns of the table, and those that only its passthrough tables have, joined on ``uid``."""
    table = _load(path)
    held: dict[str, np.ndarray] = {name: table[name] for name in table.dtype.names or ()}
    for other_path in passthrough:
        other = _load(other_path)
        for where, names in ((path, held), (other_path, other.dtype.names or ())):
            if "uid" not in names:
                raise BadInputError(str(where), "a column uid to join by", "a table without it")
        order = np.argsort(other["uid"])
        at = np.searchsorted(other["uid"], held["uid"], sorter=order)
        rows = order[np.minimum(at, len(order) - 1)] if len(order) else at
        if not len(order) or (other["uid"][rows] != held["uid"]).any():
            raise BadInputError(str(other_path), "a row for every particle", "a uid without one")
        for name in other.dtype.names or ():
            held.setdefault(name, other[name][rows])
    return held


def _text(values: np.ndarray) -> np.ndarray:
    """Paths as text, without the mark that cryoSPARC puts before exported ones."""
    decoded = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values.astype(str)
    return np.char.lstrip(decoded, ">")


def read_cs(path: Path, passthrough: Sequence[Path] = (), *, flip_y: bool = True) -> StarTables:
    """Read particles with optics, CTF, poses and half sets in this package's columns and conventions.

    cryoSPARC's axis-angle ``pose`` turns the particle into the image's frame, its inverse is the orientation
    matrix; ``shift`` in pixels of ``alignments3D/psize_A`` is RELION's origin; image indices count from 0,
    ``split`` 0 and 1 are half sets 1 and 2; images of ``blob/sign`` -1 are dark, which half a turn of phase shift
    says; positions are fractions of the micrograph with y from the bottom. (The conventions are those of UCSF pyem's converter, which reads the same columns.)
    ``alpha`` scales the slice of the map to the particle: it is half the ratio of the table's own ``cross_cor`` and ``slice_pow``.

    Parameters
    ----------
    path : Path
    passthrough : sequence of Path
        Tables whose columns are added, joined on ``uid``.
    flip_y : bool
        False for micrographs that cryoSPARC did not flip in y.

    Returns
    -------
    StarTables
        Columns that RELION has no label for keep cryoSPARC's name where they are single values.

    Raises
    ------
    BadInputError
        Not a .cs file, one that needs pickle, or one without images and positions.
    """
    held = _columns(path, passthrough)
    n = len(next(iter(held.values())))
    rows: dict[str, Any] = {}
    used = {"uid", *OPTICS, *DEGREES, *PLAIN}
    if {"blob/path", "blob/idx"} <= set(held):
        names = _text(held["blob/path"])
        rows["image_name"] = [f"{i + 1:06d}@{p}" for i, p in zip(held["blob/idx"].tolist(), names, strict=True)]
        used |= {"blob/path", "blob/idx", "blob/shape"}
    _positions(held, rows, used, flip_y)
    if not rows:
        raise BadInputError(str(path), "columns blob/path or location/center_x_frac", ", ".join(held)[:200])
    for source, target in PLAIN.items():
        if source in held:
            values = held[source]
            rows[target] = _text(values) if values.dtype.kind in "SU" else values.astype(float)
    for source, target in DEGREES.items():
        if source in held:
            rows[target] = np.rad2deg(held[source].astype(float))
    scales = [held[name].astype(float) for name in SCALES if name in held]
    if scales:
        rows["ctf_scale"] = np.prod(scales, axis=0)
    used.update(SCALES)
    if "blob/sign" in held and (held["blob/sign"] < 0).any():
        rows["phase_shift"] = rows.get("phase_shift", np.zeros(n)) + np.where(held["blob/sign"] < 0, 180.0, 0.0)
    used.add("blob/sign")
    for name in CORRECTIONS:
        if name in held and held[name].any():
            rows[name] = np.abs(held[name].reshape(n, -1).astype(float)).max(axis=1)
    used.update(CORRECTIONS)
    _poses(path, held, rows, used)
    for name, values in held.items():
        if name not in used and values.ndim == 1:
            rows[name] = _text(values) if values.dtype.kind in "SU" else values
    table = pd.DataFrame(rows, index=range(n))
    optics, groups = _optics(held, n)
    table["optics_group"] = groups
    return StarTables(optics, table, path)


def _positions(held: dict[str, np.ndarray], rows: dict[str, Any], used: set[str], flip_y: bool) -> None:
    needed = {"location/center_x_frac", "location/center_y_frac", "location/micrograph_shape"}
    if not needed <= set(held):
        return
    height, width = held["location/micrograph_shape"].astype(float).T
    y = held["location/center_y_frac"].astype(float)
    rows["coordinate_x"] = held["location/center_x_frac"].astype(float) * width
    rows["coordinate_y"] = (1.0 - y if flip_y else y) * height
    used |= needed


def _poses(path: Path, held: dict[str, np.ndarray], rows: dict[str, Any], used: set[str]) -> None:
    prefix = "alignments3D"
    if f"{prefix}/pose" in held:
        vectors = torch.from_numpy(held[f"{prefix}/pose"].astype(np.float64))
        half = 0.5 * vectors.norm(dim=-1, keepdim=True)
        # sin(half) / (2 half) of the vector is the quaternion's vector part, at angle 0 too.
        turn = torch.cat((half.cos(), 0.5 * torch.sinc(half / torch.pi) * vectors), dim=-1)
        orientations = quaternion_to_matrix(turn).mT
        for name, angles in zip(("rot", "tilt", "psi"), matrix_to_euler(orientations), strict=True):
            rows[name] = angles.numpy()
    if f"{prefix}/shift" in held:
        pixel = held.get(f"{prefix}/psize_A", held.get("blob/psize_A"))
        if pixel is None:
            raise BadInputError(str(path), f"a column {prefix}/psize_A for the shifts", "a table without it")
        shift = held[f"{prefix}/shift"].astype(float) * np.asarray(pixel, dtype=float)[:, None]
        rows["origin_x"], rows["origin_y"] = shift.T
    if f"{prefix}/split" in held:
        rows["random_subset"] = held[f"{prefix}/split"].astype(np.int64) + 1
    if f"{prefix}/class" in held:
        rows["class_number"] = held[f"{prefix}/class"].astype(np.int64) + 1
    used |= {f"{prefix}/{name}" for name in ("pose", "shift", "psize_A", "split", "class")}


def _optics(held: dict[str, np.ndarray], n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """One optics group for every distinct set of values."""
    # Through the shortest text of the float32 values: 0.07, not 0.0700000003.
    values: dict[str, Any] = {new: [float(str(v)) for v in held[old]] for old, new in OPTICS.items() if old in held}
    extra = {"ctf/exp_group_id": held["ctf/exp_group_id"]} if "ctf/exp_group_id" in held else {}
    if "blob/shape" in held:
        values["image_size"] = held["blob/shape"][:, 0].astype(np.int64)
    table = pd.DataFrame({**values, **extra}, index=range(n))
    if table.columns.empty:
        return pd.DataFrame(), np.ones(n, dtype=np.int64)
    groups = table.groupby(list(table.columns), sort=True).ngroup().to_numpy()
    optics = table.assign(optics_group=groups + 1).drop_duplicates("optics_group").sort_values("optics_group")
    optics = optics.drop(columns=list(extra)).reset_index(drop=True)
    optics.insert(0, "optics_group_name", [f"opticsGroup{g}" for g in optics["optics_group"]])
    optics["image_dimensionality"] = 2
    return optics, groups + 1
