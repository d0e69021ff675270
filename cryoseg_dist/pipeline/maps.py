"""From particles and a first map to half maps: gold-standard refinement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.mrc import read_volume
from cryoseg_dist.kernels.fourier import resize_spectrum, shell_mean, to_fourier, to_real
from cryoseg_dist.kernels.orientation_grid import angular_step
from cryoseg_dist.kernels.so3 import matrix_to_euler
from cryoseg_dist.pipeline.memory_plan import plan_refinement
from cryoseg_dist.pipeline.micrographs import SetAside
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.events import IterationFinished
from cryoseg_dist.runtime.reading import read
from cryoseg_dist.schema.work import ArraySpec, Read, Region, Unit
from cryoseg_dist.stages import refine
from cryoseg_dist.stages.reconstruct import FoldStage, complete
from cryoseg_dist.stages.refine_expectation import POSE_COLUMNS, ExpectationStage
from cryoseg_dist.stages.refine_scales import updated_scales

# Images that the first noise spectrum is measured on, and units of the E-step that one fold sums.
NOISE_SAMPLE, UNITS_A_FOLD = 512, 8
IDENTITY_POSE = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], dtype=np.float32)


@dataclass(frozen=True)
class Refined:
    """The end of a refinement.

    Attributes
    ----------
    run : str
    particles : Particles
        With angles, origins and half sets.
    half1, half2 : Tensor, shape (n, n, n)
        Unfiltered.
    iterations : tuple of Mapping
        Figures of each.
    full : Tensor, optional, shape (n, n, n)
        The map of both half sets' sum.
    set_aside : tuple of SetAside
        Folds that could not be summed.
    solver : Mapping, optional
        How the maps were made of the sums.
    first_low_pass : float, optional
        Low pass in A of the reference that both half sets began with.
    """

    run: str
    particles: Particles
    half1: Tensor
    half2: Tensor
    iterations: tuple[Mapping[str, float], ...]
    full: Tensor | None = None
    set_aside: tuple[SetAside, ...] = ()
    solver: Mapping[str, Any] | None = None
    first_low_pass: float | None = None


@dataclass(frozen=True)
class Batch:
    """Particles of one half set that one unit matches."""

    half: int
    rows: np.ndarray


def mean_power(session: Session, particles: Particles) -> Tensor:
    """Mean power of some images by shell."""
    rows = np.arange(min(NOISE_SAMPLE, len(particles)))
    source, some = particles.read_of(rows)
    images = read(session.project, source)
    images = (images if some is None else images[some]).astype(np.float32)
    return shell_mean(to_fourier(torch.from_numpy(images)).abs().square(), particles.size).mean(dim=0)


def half_sets_of(particles: Particles, seed: int) -> np.ndarray:
    """Half set (0 or 1) of each particle: the table's, else at random."""
    if "random_subset" in particles.table:
        return particles.table["random_subset"].to_numpy(np.int64) - 1
    return refine.half_sets(len(particles), seed)


def batches_of(half: np.ndarray, size: int, rows: np.ndarray | None = None) -> list[Batch]:
    """Units' particles: half sets apart, in ascending order."""
    out = []
    for h in (0, 1):
        members = np.flatnonzero(half == h) if rows is None else rows[half[rows] == h]
        out += [Batch(h, members[i : i + size]) for i in range(0, len(members), size)]
    return out


def write_maps(session: Session, name: str, maps: Sequence[Tensor], pixel_size: float) -> None:
    """Keep maps in the store as one array (k, z, y, x)."""
    stack = np.stack([m.numpy() for m in maps]).astype(np.float32)
    spec = ArraySpec(
        name,
        stack.shape,
        ("map", "z", "y", "x"),
        "float32",
        (1, *stack.shape[1:]),
        (1, *stack.shape[1:]),
        doc="Maps",
        attributes={"pixel_size": pixel_size},
    )
    session.project.create(spec)
    session.project.write(session.project.whole(name), stack)


