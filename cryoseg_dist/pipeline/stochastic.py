"""A first map from the particles alone, by stochastic expectation-maximisation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.orientation_grid import random_perturbation
from cryoseg_dist.pipeline.maps import (
    IDENTITY_POSE,
    Batch,
    expectation,
    folds_of,
    map_region,
    mean_power,
    read_map,
    write_maps,
)
from cryoseg_dist.pipeline.memory_plan import plan_stochastic
from cryoseg_dist.pipeline.particle_folds import fold_of
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.events import IterationFinished
from cryoseg_dist.schema.work import ArraySpec, Unit
from cryoseg_dist.stages import abinitio, refine
from cryoseg_dist.stages.reconstruct import FoldStage, complete
from cryoseg_dist.stages.refine_expectation import ExpectationStage

# A batch is cut into so many units for each start, of this many particles at least.
UNITS_A_BATCH, LEAST_PARTICLES = 4, 64
# Shells summed beyond the resolution, over which the map fades.
MARGIN = 4.0


def run_stochastic(session: Session, particles: Particles) -> tuple[str, Tensor]:
    """A first map by stochastic EM; run id and map. Resumed after its last finished iteration."""
    s = session.settings
    settings, symmetry, padding = s.abinitio, s.particle.symmetry, s.reconstruct.padding
    size, pixel, diameter = particles.size, particles.optics.pixel_size, particles.diameter
    config = {"abinitio": settings.model_dump(), "symmetry": symmetry, "diameter": diameter, "padding": padding}
    schedule = abinitio.schedule_for(symmetry, diameter, settings)
    run = session.run_id("abinitio", config, {"particles": particles.run})
    plan_stochastic(session, particles)
    still = np.tile(IDENTITY_POSE, (len(particles), 1))

    def totals_of(groups: dict[str, list[Unit]], noise: np.ndarray, max_shell: float) -> list[Tensor]:
        stage = FoldStage(particles.microscope, size, padding, noise, max_shell + MARGIN)
        sums = session.accumulation().sums(stage, groups)
        return [complete(sums[name], symmetry, size, padding, max_shell + MARGIN) for name in groups]

    def maps_of(totals: Sequence[Tensor], max_shell: float) -> list[Tensor]:
        return [abinitio.map_of(t, size, pixel, diameter, max_shell, padding) for t in totals]

    iteration, state = _last_state(session, run)
    if state is None:
        n = schedule.starts
        noise = 0.5 * mean_power(session, particles).numpy()
        state = {"noise": np.tile(noise, (n, 1)).tolist(), "likelihoods": [[] for _ in range(n)]}
        first = abinitio.step(0, len(particles), size, pixel, schedule, settings)
        groups = {str(i): [_random_fold(particles, first.particles, i, settings)] for i in range(n)}
        totals = totals_of(groups, np.asarray(state["noise"], dtype=np.float32), first.max_shell)
        write_maps(session, f"{run}/it000/maps", maps_of(totals, first.max_shell), pixel)
    while not (len(state["likelihoods"]) == 1 and abinitio.settled(state["likelihoods"][0], settings)):
        noise = np.asarray(state["noise"], dtype=np.float32)
        step = abinitio.step(iteration, len(particles), size, pixel, schedule, settings)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration)
        before, name = f"{run}/it{iteration:03d}", f"{run}/it{iteration + 1:03d}"
        alive = range(len(noise))
        stage = ExpectationStage(
            particles.microscope,
            symmetry,
            diameter,
            abinitio.sampling(step, size, pixel, diameter, settings),
            noise,
            random_perturbation(settings.order, generator).numpy(),
            settings.poses_kept,
            0.99,
            False,
            {f"start{i}": map_region(f"{before}/maps", i, size) for i in alive},
            name="abinitio",
        )
        width = max(LEAST_PARTICLES, -(-len(step.particles) // UNITS_A_BATCH))
        parts = [step.particles[i : i + width] for i in range(0, len(step.particles), width)]
        batches = [Batch(start, part) for start in alive for part in parts]
        matched = expectation(session, name, particles, batches, stage, still)
        measured = refine.noise_spectra(matched.records, [b.half for b in batches], noise)
        noise = 0.5 * noise + 0.5 * measured
        totals = totals_of(
            {str(i): folds_of(session, particles, matched, i, name) for i in alive}, noise, step.max_shell
        )
        if step.memory:
            totals = [step.memory * _read_sum(session, before, i) + t for i, t in enumerate(totals)]
        records = [[r for r, b in zip(matched.records, batches, strict=True) if b.half == i] for i in alive]
        likelihoods = [
            [*old, sum(r["log_likelihood"] for r in some) / len(step.particles)]
            for old, some in zip(state["likelihoods"], records, strict=True)
        ]
        iteration += 1
        kept = abinitio.surviving(iteration, likelihoods, settings)
        write_maps(session, f"{name}/maps", maps_of([totals[i] for i in kept], step.max_shell), pixel)
        for place, i in enumerate(kept):
            _write_sum(session, name, place, totals[i])
        state = {"noise": noise[kept].tolist(), "likelihoods": [likelihoods[i] for i in kept]}
        session.project.write_json(f"state/{name}.json", state)
        figures = {
            "resolution": size * pixel / step.max_shell,
            "max_probability": max(sum(r["max_probability"] for r in some) for some in records) / len(step.particles),
            "particles": float(len(step.particles)),
            "starts": float(len(alive)),
            "of": float(max(iteration, settings.iterations)),
        }
        session.emit(IterationFinished("abinitio", iteration, figures))
    return run, read_map(session, f"{run}/it{iteration:03d}/maps", 0)


def _last_state(session: Session, run: str) -> tuple[int, dict[str, Any] | None]:
    for iteration in range(2 * session.settings.abinitio.iterations, 0, -1):
        state = session.project.read_json(f"state/{run}/it{iteration:03d}.json")
        if state is not None:
            return iteration, state
    return 0, None


def _random_fold(particles: Particles, rows: np.ndarray, start: int, settings: abinitio.AbinitioSettings) -> Unit:
    """Particles in random orientations."""
    return fold_of(f"random/{start}", particles, rows, abinitio.random_poses(len(rows), start, settings), start)


def _write_sum(session: Session, name: str, place: int, total: Tensor) -> None:
    shape = tuple(total.shape)
    spec = ArraySpec(
        f"{name}/sum{place}", shape, ("z", "y", "x", "part"), "float32", shape, shape, doc="Sum that fades"
    )
    session.project.create(spec)
    session.project.write(session.project.whole(spec.name), total.numpy())


def _read_sum(session: Session, name: str, place: int) -> Tensor:
    return torch.from_numpy(session.project.read(session.project.whole(f"{name}/sum{place}")))
