"""Orientations by common lines beside ASPIRE's CLSync3N on the same simulated class averages.

Run from the checkout; the peer takes part where a Python that has it is named::

    python tests/benchmarks/common_lines.py --images 60 100 200 --snr 3 1 --peer-python /path/to/venv/bin/python

Images are projections of an asymmetric made-up specimen (64 px of 3 A, 150 A across) in random orientations, moved by up
to 1.5 px in x and y, with white noise; SNR is the images' variance over the noise's. Errors are angles to the known
orientations after the best common rotation and hand. Each program runs in a process of its own on one thread; told are
the processor time of the solution (without imports and compilation) and the process's peak memory. The peer runs with
its defaults but for the range of shifts, which is ours; its conventions of axes are found out from its own result.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import shift, to_real
from cryoseg_dist.kernels.slices import project
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from cryoseg_dist.kernels.synchronization import align_orientations
from cryoseg_dist.simulate.specimen import made_up

SIZE, PIXEL, DIAMETER, MOVED_PX = 64, 3.0, 150.0, 1.5

OURS = """
import sys, time, json, resource, numpy as np, torch
torch.set_num_threads(1)
from cryoseg_dist.stages.common_lines import CommonLinesSettings, orient
source, target, pixel, diameter, starts = sys.argv[1:]
images = np.load(source)
def solve(some, starts):
    settings = CommonLinesSettings(max_averages=200, starts=int(starts))
    return orient(some, np.ones(len(some), dtype=np.int64), float(pixel), float(diameter), settings)
solve(images[:12], 1)
before = time.process_time()
found = solve(images, starts)
seconds = time.process_time() - before
np.save(target, found.rotations.numpy())
c = found.confidence
note = f"{c.reached} of {c.starts} starts, {'trusted' if c.trusted else 'not trusted'}"
print(json.dumps({"seconds": seconds, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "note": note}))
"""

PEER = """
import sys, time, json, resource, logging, numpy as np
import aspire
from aspire.abinitio import CLSync3N
from aspire.image import Image
from aspire.source import ArrayImageSource
logging.disable(logging.CRITICAL)
source, target, pixel, diameter, starts = sys.argv[1:]
images = np.load(source).astype(np.float32)
reach = float(diameter) / 12.0 / float(pixel) / images.shape[-1]
def solve(some):
    method = CLSync3N(ArrayImageSource(Image(some, pixel_size=float(pixel))), max_shift=reach, seed=0, disable_gpu=True)
    method.estimate_rotations()
    return method.rotations
before = time.process_time()
rotations = solve(images)
seconds = time.process_time() - before
np.save(target, np.asarray(rotations, dtype=np.float64))
note = f"aspire {aspire.__version__}"
print(json.dumps({"seconds": seconds, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "note": note}))
"""


def simulate(n: int, snr: float, seed: int) -> tuple[np.ndarray, Tensor]:
    """Images (n, y, x) and their orientations."""
    specimen = made_up(symmetry="C1", diameter=DIAMETER, size=SIZE, pixel_size=PIXEL, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rotations = random_rotations(n, generator)
    moved = (2.0 * torch.rand((n, 2), generator=generator) - 1.0) * MOVED_PX
    images = to_real(shift(project(specimen.transform, rotations.float(), SIZE), moved, SIZE), SIZE)
    images = images / images.std() * snr**0.5 + torch.randn(images.shape, generator=generator)
    return images.numpy(), rotations


def conventions(found: Tensor) -> list[Tensor]:
    """Orientations as found, for all ways to name and direct an image's axes, both passive and active."""
    axes = torch.eye(3, dtype=torch.float64)
    out = []
    for x, y in ((0, 1), (1, 0)):
        for sx in (1.0, -1.0):
            for sy in (1.0, -1.0):
                turn = torch.stack((sx * axes[x], sy * axes[y]))
                turn = torch.cat((turn, torch.linalg.cross(turn[0], turn[1])[None]))
                out += [turn @ found, turn @ found.transpose(1, 2)]
    return out


def run(python: str, code: str, images: Path, target: Path, starts: int) -> dict[str, object]:
    """One program in a process of its own on one thread."""
    threads = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(threads, "1")}
    arguments = [str(images), str(target), str(PIXEL), str(DIAMETER), str(starts)]
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Simulate, run both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[60, 100, 200])
    parser.add_argument("--snr", type=float, nargs="+", default=[3.0, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", type=int, default=4, help="random starts beside the synchronised one")
    parser.add_argument("--peer-python", help="Python of an environment with aspire; without it the peer is left out")
    options = parser.parse_args()
    programs = [("cryoseg", sys.executable, OURS)]
    if options.peer_python:
        programs.append(("CLSync3N", options.peer_python, PEER))
    else:
        print("no --peer-python: the peer is left out")
    print(f"{'images':>6} {'SNR':>5} {'program':<9} {'median':>7} {'<10 deg':>8} {'cpu s':>7} {'MiB':>6}")
    with tempfile.TemporaryDirectory() as scratch:
        stack, target = Path(scratch) / "images.npy", Path(scratch) / "found.npy"
        for n in options.images:
            for snr in options.snr:
                images, truth = simulate(n, snr, options.seed)
                np.save(stack, images)
                for name, python, code in programs:
                    figures = run(python, code, stack, target, options.starts)
                    found = torch.from_numpy(np.load(target))
                    candidates = [found] if name == "cryoseg" else conventions(found)
                    errors = [angular_distance(align_orientations(c, truth)[0], truth) for c in candidates]
                    error = min(errors, key=lambda e: float(e.median()))
                    print(
                        f"{n:>6} {snr:>5g} {name:<9} {float(error.median()):>6.2f}d {float((error < 10).double().mean()):>8.2f} "
                        f"{float(str(figures['seconds'])):>7.1f} {float(str(figures['kib'])) / 1024:>6.0f}  {figures['note']}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
