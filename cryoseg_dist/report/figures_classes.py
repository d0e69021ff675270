"""Class averages with their counts."""

from dataclasses import dataclass

import numpy as np

from cryoseg_dist.report.data import ClassView
from cryoseg_dist.report.drawing import grey_png, shrunk, stretched


@dataclass(frozen=True, slots=True)
class ClassCard:
    """One class average.

    Attributes
    ----------
    number : int
        From 1, as in the particle table.
    picture : str
        Data address.
    count : int
    share : float
        Of all particles.
    selected : bool
    """

    number: int
    picture: str
    count: int
    share: float
    selected: bool


def class_cards(view: ClassView, most: int = 100, largest: int = 128) -> list[ClassCard]:
    """Cards in order of size; empty classes are left out."""
    counts = np.asarray(view.counts)
    total = max(float(counts.sum()), 1.0)
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] > 0][:most]
    return [
        ClassCard(
            number=i + 1,
            picture=grey_png(stretched(shrunk(np.asarray(view.images[i]), largest))),
            count=round(float(counts[i])),
            share=float(counts[i]) / total,
            selected=bool(view.selected[i]),
        )
        for i in order
    ]
