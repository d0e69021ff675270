"""From the kept partial sums of a reconstruction to its maps: slab by slab, or solved for in memory.

Plain half maps give the FSC that says how much each voxel is damped; nothing else passes between the half sets.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryoseg_dist.kernels.coverage import view_coverage
from cryoseg_dist.kernels.mask import distance_from_centre
from cryoseg_dist.kernels.views import view_axes
from cryoseg_dist.pipeline.maps import map_region, read_map
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.validation import read_mask
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.slab_finishing import MapOfGroups, SlabFinishing
from cryoseg_dist.stages.reconstruct import complete, maps_of_sums, noise_to_signal, solved_map, solver_words
from cryoseg_dist.stages.refine import masked_fsc, particle_sphere


def finish_by_slabs(
    session: Session, accumulate: Accumulation, finishing: SlabFinishing, pixel_size: float, diameter: float
) -> None:
    """Half maps and map of each pair of groups, into the array ``maps``, without a padded volume in any process."""
    n = len(finishing.folds)
    finishing.create(3 * n // 2, {"pixel_size": pixel_size})
    means = finishing.add_up(accumulate.run)
    if finishing.has_symmetry:
        means = finishing.complete(accumulate.run)
    for first in range(0, n, 2):
        into = 3 * first // 2
        halves = [MapOfGroups(into + i, (first + i,), means[first + i]) for i in (0, 1)]
        finishing.make_maps(accumulate.run, halves)
        plain = [read_map(session, f"{finishing.run}/maps", half.into) for half in halves]
        curve = masked_fsc(plain[0], plain[1], pixel_size, diameter)
        del plain
        both = MapOfGroups(into + 2, (first, first + 1), means[first] + means[first + 1])
        damped = [replace(made, shrinkage=noise_to_signal(curve, len(made.groups))) for made in (*halves, both)]
        finishing.make_maps(accumulate.run, damped)


def solve_in_memory(
    session: Session, accumulate: Accumulation, finishing: SlabFinishing, particles: Particles, classes: Sequence[int]
) -> dict[str, Any]:
    """The same by conjugate gradients, which take whole volumes; how the maps of each class were solved for."""
    settings, symmetry = session.settings.reconstruct, session.settings.particle.symmetry
    size, pixel, padding, shell = particles.size, particles.optics.pixel_size, settings.padding, finishing.max_shell
    support, extent = particle_sphere(size, pixel, particles.diameter), min(particles.diameter, size * pixel)
    if settings.support:
        support = read_mask(Path(settings.support), size, pixel)
        extent = 2.0 * pixel * float(distance_from_centre(size)[support > 0.5].max())
    finishing.create(3 * len(finishing.folds) // 2, {"pixel_size": pixel})
    finishing.add_up(accumulate.run)
    figures = {}
    for i, number in enumerate(classes or (0,)):
        totals = [complete(finishing.read_total(group), symmetry, size, padding) for group in (2 * i, 2 * i + 1)]
        plain1, plain2 = maps_of_sums(totals, size, padding, shell)
        curve = masked_fsc(plain1, plain2, pixel, particles.diameter)
        table = particles.table
        table = table[table["class_number"] == number] if classes else table
        iterations = []
        for j, groups in enumerate(([totals[0]], [totals[1]], totals)):
            solved = solved_map(groups, curve, size, padding, shell, support, settings)
            iterations.append(solved.iterations)
            session.project.write(map_region(f"{finishing.run}/maps", 3 * i + j, size), solved.volume.numpy()[None])
        axes = view_axes(table[["rot", "tilt"]].to_numpy(float), symmetry)
        words = solver_words(view_coverage(axes), size, pixel, extent)
        figures[str(number)] = {"name": "cg", "iterations": iterations, "words": words}
    return figures
