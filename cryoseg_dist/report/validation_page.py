"""One self-contained HTML page about two half maps."""

from collections.abc import Sequence

import numpy as np

from cryoseg_dist.report.data import MapView
from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.report.data_validation import ValidationView
from cryoseg_dist.report.figures_curves import fsc_figure
from cryoseg_dist.report.figures_map import map_pictures
from cryoseg_dist.report.figures_validation import local_slices
from cryoseg_dist.report.page import environment, orientation_part
from cryoseg_dist.report.validation_parts import validation_parts


def build_validation(
    title: str,
    made: str,
    key_figures: Sequence[tuple[str, str, str]],
    fsc: FscView,
    volume: MapView,
    validation: ValidationView,
    files: Sequence[tuple[str, str]],
    *,
    orientations: np.ndarray | None = None,
    symmetry: str | None = None,
    mask_good: bool = True,
) -> str:
    """Build the page; nothing in it is fetched from anywhere, and text is escaped.

    Parameters
    ----------
    title, made : str
        What is validated, and when.
    key_figures : sequence of tuple
        Title, value and remark.
    fsc : FscView
    volume : MapView
    validation : ValidationView
    files : sequence of tuple
        Name and value of everything that was read and set.
    orientations : ndarray, shape (n, 2), optional
        rot, tilt in degrees.
    symmetry : str, optional
    mask_good : bool
        Whether the words on the resolution hold no warning.

    Returns
    -------
    str
        HTML, to be written as UTF-8.
    """
    return (
        environment()
        .get_template("validation.html")
        .render(
            title=title,
            made=made,
            key_figures=list(key_figures),
            fsc=fsc_figure(fsc),
            map_pictures=map_pictures(volume),
            validation={"parts": validation_parts(validation)},
            resolution_words=validation.resolution_words,
            mask_good=mask_good,
            wide=None if validation.local is None else local_slices(validation.local),
            orientations=orientation_part(orientations, symmetry),
            files=list(files),
        )
    )
