"""From files to picks: ingest, CTF, segmentation, picking."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from cryoseg_dist.errors import BadInputError, SettingsError, StageFailedError
from cryoseg_dist.formats.images import image_header
from cryoseg_dist.formats.star import read_star, require
from cryoseg_dist.networks.unet import Architecture
from cryoseg_dist.pipeline.image_places import allowed, find_image
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.watch_list import CAPACITY, LIST_NAME, WatchList
from cryoseg_dist.schema.work import ArraySpec, Outcome, Region, Unit
from cryoseg_dist.stages import ctf, ingest, pick, segment
from cryoseg_dist.store.checksums import sha256_of
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.weights import read_weights


@dataclass(frozen=True)
class SetAside:
    """What the run went on without."""

    stage: str
    item: str
    reason: str


@dataclass(frozen=True)
class Micrographs:
    """Micrographs in the project.

    Attributes
    ----------
    run : str
    paths : tuple of str
        Of all, by number.
    usable : tuple of int
        Numbers of those that are not set aside.
    shape, level_shape : tuple of int
    level_pixel_size : float
        A.
    set_aside : tuple of SetAside
    capacity : int
        Rows of the arrays of a list that grows; 0 for one that does not.
    """

    run: str
    paths: tuple[str, ...]
    usable: tuple[int, ...]
    shape: tuple[int, int]
    level_shape: tuple[int, int]
    level_pixel_size: float
    set_aside: tuple[SetAside, ...]
    capacity: int = 0

    @property
    def rows(self) -> int:
        """Rows of the arrays of later stages."""
        return self.capacity or len(self.paths)


@dataclass(frozen=True)
class CtfFits:
    """CTF of each usable micrograph.

    Attributes
    ----------
    run : str
    records : Mapping of int to Mapping
        By micrograph number.
    accepted : tuple of int
        Numbers of the micrographs whose verdict is good.
    set_aside : tuple of SetAside
    """

    run: str
    records: Mapping[int, Mapping[str, Any]]
    accepted: tuple[int, ...]
    set_aside: tuple[SetAside, ...]


@dataclass(frozen=True)
class Picks:
    """Particle centres, by micrograph and best first.

    Attributes
    ----------
    run : str
    index, x, y, score : ndarray, shape (n,)
        Micrograph number, pixels of the micrograph, score.
    threshold : float
    set_aside : tuple of SetAside
    """

    run: str
    index: np.ndarray
    x: np.ndarray
    y: np.ndarray
    score: np.ndarray
    threshold: float
    set_aside: tuple[SetAside, ...]


def find_micrographs(pattern: str, roots: Sequence[Path] = ()) -> list[Path]:
    """Files of a glob pattern, sorted, or those that a STAR file lists.

    Parameters
    ----------
    pattern : str
    roots : sequence of Path
        Folders that they may lie in, links followed; anywhere when empty.

    Raises
    ------
    BadInputError
        Nothing found, or something where no image may lie.
    """
    if pattern.endswith(".star"):
        path = Path(pattern)
        rows = read_star(path).rows
        require(rows, ("micrograph_name",), pattern)
        # One that is missing is set aside later, by its name.
        return [find_image(name, path.parent, roots) or path.parent / name for name in rows["micrograph_name"]]
    found = sorted(allowed(Path(p), roots) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not found:
        raise BadInputError(
            "data.micrographs", "files", f"none for {pattern!r}", "Quote the pattern; check the folder."
        )
    return found


def set_aside_of(stage: str, marks: Sequence[Mark], names: Sequence[str]) -> list[SetAside]:
    """Units that did not end as done."""
    return [
        SetAside(stage, name, mark.reason)
        for mark, name in zip(marks, names, strict=True)
        if mark.outcome is not Outcome.DONE
    ]


def _header(path: Path) -> ingest.MicrographHeader:
    try:
        header = image_header(path)
    except BadInputError as fault:
        return ingest.MicrographHeader(str(path), fault=fault.found)
    return ingest.MicrographHeader(str(path), header.shape, header.pixel_size)


def run_ingest(session: Session) -> Micrographs:
    """Bring the micrographs into the project."""
    s = session.settings
    config = {"ingest": s.ingest.model_dump(), "pixel_size": s.data.pixel_size}
    capacity = 0
    if Path(s.data.micrographs).name == LIST_NAME:
        # What is in the list keeps its number, so the run is the same however far the list has grown.
        listed = WatchList(Path(s.data.micrographs))
        paths = [Path(a.path) for a in listed.arrivals]
        headers = [ingest.MicrographHeader(a.path, a.shape, a.pixel_size, a.fault) for a in listed.arrivals]
        run, capacity = session.run_id("ingest", config, {"list": listed.name}), CAPACITY
        held = session.project.read_json(f"state/{run}/shape.json")
        shape = ingest.majority_shape(headers) if held is None else (int(held["rows"]), int(held["columns"]))
        session.project.write_json(f"state/{run}/shape.json", {"rows": shape[0], "columns": shape[1]})
    else:
        paths = find_micrographs(s.data.micrographs, [Path(root) for root in s.data.image_roots])
        # A file that is repaired or replaced is another input.
        stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else (str(p), 0, 0) for p in paths]
        run = session.run_id("ingest", config, {str(i): repr(v) for i, v in enumerate(stats)})
        headers = [_header(p) for p in paths]
        shape = ingest.majority_shape(headers)
    specs = ingest.array_specs(run, capacity or len(headers), shape, s.data.pixel_size, s.ingest)
    units = ingest.plan(run, headers, shape, s.data.pixel_size, s.ingest)
    marks = session.map(ingest.IngestStage(s.ingest, s.data.pixel_size, shape), run, specs, units)
    return Micrographs(
        run,
        tuple(str(p) for p in paths),
        tuple(i for i, mark in enumerate(marks) if mark.outcome is Outcome.DONE),
        shape,
        (specs[1].shape[1], specs[1].shape[2]),
        float(specs[1].attributes["pixel_size"]),
        tuple(set_aside_of("ingest", marks, [p.name for p in paths])),
        capacity,
    )


def run_ctf(session: Session, micrographs: Micrographs) -> CtfFits:
    """Fit the CTF of each micrograph and judge it."""
    s = session.settings
    config = {"ctf": s.ctf.model_dump(), "optics": s.data.model_dump(exclude={"micrographs", "image_roots"})}
    run = session.run_id("ctf", config, {"ingest": micrographs.run})
    units = ctf.plan(run, micrographs.run, micrographs.usable, micrographs.shape)
    specs = ctf.array_specs(run, micrographs.rows)
    marks = session.map(ctf.CtfStage(s.data.optics, s.ctf), run, specs, units)
    names = [Path(micrographs.paths[i]).name for i in micrographs.usable]
    records = {
        i: mark.record for i, mark in zip(micrographs.usable, marks, strict=True) if mark.outcome is Outcome.DONE
    }
    refused = [
        SetAside("ctf", Path(micrographs.paths[i]).name, "; ".join(record["reasons"]))
        for i, record in records.items()
        if not record["accepted"]
    ]
    accepted = tuple(i for i, record in records.items() if record["accepted"])
    if not accepted:
        raise StageFailedError(
            f"ctf: expected some accepted micrographs, got none of {len(records)}. First reason: "
            f"{refused[0].reason if refused else 'no fit'}. Loosen the thresholds of [ctf] to go on."
        )
    return CtfFits(run, records, accepted, (*set_aside_of("ctf", marks, names), *refused))


def model_path(settings: segment.SegmentSettings) -> Path:
    """The weights to segment with."""
    if settings.model is not None:
        return Path(settings.model)
    return Path(str(files("cryoseg_dist.networks") / "weights" / "default.safetensors"))


def require_diameter(session: Session) -> float:
    """The particle's diameter.

    Raises
    ------
    SettingsError
        It is not set.
    """
    diameter = session.settings.particle.diameter
    if diameter is None:
        raise SettingsError(
            ["particle.diameter: expected the particle's longest extent in A, got none. Set --diameter."]
        )
    return diameter


@dataclass(frozen=True)
class Segmentation:
    """How micrographs are segmented: run, array of the probabilities, geometry, stage."""

    run: str
    spec: ArraySpec
    where: segment.SegmentGeometry
    stage: segment.SegmentStage


def plan_segment(session: Session, micrographs: Micrographs) -> Segmentation:
    """How the settings segment the micrographs."""
    s = session.settings
    diameter = require_diameter(session)
    path = model_path(s.segment)
    weights, described = read_weights(path)
    where = segment.geometry(
        diameter,
        float(described["particle_px"]),
        (micrographs.shape, s.data.pixel_size),
        (micrographs.level_shape, micrographs.level_pixel_size),
    )
    config = {"segment": s.segment.model_dump(exclude={"model"}), "diameter": diameter, "dark": s.data.protein_dark}
    run = session.run_id("segment", config, {"ingest": micrographs.run, "weights": sha256_of(path)})
    architecture = Architecture.from_dict(described["architecture"])
    spec = segment.array_spec(run, micrographs.rows, architecture.classes, where.extent, where.pixel_size)
    stage = segment.SegmentStage(s.segment, architecture, weights, diameter, s.data.protein_dark, where)
    return Segmentation(run, spec, where, stage)


def run_pick(session: Session, micrographs: Micrographs, fits: CtfFits) -> Picks:
    """Segment and pick each accepted micrograph; one whose picks are there needs no probabilities any more."""
    s = session.settings
    diameter = require_diameter(session)
    planned = plan_segment(session, micrographs)
    where = planned.where
    config = {"pick": s.pick.model_dump(exclude={"threshold"}), "diameter": diameter}
    run = session.run_id("pick", config, {"segment": planned.run})
    n_picks = pick.most_picks(where.extent, where.pixel_size, diameter, s.pick)
    spec = pick.array_spec(run, micrographs.rows, n_picks)

    def units_of(numbers: Sequence[int]) -> list[Unit]:
        return pick.plan(run, planned.spec.name, planned.spec.shape, numbers, n_picks)

    picked = Ledger(session.project.ledger_path(run)).load()
    segmented = Ledger(session.project.ledger_path(planned.run)).load()
    every = segment.plan(planned.run, micrographs.run, fits.accepted, planned.spec.shape[1], where)
    pairs = zip(every, units_of(fits.accepted), strict=True)
    units = [unit for unit, after in pairs if unit.key in segmented or after.key not in picked]
    marked = session.map(planned.stage, planned.run, [planned.spec], units) if units else []
    ended = {unit.key: mark for unit, mark in zip(units, marked, strict=True)}
    lost = {
        i: ended[unit.key].reason
        for i, unit in zip(fits.accepted, every, strict=True)
        if unit.key in ended and ended[unit.key].outcome is not Outcome.DONE
    }
    usable = [i for i in fits.accepted if i not in lost]
    stage = pick.PickStage(s.pick, diameter / where.pixel_size, where.pixel_size / s.data.pixel_size)
    marks = session.map(stage, run, [spec], units_of(usable))
    done = [(i, mark.record) for i, mark in zip(usable, marks, strict=True) if mark.outcome is Outcome.DONE]
    threshold = pick.choose_threshold([record for _, record in done], s.pick)
    parts = []
    for i, record in done:
        n = int(record["n_candidates"])
        found = session.project.read(Region(spec.name, (i, 0, 0), (i + 1, n_picks, 3)))[0, :n]
        found = found[found[:, 2] >= threshold]
        parts.append(np.column_stack((np.full(len(found), i), found)))
    table = np.concatenate(parts) if parts else np.empty((0, 4))
    names = [Path(micrographs.paths[i]).name for i in usable]
    return Picks(
        run,
        table[:, 0].astype(np.int64),
        table[:, 1],
        table[:, 2],
        table[:, 3],
        threshold,
        (
            *(SetAside("segment", Path(micrographs.paths[i]).name, reason) for i, reason in lost.items()),
            *set_aside_of("pick", marks, names),
        ),
    )
