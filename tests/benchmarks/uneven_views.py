"""Maps from uneven views of a simulated molecule: divided by weights, damped, and solved for by conjugate gradients.

Run from the checkout::

    python tests/benchmarks/uneven_views.py --particles 1000 --snr 0.1

Told are, for each set of views and each way to a map, the mean FSC with the truth within a mask of the molecule: over all shells to
8 A, over the finer half of them, and within the cone that few views reach.
"""

import argparse
import math

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.conjugate_gradient import NormalEquations, solve
from cryoseg_dist.kernels.coverage import coverage_verdict, view_coverage
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import frequencies, to_fourier
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.so3 import matrix_to_euler, random_rotations
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.simulate.particles import simulate_particles
from cryoseg_dist.simulate.specimen import Specimen, made_up
from cryoseg_dist.stages.postprocess import PostprocessSettings, automatic_mask
from cryoseg_dist.stages.reconstruct import FoldStage, complete, damped_map, maps_of_sums, noise_to_signal, pose_table
from cryoseg_dist.stages.refine import masked_fsc, particle_sphere

SIZE, PIXEL, DIAMETER, FINEST = 48, 3.0, 100.0, 8.0
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.1)


def views(low: float, high: float, count: int, seed: int) -> Tensor:
    """Random orientations whose view lies between two tilts of the z axis."""
    every = random_rotations(20 * count, torch.Generator().manual_seed(seed))
    tilt = torch.rad2deg(torch.acos(every[:, 2, 2].abs().clamp(max=1.0)))
    return every[(tilt >= low) & (tilt <= high)][:count]


def half_sums(specimen: Specimen, rotations: Tensor, snr: float, seed: int) -> list[Tensor]:
    """Completed sums of both half sets."""
    n = len(rotations)
    transfer = torch.tensor([[9000.0, 9000.0, 0.0, 0.0]]).repeat(n, 1)
    transfer[:, :2] += 6000.0 * torch.rand((n, 1), generator=torch.Generator().manual_seed(seed + 1))
    images = simulate_particles(specimen, rotations, torch.zeros((n, 2)), transfer, OPTICS, snr=snr, seed=seed).numpy()
    poses = pose_table(*(a.numpy() for a in matrix_to_euler(rotations)), np.zeros(n), np.zeros(n), PIXEL)
    stage, out = FoldStage(OPTICS, SIZE), []
    for h in (0, 1):
        part = {"ctf": transfer.numpy()[h::2], "poses": poses[h::2]}
        total = stage.partial(Unit(f"half{h}", {}, {}, {"half": h, "parts": [part]}), {"images/0": images[h::2]})
        out.append(complete(total, "C1", SIZE, 2))
    return out


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=2)
    given = parser.parse_args()
    n, seed = given.particles, given.seed
    specimen = made_up(diameter=DIAMETER, size=SIZE, pixel_size=PIXEL, resolution=FINEST, seed=1)
    mask = automatic_mask(specimen.volume, PIXEL, PostprocessSettings(), DIAMETER)
    truth = to_fourier(specimen.volume * mask, 3)
    supports = {"cg, sphere": particle_sphere(SIZE, PIXEL, DIAMETER), "cg, mask": mask}
    last = round(SIZE * PIXEL / FINEST)
    fz, fy, fx = frequencies((SIZE,) * 3)
    slope = fz.abs() / (fz * fz + fy * fy + fx * fx).sqrt().clamp(min=1e-9)
    sets = {
        "even": (views(0, 90, n, seed), 30.0),
        "side views": (views(60, 90, n, seed), 30.0),
        "top views, 5 % others": (
            torch.cat((views(0, 25, n - n // 20, seed), views(45, 90, n // 20, seed + 1))),
            65.0,
        ),
        "within 40 degrees": (views(0, 40, n, seed), 50.0),
    }
    print(f"{'':36} {'all':>7} {'fine':>7} {'cone':>7}")
    for name, (rotations, half_angle) in sets.items():
        totals = half_sums(specimen, rotations, given.snr, seed)
        plain = maps_of_sums(totals, SIZE, 2)
        curve = masked_fsc(plain[0], plain[1], PIXEL, DIAMETER)
        whole = totals[0] + totals[1]
        maps = {"divided": finish(whole, SIZE), "damped": damped_map(totals, curve, SIZE, 2)}
        equations = NormalEquations(whole, SIZE, 2)
        for key, support in supports.items():
            solved = solve(equations, noise_to_signal(curve, 2), support)
            maps[f"{key} ({solved.iterations})"] = solved.volume
        cone = slope >= math.cos(math.radians(half_angle))
        for key, volume in maps.items():
            spectrum = to_fourier(volume * mask, 3)
            curve_all, curve_cone = fsc(spectrum, truth), fsc(spectrum * cone, truth * cone)
            print(
                f"{name:22} {key:13} {float(curve_all[1 : last + 1].mean()):7.3f} "
                f"{float(curve_all[last // 2 + 1 : last + 1].mean()):7.3f} {float(curve_cone[2 : last + 1].mean()):7.3f}",
                flush=True,
            )
        print(f"  {coverage_verdict(view_coverage(rotations[:, 2].float())).words}")


if __name__ == "__main__":
    main()
