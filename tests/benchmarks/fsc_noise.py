"""How ragged an FSC curve must be: correlation of half maps of pure noise, and what the CTFs leave of each shell.

Run from the checkout::

    python tests/benchmarks/fsc_noise.py --symmetry O --diameter 130 --box 72 --pixel-size 3 --pairs 20 --particles particles.star

Symmetry makes the Fourier pixels of a shell copies of one another, so that fewer independent ones are left to correlate and the
curve scatters more. Told are, by shell, the standard deviation of the FSC of noise inside the particle's sphere with the
point group and without, and the mean squared CTF of the particles: where that is near zero a dip is physical.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.formats.star import read_star
from cryoseg_dist.kernels.accumulator import empty_accumulator
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels
from cryoseg_dist.pipeline.particle_tables import optics_of
from cryoseg_dist.stages.reconstruct import complete
from cryoseg_dist.stages.refine import masked_fsc
from cryoseg_dist.stages.refine_expectation import CTF_COLUMNS


def noise_map(size: int, symmetry: str, generator: torch.Generator) -> Tensor:
    """The map of white noise in Fourier space, summed over a point group."""
    total = empty_accumulator(size, 1)
    total[..., :2] = torch.randn(total[..., :2].shape, generator=generator)
    total[..., 2] = 1.0
    return finish(complete(total.numpy(), symmetry, size, 1), size, padding=1)


def scatter(size: int, pixel_size: float, diameter: float, symmetry: str, pairs: int) -> np.ndarray:
    """Standard deviation of the FSC of noise, by shell."""
    generator = torch.Generator().manual_seed(0)
    curves = [
        masked_fsc(*(noise_map(size, symmetry, generator) for _ in range(2)), pixel_size, diameter).numpy()
        for _ in range(pairs)
    ]
    return np.std(curves, axis=0)


def mean_square_ctf(star: Path, size: int, pixel_size: float) -> np.ndarray:
    """Mean squared CTF of a table's particles, by shell."""
    tables = read_star(star)
    ky, kx = disc_pixels(size, size / 2)
    shell = torch.round((ky * ky + kx * kx).float().sqrt()).long()
    microscope = Microscope(optics_of(tables.optics.iloc[0]), size, ky, kx)
    columns = torch.from_numpy(tables.rows[list(CTF_COLUMNS)].to_numpy(np.float32))
    total = torch.zeros(len(ky))
    for some in columns.split(256):
        total += microscope.ctf(some).square().sum(dim=0)
    by_shell = torch.zeros(size // 2 + 1).index_add_(0, shell, total / len(columns))
    return (by_shell / torch.bincount(shell, minlength=size // 2 + 1).clamp(min=1)).numpy()


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symmetry", default="O")
    parser.add_argument("--diameter", type=float, required=True)
    parser.add_argument("--box", type=int, required=True)
    parser.add_argument("--pixel-size", type=float, required=True)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--particles", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, pixel = options.box, options.pixel_size
    columns = {
        group: scatter(size, pixel, options.diameter, group, options.pairs) for group in (options.symmetry, "C1")
    }
    if options.particles:
        columns["mean CTF^2"] = mean_square_ctf(options.particles, size, pixel)
    print(f"{'shell':>6} {'A':>6} " + " ".join(f"{name:>10}" for name in columns))
    for i in range(2, (size - 1) // 2 + 1):
        print(f"{i:6d} {size * pixel / i:6.1f} " + " ".join(f"{values[i]:10.3f}" for values in columns.values()))


if __name__ == "__main__":
    main()