def map_region(name: str, index: int, size: int) -> Region:
    """One map of an array of maps."""
    return Region(name, (index, 0, 0, 0), (index + 1, size, size, size))


def read_map(session: Session, name: str, index: int) -> Tensor:
    """One map of an array of maps."""
    shape = session.project.shape(name)
    return torch.from_numpy(session.project.read(map_region(name, index, shape[1]))[0])


@dataclass(frozen=True)
class _Matched:
    """What an expectation over batches gave."""

    records: tuple[Mapping[str, Any], ...]
    poses: str
    batches: tuple[Batch, ...]


def expectation(
    session: Session,
    run: str,
    particles: Particles,
    batches: Sequence[Batch],
    stage: ExpectationStage,
    last: np.ndarray,
    micrographs: np.ndarray | None = None,
) -> _Matched:
    """Match batches on the workers; resumable by its own ledger. The scales of micrographs (n,) are measured where they are given."""
    width = max(len(b.rows) for b in batches)
    shape = (len(batches), width, stage.poses_kept, POSE_COLUMNS)
    spec = ArraySpec(
        f"{run}/poses",
        shape,
        ("unit", "particle", "pose", "value"),
        "float32",
        (1, *shape[1:]),
        (1, *shape[1:]),
        doc="Rotation matrix (9), origin x, y in px, weight",
    )
    units = []
    for i, batch in enumerate(batches):
        source, rows = particles.read_of(batch.rows)
        parameters = {"half": batch.half, "ctf": particles.transfer(batch.rows), "poses": last[batch.rows]}
        if rows is not None:
            parameters["rows"] = rows
        if micrographs is not None:
            parameters["micrographs"] = np.unique(micrographs[batch.rows], return_inverse=True)[1]
        region = Region(spec.name, (i, 0, 0, 0), (i + 1, *shape[1:]))
        units.append(Unit(f"{run}/{i:06d}", {"images": source}, {"poses": region}, parameters))
    marks = session.map(stage, run, [spec], units, quiet=True, need_all=True)
    return _Matched(tuple(mark.record for mark in marks), spec.name, tuple(batches))


def folds_of(session: Session, particles: Particles, matched: _Matched, half: int, run: str) -> list[Unit]:
    """Folds over the matched units of one half set."""
    numbers = [i for i, b in enumerate(matched.batches) if b.half == half]
    shape = session.project.shape(matched.poses)
    folds = []
    for first in range(0, len(numbers), UNITS_A_FOLD):
        reads: dict[str, Read] = {}
        parts = []
        for j, i in enumerate(numbers[first : first + UNITS_A_FOLD]):
            rows = matched.batches[i].rows
            source, some = particles.read_of(rows)
            reads[f"images/{j}"] = source
            reads[f"poses/{j}"] = Region(matched.poses, (i, 0, 0, 0), (i + 1, *shape[1:]))
            part: dict[str, Any] = {"ctf": particles.transfer(rows)}
            parts.append(part if some is None else {**part, "rows": some})
        folds.append(Unit(f"{run}/fold/{half}/{first:06d}", reads, {}, {"half": half, "parts": parts}))
    return folds


