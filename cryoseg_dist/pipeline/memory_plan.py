"""The memory that maps of these particles take on this machine, for the largest iteration, before any of them starts."""

import math
import os

from cryoseg_dist.kernels.orientation_grid import angular_step, n_orientations, rim_displacement
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.memory import MemoryPlan, available_bytes, plan_memory, plan_slabs, scoring_bytes
from cryoseg_dist.stages import abinitio
from cryoseg_dist.stages.refine import RefineSettings
from cryoseg_dist.stages.refine_state import BATCH, CHUNK, KEPT_BYTES

# Shifts of the first pass; later iterations, whose range is smaller, have fewer.
SHIFTS = 80


def plan_refinement(session: Session, particles: Particles) -> MemoryPlan:
    """Plan a refinement and limit the threads that sum to what fits.

    Raises
    ------
    SettingsError
        It does not fit.
    """
    order = finest_order(session.settings.refine, session.settings.particle.symmetry)
    return _plan(session, particles, order, maps=2, groups=2)


def plan_stochastic(session: Session, particles: Particles) -> MemoryPlan:
    """The same for a stochastic start, whose starts are summed side by side."""
    settings = session.settings.abinitio
    starts = abinitio.schedule_for(session.settings.particle.symmetry, particles.diameter, settings).starts
    return _plan(session, particles, settings.order, maps=starts, groups=starts)


def plan_reconstruction(session: Session, particles: Particles) -> MemoryPlan:
    """The same for a reconstruction from known poses, which needs no scoring and, but for the solver cg, ends slab by slab."""
    s = session.settings
    if s.reconstruct.solver != "direct":
        return _plan(session, particles, None, maps=0, groups=2)
    cores = s.engine.workers or os.cpu_count() or 1
    plan = plan_slabs(particles.size, s.reconstruct.padding, threads=cores, available=available_bytes())
    session.summing.limit(plan.threads)
    return plan


def threads_a_fold(session: Session, plan: MemoryPlan) -> int:
    """Threads that share a volume: cores for which there is no room for one of their own. On a cluster, one."""
    engine = session.settings.engine
    if engine.dask_address is not None or engine.ray_address is not None:
        return 1
    return max(1, (engine.workers or os.cpu_count() or 1) // plan.threads)


def finest_order(settings: RefineSettings, symmetry: str) -> int:
    """The finest grid of orientations that a refinement will search whole."""
    orders = range(settings.first_order, settings.last_order + 1)
    return max((o for o in orders if n_orientations(o, symmetry) <= settings.most_orientations), default=orders[0])


def worker_bytes(size: int, pixel_size: float, diameter: float, order: int, symmetry: str, maps: int) -> int:
    """What a worker holds that scores particles.

    Parameters
    ----------
    size : int
        Box in pixels.
    pixel_size, diameter : float
        A.
    order : int
        Of the grid of orientations.
    symmetry : str
    maps : int
        Half maps or starts.
    """
    displacement = rim_displacement(angular_step(order), diameter)
    shell = min((size - 1) // 2, max(5.0, 1.2 * size * pixel_size / displacement))
    return scoring_bytes(
        size,
        maps=maps,
        orientations=n_orientations(order, symmetry),
        pixels=round(0.5 * math.pi * shell * shell),
        shifts=SHIFTS,
        batch=BATCH,
        chunk=CHUNK,
        kept=KEPT_BYTES,
    )


def _plan(session: Session, particles: Particles, order: int | None, maps: int, groups: int) -> MemoryPlan:
    engine, s = session.settings.engine, session.settings
    cores = engine.workers or os.cpu_count() or 1
    each, workers = 0, 0
    if order is not None and engine.ray_address is None:
        workers = 1 if engine.engine == "inline" else cores
        pixel = particles.optics.pixel_size
        each = worker_bytes(particles.size, pixel, particles.diameter, order, s.particle.symmetry, maps)
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
