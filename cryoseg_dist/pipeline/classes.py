"""From particles to class averages and the particles of good classes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.pipeline.maps import mean_power
from cryoseg_dist.pipeline.micrographs import SetAside
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.events import IterationFinished
from cryoseg_dist.schema.work import ArraySpec, Region, Unit
from cryoseg_dist.stages import class_averages, classify
from cryoseg_dist.stages.classify import ASSIGNMENT_COLUMNS, PADDING, ClassifyStage


@dataclass(frozen=True)
class Classified:
    """The end of a classification.

    Attributes
    ----------
    run : str
    averages : ndarray, float32, shape (K, n, n)
    counts : ndarray, int64, shape (K,)
        Particles of each class, by their most likely one.
    selected : ndarray of bool, shape (K,)
    particles : Particles
        Those of selected classes, with class number, in-plane angle and origin.
    set_aside : tuple of SetAside
        What the choice of classes left out.
    """

    run: str
    averages: np.ndarray
    counts: np.ndarray
    selected: np.ndarray
    particles: Particles
    set_aside: tuple[SetAside, ...] = ()


@dataclass(frozen=True)
class _Step:
    """One iteration's work on the workers, summed up."""

    total: Tensor
    assignment: np.ndarray
    records: tuple[Mapping[str, Any], ...]


def run_classify(session: Session, particles: Particles) -> Classified:
    """Classify particles in 2D and keep those of good classes.

    Resumes after the last finished iteration; the choice of classes is made anew each time, so that changing it costs nothing.
    """
    settings = session.settings.classify
    size, pixel, diameter = particles.size, particles.optics.pixel_size, particles.diameter
    n = len(particles)
    k = min(settings.n_classes or classify.default_classes(n), n)
    choice = {"enabled", "min_share", "max_relative_resolution", "min_contrast", "max_rejected", "keep"}
    config = {"classify": settings.model_dump(exclude=choice), "n_classes": k, "diameter": diameter}
    run = session.run_id("classify", config, {"particles": particles.run})
    done, state = _last_state(session, run)
    if state is None:
        noise = (0.5 * mean_power(session, particles).numpy()).astype(np.float32)
        _keep_averages(session, f"{run}/it000/none", torch.zeros((k, size, size)), pixel)
        first = classify.sampling(0, size, pixel, diameter, settings)
        step = _expectation(
            session,
            run,
            0,
            particles,
            np.arange(n),
            ClassifyStage(
                particles.microscope, diameter, first, noise, 1, Region(f"{run}/it000/none", (0, 0, 0), (k, size, size))
            ),
            k,
            classify.random_assignment(n, k, settings),
        )
        found = class_averages.average(step.total, size, pixel, diameter, settings, first.max_shell)
        _keep_averages(session, f"{run}/it000/averages", found.references, pixel)
        state = {"noise": noise.tolist()}
        session.project.write_json(f"state/{run}/it000.json", state)
    for iteration in range(done, settings.iterations):
        noise = np.asarray(state["noise"], dtype=np.float32)
        sampled = classify.sampling(iteration, size, pixel, diameter, settings)
        rows = classify.batch_rows(iteration, n, settings)
        last = iteration + 1 == settings.iterations
        step = _expectation(
            session,
            run,
            iteration + 1,
            particles,
            np.arange(n) if last else rows,
            ClassifyStage(
                particles.microscope,
                diameter,
                sampled,
                noise,
                settings.poses_kept,
                _averages_of(run, iteration, k, size),
            ),
            k,
        )
        found = class_averages.average(
            step.total, size, pixel, diameter, settings, None if last else sampled.max_shell + 2.0
        )
        counts = np.bincount(step.assignment[:, 0].astype(np.int64), minlength=k)
        references = found.references
        if iteration < 0.7 * settings.iterations:
            references = class_averages.refill(references, counts, iteration, settings)
        _keep_averages(session, f"{run}/it{iteration + 1:03d}/averages", references, pixel)
        m = sum(r["n"] for r in step.records)
        figures = {
            "resolution": size * pixel / sampled.max_shell,
            "max_probability": sum(r["max_probability"] for r in step.records) / m,
            "log_likelihood": sum(r["log_likelihood"] for r in step.records) / m,
            "classes": float((counts > 0).sum()),
            "of": float(settings.iterations),
        }
        state = {"noise": class_averages.measured_noise(step.records, noise).tolist(), "figures": figures}
        if last:
            _keep_averages(session, f"{run}/averages", found.images, pixel)
            _keep_table(session, f"{run}/assignment", step.assignment)
            state["ratio"] = found.ratio.tolist()
        session.project.write_json(f"state/{run}/it{iteration + 1:03d}.json", state)
        session.emit(IterationFinished("classify", iteration + 1, figures))
    return _chosen(session, run, particles, np.asarray(state["ratio"]))


