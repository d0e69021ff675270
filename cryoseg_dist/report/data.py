"""What a report shows: plain arrays and values, every part optional."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.report.data_validation import ValidationView


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Key figures of a run; what is not known stays ``None``.

    Attributes
    ----------
    project : str
        Name or folder of the project.
    command : str
        Command line that made it.
    ended : str
        Date and time, as text.
    wall_seconds : float, optional
    micrographs, micrographs_used : int, optional
        Read, and accepted.
    particles_picked, particles_used : int, optional
    resolution, resolution_half : float, optional
        A, corrected FSC at 0.143 and 0.5.
    pixel_size, box : optional
        A and pixels of the map.
    symmetry : str, optional
    diameter, b_factor : float, optional
        A, A^2.
    versions : Mapping of str to str
        Package names and versions.
    provenance : sequence of str
        Runs and digests that the page was made from.
    """

    project: str = ""
    command: str = ""
    ended: str = ""
    wall_seconds: float | None = None
    micrographs: int | None = None
    micrographs_used: int | None = None
    particles_picked: int | None = None
    particles_used: int | None = None
    resolution: float | None = None
    resolution_half: float | None = None
    pixel_size: float | None = None
    box: int | None = None
    symmetry: str | None = None
    diameter: float | None = None
    b_factor: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    provenance: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class MicrographView:
    """A micrograph with what was picked on it.

    Attributes
    ----------
    name : str
    image : ndarray, shape (y, x)
        A small version, such as the 8 A/px level.
    pixel_size : float
        A per pixel of ``image``.
    picks : ndarray, shape (n, 2), optional
        x, y in pixels of ``image``; None before picking.
    diameter : float, optional
        Of the circles, in A.
    accepted : bool
    """

    name: str
    image: np.ndarray
    pixel_size: float
    picks: np.ndarray | None
    diameter: float | None = None
    accepted: bool = True


@dataclass(frozen=True, slots=True)
class CtfView:
    """A CTF fit.

    Attributes
    ----------
    name : str
        Micrograph.
    record : Mapping
        Record of the CTF stage.
    picture : ndarray, shape (n, n), optional
        Half fit, half data, grey values 0 to 1.
    """

    name: str
    record: Mapping[str, Any]
    picture: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class ClassView:
    """Class averages.

    Attributes
    ----------
    images : ndarray, shape (c, y, x)
    counts : ndarray, shape (c,)
        Particles of each class.
    selected : ndarray of bool, shape (c,)
    pixel_size : float
        A.
    """

    images: np.ndarray
    counts: np.ndarray
    selected: np.ndarray
    pixel_size: float


@dataclass(frozen=True, slots=True)
class MapView:
    """The map.

    Attributes
    ----------
    volume : ndarray, shape (n, n, n)
        zyx.
    pixel_size : float
        A.
    diameter : float, optional
        Of the particle in A; views are cropped a little outside it.
    """

    volume: np.ndarray
    pixel_size: float
    diameter: float | None = None


@dataclass(frozen=True, slots=True)
class IterationView:
    """One iteration of the refinement.

    Attributes
    ----------
    iteration : int
    resolution : float
        A.
    angular_step : float, optional
        Degrees.
    """

    iteration: int
    resolution: float
    angular_step: float | None = None


@dataclass(frozen=True, slots=True)
class SetAside:
    """Something a run went on without: the stage, the item and the reason."""

    stage: str
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a report can show; a part that is ``None`` or empty is left out with a sentence.

    Attributes
    ----------
    summary : RunSummary
    micrographs : sequence of MicrographView
    ctf : sequence of CtfView
    classes : ClassView, optional
    orientations : ndarray, shape (n, 2), optional
        rot, tilt in degrees.
    fsc : FscView, optional
    truth_fsc : FscView, optional
        Of the map against a known truth; curves of any name.
    map : MapView, optional
    validation : ValidationView, optional
    set_aside : sequence of SetAside
    stage_seconds : Mapping of str to float
        Wall-clock seconds of each stage, in order.
    iterations : sequence of IterationView
    settings : Mapping of str to Mapping
        Sections of settings.
    """

    summary: RunSummary = field(default_factory=RunSummary)
    micrographs: Sequence[MicrographView] = ()
    ctf: Sequence[CtfView] = ()
    classes: ClassView | None = None
    orientations: np.ndarray | None = None
    fsc: FscView | None = None
    truth_fsc: FscView | None = None
    map: MapView | None = None
    validation: ValidationView | None = None
    set_aside: Sequence[SetAside] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    iterations: Sequence[IterationView] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
