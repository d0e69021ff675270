"""Particle coordinates of other programs."""

from pathlib import Path

import numpy as np
import pandas as pd

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.star import read_star, require


def read_coordinates(path: Path) -> np.ndarray:
    """Read particle centres: CSV (``x_px, y_px``), EMAN ``.box`` (corner, width, height) or STAR.

    Returns
    -------
    ndarray, float64, shape (n, 2)
        x (column) and y (row) in pixels of the micrograph.

    Raises
    ------
    BadInputError
        Missing file or columns, or a place that is no number.
    """
    found = _read(path)
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found).all(axis=1)))
        raise BadInputError(str(path), "finite coordinates", f"{found[row]} in row {row + 1}")
    return found


def _read(path: Path) -> np.ndarray:
    where = str(path)
    if not path.is_file():
        raise BadInputError(where, "a coordinate file", "no such file")
    suffix = path.suffix.lower()
    try:
        if suffix == ".star":
            rows = read_star(path).rows
            require(rows, ("coordinate_x", "coordinate_y"), where)
            return rows[["coordinate_x", "coordinate_y"]].to_numpy(float)
        if suffix == ".box":
            corners = pd.read_csv(path, sep=r"\s+", header=None).to_numpy(float)
            if corners.shape[1] < 4:
                raise BadInputError(where, "corner x, corner y, width, height", f"{corners.shape[1]} columns")
            return corners[:, :2] + 0.5 * corners[:, 2:4]
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as fault:
        raise BadInputError(where, "a table of coordinates", str(fault)) from None
    # Some name the columns "X-Coordinate", some add a remark in brackets.
    names = {c.split("(")[0].lower().replace("-", "").replace(" ", ""): c for c in map(str, table.columns)}
    for x, y in (("x_px", "y_px"), ("x", "y"), ("xcoordinate", "ycoordinate")):
        if x in names and y in names:
            try:
                return table[[names[x], names[y]]].to_numpy(float)
            except ValueError as fault:
                raise BadInputError(where, f"numbers in {names[x]} and {names[y]}", str(fault)) from None
    raise BadInputError(where, "columns x_px and y_px", ", ".join(map(str, table.columns))[:200])
