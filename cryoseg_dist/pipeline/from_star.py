"""From a table of particles (STAR or cryoSPARC), made here or elsewhere, to maps: reconstruction and refinement.

Images are read where they are. Everything that a file lacks is told at once, before any work.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cryoseg_dist.errors import BadInputError, SettingsError
from cryoseg_dist.kernels.interpolation import Interpolation
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.pipeline import export
from cryoseg_dist.pipeline.maps import Refined, half_sets_of, read_map, reference_map, run_refine
from cryoseg_dist.pipeline.memory_plan import plan_reconstruction, threads_a_fold
from cryoseg_dist.pipeline.mend import mended
from cryoseg_dist.pipeline.micrographs import SetAside
from cryoseg_dist.pipeline.pages import write_report
from cryoseg_dist.pipeline.particle_folds import fold_of
from cryoseg_dist.pipeline.particle_tables import findable
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.run import RunResult, finish_maps
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.sums_to_maps import finish_by_slabs, solve_in_memory
from cryoseg_dist.runtime.events import StageFinished, StageStarted, UnitFinished
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.runtime.slab_finishing import SlabFinishing
from cryoseg_dist.schema.work import Outcome, Unit
from cryoseg_dist.stages.reconstruct import FoldStage, pose_table
from cryoseg_dist.store.ledger import Ledger, Mark

# Images of a fold at most: what an interruption can cost.
FOLD_IMAGES = 16384
# Images of a fold for each pixel of the box, at least: to keep the sum of fewer takes longer than to make it. Where every worker has a
# fold, more folds only even out the work, which may cost a quarter of it.
IMAGES_A_PIXEL, IMAGES_TO_EVEN_OUT = 10, 40


def folds_a_group(n_images: int, n_groups: int, size: int, workers: int, folds_per_worker: int | None) -> int:
    """Folds of each of some groups of particles, which all workers share."""
    if folds_per_worker is not None:
        return max(1, -(-folds_per_worker * workers // n_groups))
    ways = ((1, IMAGES_A_PIXEL), (2, IMAGES_TO_EVEN_OUT))
    return max(1, *(min(-(-n * workers // n_groups), n_images // (n_groups * least * size)) for n, least in ways))


def plan_folds(
    run: str, particles: Particles, groups: Mapping[str, np.ndarray], poses: np.ndarray, n_folds: int
) -> dict[str, list[Unit]]:
    """Folds of each group of rows: stretches of particles."""
    out: dict[str, list[Unit]] = {}
    for group, rows in groups.items():
        if particles.array is not None:
            # Neighbours in the array are read as one stretch.
            rows = rows[np.argsort(particles.table["store_index"].to_numpy()[rows], kind="stable")]
        stretches = np.array_split(rows, min(len(rows), max(n_folds, -(-len(rows) // FOLD_IMAGES))))
        out[group] = [fold_of(f"{run}/{group}/{i:04d}", particles, r, poses[r]) for i, r in enumerate(stretches)]
    return out


def groups_of(particles: Particles, half: np.ndarray, classes: Sequence[int]) -> dict[str, np.ndarray]:
    """Rows of each half set of each class; of each half set where there are no classes.

    Raises
    ------
    BadInputError
        A half set without particles.
    """
    number = particles.table["class_number"].to_numpy() if classes else np.zeros(len(particles), dtype=np.int64)
    groups = {}
    for n in classes or (0,):
        for h in (0, 1):
            name = f"half{h + 1}" if not classes else f"class{n:03d}/half{h + 1}"
            groups[name] = np.flatnonzero((half == h) & (number == n))
    empty = [name for name, rows in groups.items() if not len(rows)]
    if empty:
        raise BadInputError(", ".join(empty), "particles in both half sets", "none", "Leave that class out.")
    return groups


def run_reconstruct(
    session: Session, particles: Particles, max_resolution: float | None, classes: Sequence[int] = ()
) -> dict[int, Refined]:
    """Half maps from the poses of the table, of each class in one pass; finished folds are not computed again.

    Parameters
    ----------
    max_resolution : float, optional
        A; finer frequencies are left out.
    classes : sequence of int
        Numbers of the classes that get maps of their own; one map of all when empty.

    Returns
    -------
    dict of int to Refined
        By class number; the only one has the key 0 where there are no classes.
    """
    s = session.settings
    size, pixel, padding = particles.size, particles.optics.pixel_size, s.reconstruct.padding
    max_shell = None if max_resolution is None else min(size / 2, size * pixel / max_resolution)
    half = half_sets_of(particles, s.refine.seed)
    if s.reconstruct.solver == "cg" and padding < 2:
        raise SettingsError([f"reconstruct.padding: expected 2 or more for the solver cg, got {padding}."])
    if s.reconstruct.solver == "cg" and s.reconstruct.interpolation is not Interpolation.TRILINEAR:
        raise SettingsError(["reconstruct.interpolation: expected trilinear for the solver cg, got kaiser_bessel."])
    config: dict[str, Any] = {
        "padding": padding,
        "interpolation": s.reconstruct.interpolation,
        "ewald": s.reconstruct.ewald,
        "max_shell": max_shell,
        "seed": s.refine.seed,
        "symmetry": s.particle.symmetry,
        "diameter": particles.diameter,
        "classes": list(classes),
    }
    if s.reconstruct.solver != "direct":
        config["solver"] = s.reconstruct.model_dump(include={"solver", "support", "cg_iterations", "cg_tolerance"})
    run = session.run_id("reconstruct", config, {"particles": particles.run})
    done = session.project.read_json(f"state/{run}/done.json")
    if done is None:
        done = _sum_up(session, run, particles, half, classes, max_shell)
    out = {}
    for i, number in enumerate(classes or (0,)):
        some = particles.table["class_number"].to_numpy() == number if classes else np.ones(len(particles), dtype=bool)
        one = particles.subset(some, run)
        half1, half2, full = (read_map(session, f"{run}/maps", 3 * i + j) for j in range(3))
        prefix = f"{run}/class{number:03d}/" if classes else f"{run}/"
        lost = tuple(SetAside(**item) for key, item in done["set_aside"].items() if key.startswith(prefix))
        table = one.table.assign(random_subset=half[some] + 1)
        solver = done["solver"][str(number)]
        out[number] = Refined(run, replace(one, table=table), half1, half2, (), full, lost, solver)
    return out


def _sum_up(
    session: Session, run: str, particles: Particles, half: np.ndarray, classes: Sequence[int], max_shell: float | None
) -> dict[str, Any]:
    """Sum all folds, keep the maps, and say how and what was set aside."""
    rows = groups_of(particles, half, classes)
    s = session.settings
    settings, padding = s.reconstruct, s.reconstruct.padding
    size, pixel = particles.size, particles.optics.pixel_size
    plan = plan_reconstruction(session, particles)
    accumulate = session.accumulation()
    # Held, so that a run goes on with its folds whatever the number of workers is now.
    held = session.project.read_json(f"state/{run}/folds.json")
    if held is None:
        wanted = settings.folds_per_worker
        held = {"folds": folds_a_group(len(particles), len(rows), size, accumulate.workers, wanted)}
        session.project.write_json(f"state/{run}/folds.json", held)
    t = particles.table
    poses = pose_table(t["rot"], t["tilt"], t["psi"], t["origin_x"], t["origin_y"], pixel)
    groups = plan_folds(run, particles, rows, poses, int(held["folds"]))
    units = {unit.key: unit for folds in groups.values() for unit in folds}
    before = Ledger(session.project.ledger_path(run)).load()
    started = time.monotonic()
    session.emit(StageStarted("reconstruct", run, len(units), len(before)))

    def tell(mark: Mark) -> None:
        session.emit(
            UnitFinished(
                "reconstruct", run, mark.key, mark.outcome, mark.seconds, 0, 0, mark.attempts, mark.worker, mark.reason
            )
        )

    stage = FoldStage(
        particles.microscope,
        size,
        padding,
        max_shell=max_shell,
        interpolation=settings.interpolation,
        ewald=settings.ewald,
        diameter=particles.diameter,
        threads=threads_a_fold(session, plan),
    )
    kept = accumulate.keep(stage, groups, run, on_fold=tell)
    finishing = SlabFinishing(
        PartialSums(session.project, run, stage.partial_shape),
        size,
        padding,
        operators(s.particle.symmetry),
        kept,
        max_shell,
        settings.interpolation,
    )
    solver: dict[str, Any]
    if settings.solver == "direct":
        finish_by_slabs(session, accumulate, finishing, pixel, particles.diameter)
        solver = {str(number): {"name": "direct"} for number in classes or (0,)}
    else:
        solver = solve_in_memory(session, accumulate, finishing, particles, classes)
    marks = Ledger(session.project.ledger_path(run)).load()
    lost = {key: vars(item) for mark in marks.values() for key, item in lost_of(mark, units[mark.key])}
    done = {"solver": solver, "set_aside": lost}
    session.project.write_json(f"state/{run}/done.json", done)
    # The maps are safe: the sums have served. Were the maps lost, they would have to be made again.
    with Ledger(session.project.ledger_path(run)) as ledger:
        ledger.take_back(mark.key for mark in marks.values() if mark.outcome is Outcome.DONE)
    finishing.remove()
    outcomes = Counter(str(mark.outcome) for mark in marks.values())
    session.emit(StageFinished("reconstruct", run, dict(outcomes), time.monotonic() - started))
    return done


def lost_of(mark: Mark, unit: Unit) -> Iterator[tuple[str, SetAside]]:
    """What a fold was set aside for, and the particles that went with it."""
    counts = [len(part["poses"]) for part in unit.parameters["parts"]]
    if mark.outcome is not Outcome.DONE:
        yield mark.key, SetAside("reconstruct", f"{sum(counts)} particles ({mark.key})", mark.reason)
    for read, reason in mark.record.get("unreadable", {}).items():
        count = counts[int(read.rpartition("/")[2])]
        yield f"{mark.key}/{read}", SetAside("reconstruct", f"{count} particles ({mark.key}/{read})", reason)


def reconstruct(
    session: Session, particles: Particles, max_resolution: float | None = None, classes: Sequence[int] = ()
) -> dict[int, RunResult]:
    """Reconstruct from known poses and export the maps: of each class to a folder of its own, where there are classes."""
    started = time.monotonic()
    maps = mended(session, lambda: run_reconstruct(session, particles, max_resolution, classes))
    seconds = {"reconstruct": round(time.monotonic() - started, 2)}
    results = {}
    for number, refined in maps.items():
        place = session.project.export
        if classes:
            place = session.project.root / f"class{number:03d}" / "export"
        results[number] = export_all(replace(session, project=session.project.exporting(place)), refined, seconds)
    return results


def refine(session: Session, particles: Particles, reference: Path) -> RunResult:
    """Refine particles against a map and export the maps.

    Raises
    ------
    BadInputError
        The reference is no cubic map.
    """
    started = time.monotonic()
    stat = reference.stat()
    name = f"reference:{reference.absolute()}:{stat.st_size}:{stat.st_mtime_ns}"
    volume = reference_map(reference, particles.size, particles.optics.pixel_size)
    refined = mended(session, lambda: run_refine(session, particles, volume, name, any_scale=True))
    return export_all(session, refined, {"refine": round(time.monotonic() - started, 2)})


def export_all(session: Session, refined: Refined, seconds: Mapping[str, float]) -> RunResult:
    """Post-process half maps and write ``export``."""
    refined = replace(refined, particles=findable(refined.particles, session.project.export))
    result = RunResult(session, particles=refined.particles, refined=refined, seconds=dict(seconds))
    started = time.monotonic()
    result.maps = finish_maps(session, refined)
    result.seconds["postprocess"] = round(time.monotonic() - started, 2)
    write_report(session, result)
    export.export_result(session.project.export, result.figures())
    session.finished()
    return result