def _chosen(session: Session, run: str, particles: Particles, ratio: np.ndarray) -> Classified:
    """The good classes of a finished run and their particles."""
    settings, pixel = session.settings.classify, particles.optics.pixel_size
    averages = session.project.read(session.project.whole(f"{run}/averages"))
    assignment = session.project.read(session.project.whole(f"{run}/assignment"))
    number = assignment[:, 0].astype(np.int64)
    counts = np.bincount(number, minlength=len(averages))
    selected = class_averages.select(averages, ratio, counts, pixel, particles.diameter, settings)
    keep = selected[number]
    table = particles.table.assign(
        class_number=number + 1,
        psi=assignment[:, 1].astype(np.float64),
        origin_x=assignment[:, 2].astype(np.float64) * pixel,
        origin_y=assignment[:, 3].astype(np.float64) * pixel,
    )
    name = f"{run}:{'+'.join(str(i + 1) for i in np.flatnonzero(selected))}"
    n_out = int((~keep).sum())
    reason = f"in {int((~selected & (counts > 0)).sum())} of {int((counts > 0).sum())} classes that were not selected"
    set_aside = (SetAside("classify", f"{n_out} particles", reason),) if n_out else ()
    kept = replace(particles, table=table).subset(keep, name)
    return Classified(run, averages, counts, selected, kept, set_aside)


def _last_state(session: Session, run: str) -> tuple[int, dict[str, Any] | None]:
    for iteration in range(session.settings.classify.iterations, -1, -1):
        held = session.project.read_json(f"state/{run}/it{iteration:03d}.json")
        if held is not None:
            return iteration, held
    return 0, None


def _averages_of(run: str, iteration: int, k: int, size: int) -> Region:
    return Region(f"{run}/it{iteration:03d}/averages", (0, 0, 0), (k, size, size))


def _keep_averages(session: Session, name: str, images: Tensor, pixel_size: float) -> None:
    shape = tuple(images.shape)
    spec = ArraySpec(
        name,
        shape,
        ("class", "y", "x"),
        "float32",
        (1, *shape[1:]),
        shape,
        doc="Class averages",
        attributes={"pixel_size": pixel_size},
    )
    session.project.create(spec)
    session.project.write(session.project.whole(name), images.numpy().astype(np.float32))


def _keep_table(session: Session, name: str, values: np.ndarray) -> None:
    spec = ArraySpec(
        name,
        values.shape,
        ("particle", "value"),
        "float32",
        values.shape,
        values.shape,
        doc="Class, psi in degrees, origin x, y in px, weight, log-likelihood",
    )
    session.project.create(spec)
    session.project.write(session.project.whole(name), values.astype(np.float32))


def _expectation(
    session: Session,
    run: str,
    iteration: int,
    particles: Particles,
    rows: np.ndarray,
    stage: ClassifyStage,
    n_classes: int,
    fixed: np.ndarray | None = None,
) -> _Step:
    """Match some particles on the workers and sum their partial sums in the order of the units.

    All iterations share two arrays: a unit's ledger entry is written after its sums, and the next iteration starts after
    all sums of this one were read.
    """
    width, m = session.settings.classify.unit_size, PADDING * particles.size
    n_units = -(-len(particles) // width)
    partial, row = (n_classes, m, m // 2 + 1, 3), (width, ASSIGNMENT_COLUMNS)
    specs = [
        ArraySpec(
            f"{run}/partials",
            (n_units, *partial),
            ("unit", "class", "y", "x", "part"),
            "float32",
            (1, 1, *partial[1:]),
            (1, *partial),
            doc="Sums of the last iteration: real part, imaginary part, weight",
        ),
        ArraySpec(
            f"{run}/poses",
            (n_units, *row),
            ("unit", "particle", "value"),
            "float32",
            (1, *row),
            (1, *row),
            doc="Class, psi in degrees, origin x, y in px, weight, log-likelihood",
        ),
    ]
    name = f"{run}/it{iteration:03d}"
    parts = [rows[i : i + width] for i in range(0, len(rows), width)]
    units, regions = [], []
    for i, part in enumerate(parts):
        source, some = particles.read_of(part)
        parameters: dict[str, Any] = {"ctf": particles.transfer(part)}
        if some is not None:
            parameters["rows"] = some
        if fixed is not None:
            parameters["fixed"] = fixed[part]
        writes = {
            "partials": Region(specs[0].name, (i, 0, 0, 0, 0), (i + 1, *partial)),
            "assignment": Region(specs[1].name, (i, 0, 0), (i + 1, *row)),
        }
        units.append(Unit(f"{name}/{i:06d}", {"images": source}, writes, parameters))
        regions.append(writes)
    marks = session.map(stage, name, specs, units, quiet=True, need_all=True)
    total = torch.zeros(partial)
    assignment = np.zeros((len(rows), ASSIGNMENT_COLUMNS), dtype=np.float32)
    for i, (part, writes) in enumerate(zip(parts, regions, strict=True)):
        total += torch.from_numpy(session.project.read(writes["partials"])[0])
        assignment[i * width : i * width + len(part)] = session.project.read(writes["assignment"])[0, : len(part)]
    return _Step(total, assignment, tuple(mark.record for mark in marks))
