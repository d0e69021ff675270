"""From a table of particles (STAR or cryoSPARC), made here or elsewhere, to maps: reconstruction and refinement.

Images are read where they are. Everything that a file lacks is told at once, before any work.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.errors import SettingsError
from cryoseg_dist.kernels.coverage import view_coverage
from cryoseg_dist.kernels.mask import distance_from_centre
from cryoseg_dist.pipeline import export
from cryoseg_dist.pipeline.maps import Refined, half_sets_of, read_map, reference_map, run_refine, write_maps
from cryoseg_dist.pipeline.memory_plan import plan_reconstruction
from cryoseg_dist.pipeline.mend import mended
from cryoseg_dist.pipeline.micrographs import SetAside
from cryoseg_dist.pipeline.pages import write_report
from cryoseg_dist.pipeline.particle_tables import findable
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.run import RunResult, finish_maps
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.validation import read_mask
from cryoseg_dist.report.figures_orientations import view_axes
from cryoseg_dist.runtime.dask_accumulation import partials_name
from cryoseg_dist.runtime.events import StageFinished, StageStarted, UnitFinished
from cryoseg_dist.schema.work import Outcome, Unit
from cryoseg_dist.stages.reconstruct import (
    FoldStage,
    ReconstructSettings,
    complete,
    damped_map,
    maps_of_sums,
    pose_table,
    solved_map,
    solver_words,
)
from cryoseg_dist.stages.refine import masked_fsc, particle_sphere
from cryoseg_dist.store.ledger import Ledger, Mark

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
    size, pixel, padding = particles.size, particles.optics.pixel_size, s.reconstruct.padding
    max_shell = None if max_resolution is None else min(size / 2, size * pixel / max_resolution)
    half = half_sets_of(particles, s.refine.seed)
    if s.reconstruct.solver == "cg" and padding < 2:
        raise SettingsError([f"reconstruct.padding: expected 2 or more for the solver cg, got {padding}."])
    config: dict[str, Any] = {
        "padding": padding,
        "max_shell": max_shell,
        "seed": s.refine.seed,
        "symmetry": s.particle.symmetry,
        "diameter": particles.diameter,
    }
    if s.reconstruct.solver != "direct":
        config["solver"] = s.reconstruct.model_dump(include={"solver", "support", "cg_iterations", "cg_tolerance"})
    run = session.run_id("reconstruct", config, {"particles": particles.run})
    done = session.project.read_json(f"state/{run}/done.json")
    if done is None:
        done = _sum_up(session, run, particles, half, max_shell)
    half1, half2, full = (read_map(session, f"{run}/maps", i) for i in range(3))
    set_aside = tuple(SetAside(**item) for item in done["set_aside"])
    table = particles.table.assign(random_subset=half + 1)
    return Refined(run, replace(particles, table=table), half1, half2, (), full, set_aside, done["solver"])


def _sum_up(
    session: Session, run: str, particles: Particles, half: np.ndarray, max_shell: float | None
) -> dict[str, Any]:
    """Sum all folds and keep the maps; what was set aside."""
    s = session.settings
    settings, symmetry, padding = s.reconstruct, s.particle.symmetry, s.reconstruct.padding
    size, pixel = particles.size, particles.optics.pixel_size
    plan_reconstruction(session, particles)
    accumulate = session.accumulation()
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

    stage = FoldStage(particles.microscope, size, padding, max_shell=max_shell)
    sums = accumulate.sums(stage, groups, checkpoint=run, on_fold=tell, need_all=False)
    totals = [complete(sums[name], symmetry, size, padding) for name in groups]
    maps, solver = made_maps(totals, particles, settings, max_shell, symmetry)
    write_maps(session, f"{run}/maps", maps, pixel)
    marks = Ledger(session.project.ledger_path(run)).load()
    lost = [m for m in marks.values() if m.outcome is not Outcome.DONE]
    done = {
        "solver": solver,
        "set_aside": [
            {
                "stage": "reconstruct",
                "item": f"{sum(len(part['poses']) for part in units[m.key].parameters['parts'])} particles ({m.key})",
                "reason": m.reason,
            }
            for m in lost
        ],
    }
    session.project.write_json(f"state/{run}/done.json", done)
    # The maps are safe: the sums of the folds have served.
    session.project.remove(partials_name(run))
    outcomes = Counter(str(mark.outcome) for mark in marks.values())
    session.emit(StageFinished("reconstruct", run, dict(outcomes), time.monotonic() - started))
    return done


def made_maps(
    totals: Sequence[Tensor],
    particles: Particles,
    settings: ReconstructSettings,
    max_shell: float | None,
    symmetry: str,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Both half maps and the map of all particles, and how they were solved for.

    Plain half maps give the FSC that says how much each voxel is damped; nothing else passes between the half sets.
    """
    size, pixel, padding = particles.size, particles.optics.pixel_size, settings.padding
    plain1, plain2 = maps_of_sums(totals, size, padding, max_shell)
    curve = masked_fsc(plain1, plain2, pixel, particles.diameter)
    groups = ([totals[0]], [totals[1]], totals)
    if settings.solver == "direct":
        return [damped_map(g, curve, size, padding, max_shell) for g in groups], {"name": "direct"}
    support, extent = particle_sphere(size, pixel, particles.diameter), min(particles.diameter, size * pixel)
    if settings.support:
        support = read_mask(Path(settings.support), size, pixel)
        extent = 2.0 * pixel * float(distance_from_centre(size)[support > 0.5].max())
    solved = [solved_map(g, curve, size, padding, max_shell, support, settings) for g in groups]
    axes = view_axes(particles.table[["rot", "tilt"]].to_numpy(float), symmetry)
    words = solver_words(view_coverage(torch.from_numpy(axes)), size, pixel, extent)
    figures = {"name": "cg", "iterations": [s.iterations for s in solved], "words": words}
    return [s.volume for s in solved], figures


def reconstruct(session: Session, particles: Particles, max_resolution: float | None = None) -> RunResult:
    """Reconstruct from known poses and export the maps."""
    started = time.monotonic()
    refined = mended(session, lambda: run_reconstruct(session, particles, max_resolution))
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