def best_poses(session: Session, matched: _Matched, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most likely pose (n, 11) of each particle and its weight (n,); those not matched keep their last."""
    out, weight = last.copy(), np.zeros(len(last), dtype=np.float32)
    shape = session.project.shape(matched.poses)
    for i, batch in enumerate(matched.batches):
        region = Region(matched.poses, (i, 0, 0, 0), (i + 1, shape[1], 1, POSE_COLUMNS))
        first = session.project.read(region)[0, : len(batch.rows), 0]
        out[batch.rows], weight[batch.rows] = first[:, :11], first[:, 11]
    return out, weight


def reference_map(path: Path, size: int, pixel_size: float) -> Tensor:
    """A user's map on the particles' grid: resampled, then cropped or padded.

    Raises
    ------
    BadInputError
        Not a cube.
    """
    values, pixel = read_volume(path)
    if len(set(values.shape)) != 1:
        raise BadInputError(str(path), "a cubic map", f"{values.shape}", "Pad it to a cube.")
    volume = torch.from_numpy(values)
    n = volume.shape[0]
    new = max(4, 2 * round(0.5 * n * pixel / pixel_size))
    if new != n:
        volume = to_real(resize_spectrum(to_fourier(volume, 3), n, new, 3), new, 3)
    if new > size:
        before = new // 2 - size // 2
        return volume[before : before + size, before : before + size, before : before + size].clone()
    out = torch.zeros((size, size, size))
    before = size // 2 - new // 2
    out[before : before + new, before : before + new, before : before + new] = volume
    return out


def run_refine(session: Session, particles: Particles, start: Tensor, start_name: str, *, any_scale: bool) -> Refined:
    """Refine against a first map until nothing improves.

    Parameters
    ----------
    start : Tensor, shape (n, n, n)
    start_name : str
        What made it, for the run id.
    any_scale : bool
        Its grey scale is not that of the particles.
    """
    s = session.settings
    settings, symmetry, padding = s.refine, s.particle.symmetry, s.reconstruct.padding
    size, pixel, diameter = particles.size, particles.optics.pixel_size, particles.diameter
    low_pass = refine.initial_low_pass(symmetry, diameter, settings)
    config = {"refine": settings.model_dump(), "symmetry": symmetry, "diameter": diameter, "padding": padding}
    run = session.run_id("refine", config, {"particles": particles.run, "start": start_name})
    plan_refinement(session, particles)
    half = half_sets_of(particles, settings.seed)
    batches = batches_of(half, settings.unit_size)
    micrographs = None
    if settings.micrograph_scales and "micrograph_name" in particles.table:
        micrographs = np.unique(particles.table["micrograph_name"].to_numpy(str), return_inverse=True)[1]
    state, history = _last_state(session, run)
    if state is None:
        state = refine.first_state(mean_power(session, particles), size, pixel, low_pass, settings)
        if micrographs is not None:
            state = replace(state, scales=((1.0,) * (int(micrographs.max()) + 1),) * 2)
        first = refine.starting_reference(start, pixel, diameter, low_pass)
        write_maps(session, f"{run}/it000/maps", [first, first], pixel)
        last = np.tile(IDENTITY_POSE, (len(particles), 1))
    else:
        last = np.asarray(session.project.read(session.project.whole(f"{run}/it{state.iteration:03d}/best")))[:, :11]
    while not state.converged:
        name = f"{run}/it{state.iteration + 1:03d}"
        sampled = refine.sampling(state, size, pixel, diameter, symmetry, settings)
        maps = f"{run}/it{state.iteration:03d}/maps"
        scaled = _scaled(particles, state.scales, half, micrographs)
        stage = ExpectationStage(
            particles.microscope,
            symmetry,
            diameter,
            sampled,
            state.noise_array(),
            refine.perturbation(state, settings),
            settings.poses_kept,
            settings.share,
            any_scale and state.iteration == 0,
            {"half1": map_region(maps, 0, size), "half2": map_region(maps, 1, size)},
            refine.TESTED,
        )
        matched = expectation(session, name, scaled, batches, stage, last, None if stage.any_scale else micrographs)
        noise = refine.noise_spectra(matched.records, [b.half for b in batches], state.noise_array())
        fold = FoldStage(particles.microscope, size, padding, noise)
        groups = {str(h): folds_of(session, scaled, matched, h, name) for h in (0, 1)}
        sums = session.accumulation().sums(fold, groups)
        totals = [complete(sums[str(h)], symmetry, size, padding) for h in (0, 1)]
        maximized = refine.maximize(totals, size, pixel, diameter, padding, settings)
        last, weight = best_poses(session, matched, last)
        n = len(particles)
        square_shift, square_origin = (
            sum(r[name] for r in matched.records) / n for name in ("square_shift", "square_origin")
        )
        tested = sum(r["n_tested"] for r in matched.records)
        accuracy = sum(r["angular_accuracy"] for r in matched.records) / max(1, tested)
        old = state
        state = refine.next_state(
            state, maximized.curve, noise, square_shift, square_origin, accuracy, size, pixel, diameter, settings
        )
        if micrographs is not None and not stage.any_scale:
            halves, some = [b.half for b in batches], [micrographs[b.rows] for b in batches]
            scales = updated_scales(np.asarray(state.scales), matched.records, halves, some)
            state = replace(state, scales=tuple(tuple(row) for row in scales.tolist()))
        figures = {
            "resolution": size * pixel / state.resolution_shell,
            "angular_step": 0.5 * angular_step(old.order),
            "angular_accuracy": accuracy,
            "max_probability": sum(r["max_probability"] for r in matched.records) / n,
            "significant_poses": sum(r["n_significant"] for r in matched.records) / n,
            "log_likelihood": sum(r["log_likelihood"] for r in matched.records) / n,
        }
        history.append({"iteration": float(state.iteration), **figures})
        write_maps(session, f"{name}/maps", [*maximized.references, *maximized.raw, maximized.full], pixel)
        best = np.column_stack((last, weight))
        spec = ArraySpec(
            f"{name}/best", best.shape, ("particle", "value"), "float32", best.shape, best.shape, doc="Best pose"
        )
        session.project.create(spec)
        session.project.write(session.project.whole(spec.name), best.astype(np.float32))
        session.project.write_json(f"state/{name}.json", {"state": state.to_json(), "history": history})
        session.emit(IterationFinished("refine", state.iteration, figures))
    final = f"{run}/it{state.iteration:03d}"
    best = session.project.read(session.project.whole(f"{final}/best"))
    return Refined(
        run,
        with_poses(_scaled(particles, state.scales, half, micrographs), best[:, :11], best[:, 11], half),
        read_map(session, f"{final}/maps", 2),
        read_map(session, f"{final}/maps", 3),
        tuple(history),
        read_map(session, f"{final}/maps", 4),
        first_low_pass=low_pass,
    )


def _scaled(
    particles: Particles, scales: Sequence[Sequence[float]], half: np.ndarray, micrographs: np.ndarray | None
) -> Particles:
    """Particles whose CTFs have the grey scales of their micrographs, by half set."""
    if micrographs is None:
        return particles
    scale = np.asarray(scales)[half, micrographs] * particles.table.get("ctf_scale", 1.0)
    return replace(particles, table=particles.table.assign(ctf_scale=scale))


def _last_state(session: Session, run: str) -> tuple[refine.RefineState | None, list[Mapping[str, float]]]:
    for iteration in range(session.settings.refine.max_iterations, 0, -1):
        held = session.project.read_json(f"state/{run}/it{iteration:03d}.json")
        if held is not None:
            return refine.RefineState.from_json(held["state"]), list(held["history"])
    return None, []


def with_poses(particles: Particles, poses: np.ndarray, weight: np.ndarray, half: np.ndarray) -> Particles:
    """Particles whose table holds angles, origins and half sets."""
    rot, tilt, psi = matrix_to_euler(torch.from_numpy(poses[:, :9].astype(np.float64)).reshape(-1, 3, 3))
    table = particles.table.assign(
        rot=rot.numpy(),
        tilt=tilt.numpy(),
        psi=psi.numpy(),
        origin_x=poses[:, 9] * particles.optics.pixel_size,
        origin_y=poses[:, 10] * particles.optics.pixel_size,
        random_subset=half + 1,
        max_probability=weight,
    )
    return replace(particles, table=table)
