"""From a table of particles (STAR or cryoSPARC), made here or elsewhere, to maps: reconstruction and refinement.

Images are read where they are. Everything that a file lacks is told at once, before any work.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cryoseg_dist.pipeline import export
from cryoseg_dist.pipeline.maps import Refined, accumulation, half_sets_of, reference_map, run_refine
from cryoseg_dist.pipeline.pages import write_report
from cryoseg_dist.pipeline.particle_tables import findable
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.run import RunResult, finish_maps
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.events import StageFinished, StageStarted, UnitFinished
from cryoseg_dist.schema.work import Outcome, Unit
from cryoseg_dist.stages.reconstruct import FoldStage, combined_map, complete, maps_of_sums, pose_table
from cryoseg_dist.stages.refine import masked_fsc
from cryoseg_dist.store.ledger import Ledger

# Images a fold reads at once, and images of a fold at most: what an interruption can cost.
PART_IMAGES, FOLD_IMAGES = 256, 16384


def plan_folds(
    run: str, particles: Particles, half: np.ndarray, poses: np.ndarray, n_folds: int
) -> dict[str, list[Unit]]:
    """Folds of each half set: stretches of particles, read in parts."""
    groups: dict[str, list[Unit]] = {}
    for h in (0, 1):
        groups[f"half{h + 1}"] = folds = []
        for number, members in enumerate(np.array_split(np.flatnonzero(half == h), n_folds)):
            pieces = [members[i : i + PART_IMAGES] for i in range(0, len(members), PART_IMAGES)]
            parts = [{"ctf": particles.transfer(rows), "poses": poses[rows]} for rows in pieces]
            reads = {f"images/{i}": particles.read_of(rows)[0] for i, rows in enumerate(pieces)}
            folds.append(Unit(f"{run}/{h}/{number:04d}", reads, {}, {"half": h, "parts": parts}))
    return groups


def run_reconstruct(session: Session, particles: Particles, max_resolution: float | None) -> Refined:
    """Half maps from the poses of the table; finished folds are not computed again.

    Parameters
    ----------
    max_resolution : float, optional
        A; finer frequencies are left out.
    """
    s = session.settings
    settings, symmetry = s.reconstruct, s.particle.symmetry
    size, pixel, padding = particles.size, particles.optics.pixel_size, settings.padding
    max_shell = None if max_resolution is None else min(size / 2, size * pixel / max_resolution)
    half = half_sets_of(particles, s.refine.seed)
    config = {"padding": padding, "max_shell": max_shell, "seed": s.refine.seed}
    run = session.run_id("reconstruct", config, {"particles": particles.run})
    accumulate = accumulation(session)
    n_largest = max(int((half == h).sum()) for h in (0, 1))
    # Held, so that a run goes on with its folds whatever the number of workers is now.
    held = session.project.read_json(f"state/{run}/folds.json")
    if held is None:
        wanted = max(-(-settings.folds_per_worker * accumulate.workers // 2), -(-n_largest // FOLD_IMAGES))
        held = {"folds": max(1, min(wanted, n_largest))}
        session.project.write_json(f"state/{run}/folds.json", held)
    t = particles.table
    poses = pose_table(t["rot"], t["tilt"], t["psi"], t["origin_x"], t["origin_y"], pixel)
    groups = plan_folds(run, particles, half, poses, int(held["folds"]))
    done = len(Ledger(session.project.ledger_path(run)).load())
    started = time.monotonic()
    session.emit(StageStarted("reconstruct", run, sum(map(len, groups.values())), done))

    def tell(_group: str, units: Any) -> None:
        for unit in units:
            session.emit(UnitFinished("reconstruct", run, unit.key, Outcome.DONE, 0.0, 0, 0, 1, ""))

    stage = FoldStage(particles.microscope, size, padding, max_shell=max_shell)
    sums = accumulate.sums(stage, groups, checkpoint=run, on_fold=tell)
    totals = [complete(sums[name], symmetry, size, padding) for name in groups]
    half1, half2 = maps_of_sums(totals, size, padding, max_shell)
    curve = masked_fsc(half1, half2, pixel, particles.diameter)
    full = combined_map(totals, curve, size, padding, max_shell)
    outcomes = {str(Outcome.DONE): sum(map(len, groups.values()))}
    session.emit(StageFinished("reconstruct", run, outcomes, time.monotonic() - started))
    table = t.assign(random_subset=half + 1)
    return Refined(run, replace(particles, table=table), half1, half2, (), full)


def reconstruct(session: Session, particles: Particles, max_resolution: float | None = None) -> RunResult:
    """Reconstruct from known poses and export the maps."""
    started = time.monotonic()
    refined = run_reconstruct(session, particles, max_resolution)
    return export_all(session, refined, {"reconstruct": round(time.monotonic() - started, 2)})


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
    refined = run_refine(session, particles, volume, name, any_scale=True)
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
    return result
