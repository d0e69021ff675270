"""From the kept partial sums of a reconstruction to its maps: slab by slab, or solved for in memory."""

from collections.abc import Sequence
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
    """Half maps and map of each pair of groups, into the array ``maps``, without a padded volume in any process.

    Half maps are divided by their weights and nothing else; their FSC says how much the map of both is damped.
    """
    n = len(finishing.folds)
    finishing.create(3 * n // 2, {"pixel_size": pixel_size})
    means = finishing.add_up(accumulate.run)
    if finishing.has_symmetry:
        means = finishing.complete(accumulate.run)
    for first in range(0, n, 2):
        into = 3 * first // 2
        finishing.make_maps(accumulate.run, [MapOfGroups(into + i, (first + i,), means[first + i]) for i in (0, 1)])
        half1, half2 = (read_map(session, finishing.maps, into + i) for i in (0, 1))
        shrinkage = noise_to_signal(masked_fsc(half1, half2, pixel_size, diameter), 2)
        del half1, half2
        both = MapOfGroups(into + 2, (first, first + 1), means[first] + means[first + 1], shrinkage)
        finishing.make_maps(accumulate.run, [both])


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
            session.project.write(map_region(finishing.maps, 3 * i + j, size), solved.volume.numpy()[None])
        axes = view_axes(table[["rot", "tilt"]].to_numpy(float), symmetry)
        words = solver_words(view_coverage(axes), size, pixel, extent)
        figures[str(number)] = {"name": "cg", "iterations": iterations, "words": words}
    return figures
