"""Sections on a map's validation, for the report of a run and for a page of their own."""

from dataclasses import dataclass

from markupsafe import Markup

from cryoseg_dist.report.data_validation import ValidationView
from cryoseg_dist.report.figures_curves import fsc_figure
from cryoseg_dist.report.figures_validation import (
    direction_curves,
    direction_map,
    guinier_figure,
    local_histogram,
    particle_curve_figure,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A section: its anchor, heading, name in the navigation, how to read it, the verdict and its charts."""

    id: str
    title: str
    short: str
    how: str
    words: str
    good: bool
    charts: tuple[Markup, ...]


def validation_parts(view: ValidationView) -> list[Part]:
    """One section for each part that there is."""
    parts = []
    if view.direction is not None:
        parts.append(
            Part(
                "directions",
                "Resolution by direction",
                "Directions",
                "FSC within cones of 20° about many axes. A narrow band is best; where the poorest curve falls early, the map is "
                "smeared along that axis. cFAR is the smallest weighted area under these curves over the largest.",
                view.direction.words,
                view.direction.good,
                (direction_curves(view.direction), direction_map(view.direction)),
            )
        )
    if view.local is not None:
        parts.append(
            Part(
                "local",
                "Local resolution",
                "Local resolution",
                "FSC within soft windows over the map. Rigid cores are finer than the average, flexible rims coarser.",
                view.local.words,
                True,
                (local_histogram(view.local),),
            )
        )
    if view.guinier is not None:
        parts.append(
            Part(
                "guinier",
                "Guinier plot",
                "Guinier",
                "Amplitudes by frequency. Beyond about 10 Å a molecule's amplitudes are level on average: the slope of the fitted "
                "line is what blurs the map, and sharpening takes it back up to the resolution.",
                view.guinier.words,
                view.guinier.slope is not None,
                (guinier_figure(view.guinier),),
            )
        )
    if view.particles is not None:
        parts.append(
            Part(
                "particles",
                "Resolution against particles",
                "More data?",
                "Maps of nested subsets with the angles of all particles. While the points rise along the line, each doubling of "
                "the data brings the same step; where they level off, something other than their number is in the way.",
                view.particles.words,
                True,
                (particle_curve_figure(view.particles),),
            )
        )
    for i, other in enumerate(view.comparisons, start=1):
        parts.append(
            Part(
                f"comparison-{i}",
                f"Agreement with {other.name}",
                "Comparison" if len(view.comparisons) == 1 else f"Comparison {i}",
                "FSC of the map with the other, in both hands. Below 0.5 detail of the two is no longer the same.",
                other.words,
                other.good,
                (fsc_figure(other.fsc, f"Fourier shell correlation with {other.name}"),),
            )
        )
    return parts
