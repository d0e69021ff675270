"""Fourier shell correlation curves as RELION STAR and as EMDB XML."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.star import read_blocks, write_star

CURVE_LABELS = {
    "corrected": "rlnFourierShellCorrelationCorrected",
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
}
GUINIER_LABELS = {
    "inverse_square": "rlnResolutionSquared",
    "original": "rlnLogAmplitudesOriginal",
    "weighted": "rlnLogAmplitudesWeighted",
    "sharpened": "rlnLogAmplitudesSharpened",
    "line": "rlnLogAmplitudesIntercept",
}
# Logarithm written for the amplitude of a shell without power.
NO_AMPLITUDE = -99.0
# RELION's value for the resolution of shell 0.
ZERO_SHELL_RESOLUTION = 999.0


def write_fsc_star(
    path: Path,
    curves: Mapping[str, np.ndarray],
    size: int,
    pixel_size: float,
    figures: Mapping[str, object] | None = None,
    guinier: Mapping[str, np.ndarray] | None = None,
    comments: Sequence[str] = (),
) -> None:
    """Write FSC curves as RELION's post-processing does.

    Parameters
    ----------
    path : Path
    curves : Mapping of str to ndarray, shape (n_shells,)
        Any of ``corrected``, ``unmasked``, ``masked``, ``randomised``; sample i is shell i.
    size : int
        Box in pixels: shell i is at ``i / (size * pixel_size)`` per A.
    pixel_size : float
        A.
    figures : Mapping, optional
        Single values by RELION label (``rlnFinalResolution``), written as ``data_general``.
    guinier : Mapping of str to ndarray, optional
        The Guinier plot, written as ``data_guinier``: ``inverse_square`` (1/A^2), and natural logarithms of amplitudes
        ``original``, ``weighted``, ``sharpened``, ``line``.
    comments : sequence of str
        Lines that head the file.

    Raises
    ------
    ValueError
        An unknown curve, or curves of several lengths.
    """
    unknown = set(curves) - set(CURVE_LABELS) | set(guinier or ()) - set(GUINIER_LABELS)
    if unknown or len({len(c) for c in curves.values()}) != 1:
        raise ValueError(f"expected equally long curves among {sorted(CURVE_LABELS)}, got {sorted(curves)}")
    index = np.arange(len(next(iter(curves.values()))))
    frequency = index / (size * pixel_size)
    with np.errstate(divide="ignore"):
        resolution = np.where(index > 0, 1.0 / frequency, ZERO_SHELL_RESOLUTION)
    table = pd.DataFrame(
        {"rlnSpectralIndex": index, "rlnResolution": frequency, "rlnAngstromResolution": resolution}
        | {CURVE_LABELS[name]: np.asarray(curves[name], dtype=float) for name in CURVE_LABELS if name in curves}
    )
    tables: dict[str, Any] = ({"general": figures} if figures else {}) | {"fsc": table}
    if guinier:
        values = {n: np.asarray(guinier[n], dtype=float) for n in GUINIER_LABELS if n in guinier}
        tables["guinier"] = pd.DataFrame(
            {GUINIER_LABELS[n]: np.maximum(v, NO_AMPLITUDE) if n != "inverse_square" else v for n, v in values.items()}
        )
    write_star(path, tables, comments)


def write_fsc_xml(
    path: Path, curve: np.ndarray, size: int, pixel_size: float, title: str, comments: Sequence[str] = ()
) -> None:
    """Write one curve in the XML that the EMDB takes; frequencies in 1/A.

    Parameters
    ----------
    path : Path
    curve : ndarray, shape (n_shells,)
    size : int
        Box in pixels.
    pixel_size : float
        A.
    title : str
    comments : sequence of str
        Comments that head the points.
    """
    root = ElementTree.Element("fsc", title=title, xaxis="Resolution (A-1)", yaxis="Correlation Coefficient")
    for comment in comments:
        # Two hyphens would end it.
        root.append(ElementTree.Comment(f" {comment.replace('--', '- -')} "))
    for shell, value in enumerate(np.asarray(curve, dtype=float)):
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{shell / (size * pixel_size):.6g}"
        ElementTree.SubElement(point, "y").text = f"{value:.6g}"
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")
    partial.replace(path)


def read_fsc(path: Path) -> pd.DataFrame:
    """Read FSC curves from a RELION STAR file or an EMDB XML file.

    Returns
    -------
    DataFrame
        ``frequency`` in 1/A and the curves by name; XML holds one, named ``corrected``.

    Raises
    ------
    BadInputError
        Neither of the two, or no curve in it.
    """
    if path.suffix.lower() == ".xml":
        return _read_xml(path)
    for table in read_blocks(path).values():
        names = {label: name for name, label in CURVE_LABELS.items() if label in table}
        if "rlnResolution" in table and names:
            out = table[["rlnResolution", *names]].rename(columns={"rlnResolution": "frequency", **names})
            return out.astype(float)
    raise BadInputError(
        str(path),
        "a table with _rlnResolution and a _rlnFourierShellCorrelation column",
        "none",
        "Give a postprocess.star.",
    )


def _read_xml(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise BadInputError(str(path), "an FSC file", "no such file", "Check the path.")
    raw = path.read_bytes()
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        # Entities can be made to grow without bound; FSC files have none.
        raise BadInputError(str(path), "plain FSC XML", "a document type declaration", "Remove it.")
    try:
        points = ElementTree.fromstring(raw).iter("coordinate")
        values = [(float(p.findtext("x", "")), float(p.findtext("y", ""))) for p in points]
    except (ElementTree.ParseError, ValueError) as fault:
        raise BadInputError(str(path), "EMDB FSC XML", str(fault)) from None
    if not values:
        raise BadInputError(str(path), "EMDB FSC XML", "no coordinates in it")
    return pd.DataFrame(values, columns=["frequency", "corrected"])
