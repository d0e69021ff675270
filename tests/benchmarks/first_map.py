"""First maps of an asymmetric particle: common lines and the stochastic start on the same simulated particles.

Run from the checkout; what is finished is kept in the folder and not computed again::

    python tests/benchmarks/first_map.py --scratch DIR --particles 2400 --snr 0.1 --classes 40 --stochastic --refine

Particles of a made-up specimen, or of an atomic model, in random orientations, off centre by about a pixel, with CTF and
white noise, are classified in 2D. Told are the processor time of each step on one core and, of each map inside the
particle's sphere, after the best rotation, shift and hand, the correlation with the truth and where the FSC with the
truth falls to 0.5.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.kernels.alignment import align
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc, resolution
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.pipeline.classes import run_classify
from cryoseg_dist.pipeline.common_lines import run_common_lines
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.maps import run_refine
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import open_session
from cryoseg_dist.pipeline.stochastic import run_stochastic
from cryoseg_dist.runtime.events import Message
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ImageFile
from cryoseg_dist.simulate.particles import simulate_particles
from cryoseg_dist.simulate.specimen import Specimen, from_model, made_up

VOLTAGE, CS, AMPLITUDE, SIZE = 300.0, 2.7, 0.1, 64


def particles_of(specimen: Specimen, folder: Path, n: int, snr: float, seed: int) -> Particles:
    """Simulated particles, their images in ``folder``."""
    generator = torch.Generator().manual_seed(seed)
    optics = Optics(specimen.pixel_size, VOLTAGE, CS, AMPLITUDE)
    rotations = random_rotations(n, generator)
    origins = torch.randn((n, 2), generator=generator) * specimen.pixel_size
    defocus = 8000.0 + 12000.0 * torch.rand(n, generator=generator)
    transfer = torch.stack((defocus, defocus - 200.0, torch.full((n,), 30.0), torch.zeros(n)), dim=1)
    stack = folder / "particles.mrcs"
    if not stack.exists():
        images = simulate_particles(specimen, rotations, origins, transfer, optics, snr=snr, b_factor=50.0, seed=seed)
        write_stack(stack, images.numpy(), specimen.pixel_size)
    columns = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")
    table = pd.DataFrame({name: transfer[:, i].double().numpy() for i, name in enumerate(columns)})
    table = table.assign(origin_x=0.0, origin_y=0.0, row=np.arange(n))
    sources = tuple(ImageFile(str(stack), (i,)) for i in range(n))
    return Particles(f"simulated:{n}:{snr}:{seed}", table, optics, SIZE, specimen.diameter, sources=sources)


def tell(name: str, volume: Tensor, specimen: Specimen, seconds: float) -> None:
    """Print how far a map agrees with the truth."""
    pixel = specimen.pixel_size
    sphere = soft_sphere(SIZE, min(0.5 * specimen.diameter / pixel, 0.5 * SIZE - 4), 4.0)
    placed = align(volume * sphere, specimen.volume, SIZE * pixel / 15.0)
    curve = fsc(to_fourier(placed.volume, 3), to_fourier(specimen.volume, 3))
    print(
        f"{name:<28} {seconds:>7.1f} s   correlation to 15 A {placed.correlation:.3f}   "
        f"FSC 0.5 at {resolution(curve, SIZE, pixel, 0.5):.1f} A" + ("   other hand" if placed.mirrored else ""),
        flush=True,
    )


def main() -> None:
    """Simulate, classify, make first maps, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="an atomic model; a made-up specimen when not given")
    parser.add_argument("--pixel-size", type=float, default=3.0)
    parser.add_argument("--particles", type=int, default=2400)
    parser.add_argument("--snr", type=float, default=0.1, help="within the particle's disc")
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stochastic", action="store_true", help="the stochastic start too: many minutes")
    parser.add_argument("--refine", action="store_true", help="refine from each first map")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pixel = options.pixel_size
    if options.model:
        specimen = from_model(options.model, pixel_size=pixel, resolution=max(7.0, 2.4 * pixel), size=SIZE)
    else:
        specimen = made_up(symmetry="C1", diameter=50.0 * pixel, size=SIZE, pixel_size=pixel, seed=options.seed)
    options.scratch.mkdir(parents=True, exist_ok=True)
    particles = particles_of(specimen, options.scratch, options.particles, options.snr, options.seed)
    settings = build_settings(
        {
            "data": {"pixel_size": pixel, "voltage": VOLTAGE, "spherical_aberration": CS},
            "particle": {"diameter": specimen.diameter},
            "engine": {"engine": "inline", "workers": 1},
            "classify": {"n_classes": options.classes},
        }
    )

    def listen(event: object) -> None:
        if isinstance(event, Message):
            print(event.text, flush=True)

    with open_session(settings, options.scratch / "project", [listen], ["first_map"]) as session:
        started = time.process_time()
        classified = run_classify(session, particles)
        kept, n_good = classified.particles, int(classified.selected.sum())
        spent = time.process_time() - started
        print(f"classes: {n_good} of {len(classified.selected)} good, {len(kept)} particles, {spent:.1f} s")
        started = time.process_time()
        lines = run_common_lines(session, classified)
        tell("common lines", lines.volume, specimen, time.process_time() - started)
        starts = [("common lines", lines.run, lines.volume, True)]
        if options.stochastic:
            started = time.process_time()
            run, volume = run_stochastic(session, kept)
            tell("stochastic", volume, specimen, time.process_time() - started)
            starts.append(("stochastic", run, volume, False))
        for name, run, volume, foreign in starts if options.refine else ():
            started = time.process_time()
            refined = run_refine(session, kept, volume, run, any_scale=foreign)
            full = refined.full if refined.full is not None else 0.5 * (refined.half1 + refined.half2)
            tell(f"refined from {name}", full, specimen, time.process_time() - started)


if __name__ == "__main__":
    main()
