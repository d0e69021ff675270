"""The memory that maps of these particles take on this machine, for the largest iteration, before any of them starts."""

import math
import os

from cryoseg_dist.kernels.orientation_grid import angular_step, n_orientations
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.memory import MemoryPlan, available_bytes, plan_memory, scoring_bytes
from cryoseg_dist.stages import abinitio
from cryoseg_dist.stages.refine_expectation import BATCH, CHUNK, KEPT_BYTES

# Shifts of the first pass; later iterations, whose range is smaller, have fewer.
SHIFTS = 80


def plan_refinement(session: Session, particles: Particles) -> MemoryPlan:
    """Plan a refinement and limit the threads that sum to what fits.

    Raises
    ------
    SettingsError
        It does not fit.
    """
    settings, symmetry = session.settings.refine, session.settings.particle.symmetry
    orders = range(settings.first_order, settings.last_order + 1)
    fit = [o for o in orders if n_orientations(o, symmetry) <= settings.most_orientations]
    return _plan(session, particles, max(fit, default=settings.first_order), maps=2, groups=2)


def plan_stochastic(session: Session, particles: Particles) -> MemoryPlan:
    """The same for a stochastic start, whose starts are summed side by side."""
    settings = session.settings.abinitio
    starts = abinitio.n_starts(session.settings.particle.symmetry, settings)
    return _plan(session, particles, settings.order, maps=starts, groups=starts)


def plan_reconstruction(session: Session, particles: Particles) -> MemoryPlan:
    """The same for a reconstruction from known poses, which needs no scoring."""
    return _plan(session, particles, None, maps=0, groups=2)


def _plan(session: Session, particles: Particles, order: int | None, maps: int, groups: int) -> MemoryPlan:
    engine, s = session.settings.engine, session.settings
    cores = engine.workers or os.cpu_count() or 1
    each, workers = 0, 0
    if order is not None and engine.ray_address is None:
        size, pixel = particles.size, particles.optics.pixel_size
        displacement = math.radians(angular_step(order)) * 0.5 * particles.diameter
        shell = min((size - 1) // 2, max(5.0, 1.2 * size * pixel / displacement))
        workers = 1 if engine.engine == "inline" else cores
        each = scoring_bytes(
            size,
            maps=maps,
            orientations=n_orientations(order, s.particle.symmetry),
            pixels=round(0.5 * math.pi * shell * shell),
            shifts=SHIFTS,
            batch=BATCH,
            chunk=CHUNK,
            kept=KEPT_BYTES,
        )
    plan = plan_memory(
        particles.size,
        s.reconstruct.padding,
        workers=workers,
        worker_bytes=each,
        threads=cores,
        split_every=s.reconstruct.split_every,
        groups=groups,
        available=available_bytes(),
    )
    session.summing.limit(plan.threads)
    return plan
