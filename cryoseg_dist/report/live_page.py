"""The page of a run that goes on: a shell that asks for its contents again and again, and those contents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryoseg_dist.report.data import IterationView, MicrographView
from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.report.drawing import grey_png, shrunk, stretched
from cryoseg_dist.report.figures_curves import convergence_figure, fsc_figure
from cryoseg_dist.report.figures_micrographs import gallery
from cryoseg_dist.report.page import environment


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage in the table: its name, share done (0 to 1, None for one that iterates), words, and time left."""

    name: str
    share: float | None
    words: str
    left: str
    state: str


@dataclass(frozen=True, slots=True)
class FailureRow:
    """A unit that failed: clock time, stage, unit, how it ended, reason."""

    time: str
    stage: str
    unit: str
    outcome: str
    message: str


@dataclass(frozen=True, slots=True)
class LiveView:
    """What the live page shows.

    Attributes
    ----------
    project : str
    state : str
        One sentence: what goes on now.
    tiles : sequence of (str, str)
        Key figures.
    stages : sequence of StageRow
    failures : sequence of FailureRow
        Newest first.
    micrographs : sequence of MicrographView
        Newest first.
    classes : ndarray, optional, shape (c, y, x)
    fsc : FscView, optional
    iterations : sequence of IterationView
    """

    project: str
    state: str
    tiles: Sequence[tuple[str, str]] = ()
    stages: Sequence[StageRow] = ()
    failures: Sequence[FailureRow] = ()
    micrographs: Sequence[MicrographView] = ()
    classes: np.ndarray | None = None
    fsc: FscView | None = None
    iterations: Sequence[IterationView] = ()


def shell(project: str, nonce: str, seconds: float) -> str:
    """The page itself; its only script, which ``nonce`` allows, fetches the contents every few seconds."""
    return (
        environment().get_template("live.html").render(project=project, nonce=nonce, milliseconds=round(1000 * seconds))
    )


def contents(view: LiveView) -> str:
    """What stands in the page now; every text is escaped."""
    values: dict[str, Any] = {
        "view": view,
        "cards": gallery(view.micrographs, 6),
        "classes": []
        if view.classes is None
        else [grey_png(stretched(shrunk(c, 128))) for c in view.classes if c.any()],
        "fsc": None if view.fsc is None else fsc_figure(view.fsc),
        "convergence": convergence_figure(view.iterations) if view.iterations else None,
    }
    return environment().get_template("live_contents.html").render(**values)
