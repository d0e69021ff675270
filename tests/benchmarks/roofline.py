"""What bounds a fold: reading alone, transforms alone, insertion alone, and the whole.

Run from the checkout::

    python tests/benchmarks/roofline.py --scratch /tmp/roofline --particles 4000 --box 128 --threads 2

Noise images lie in a project as float16 Zarr shards, as extraction writes them, read once before so that all runs find them where the
system keeps what it has read. Told are medians of wall and processor seconds of this process; ``bytes`` is what insertion at least
moves: each pixel's value and weight once, and the volume in and out for each batch.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from cryoseg_dist.kernels.accumulator import empty_accumulator
from cryoseg_dist.kernels.insertion import insert
from cryoseg_dist.kernels.insertion_numba import Workspace, poses_at_once
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import by_rows, disc_pixels
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.weighing import weigh
from cryoseg_dist.runtime.allocator import keep_freed_memory
from cryoseg_dist.runtime.reading import LazyInputs
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ArraySpec, Region, Unit
from cryoseg_dist.stages.reconstruct import FoldStage
from cryoseg_dist.store.project import Project

OPTICS, PART = Optics(2.0, 300.0, 2.7, 0.1), 256


def stored(root: Path, n: int, size: int) -> tuple[Project, Unit]:
    """A project with images, and the fold over all of them."""
    shutil.rmtree(root, ignore_errors=True)
    project = Project(root, create=True)
    shard = (PART, size, size)
    project.create(ArraySpec("images", (n, size, size), ("p", "y", "x"), "float16", shard, shard))
    g = np.random.default_rng(0)
    for first in range(0, n, PART):
        last = min(first + PART, n)
        block = g.normal(size=(last - first, size, size)).astype(np.float16)
        project.write(Region("images", (first, 0, 0), (last, size, size)), block)
    rotations = random_rotations(n, torch.Generator().manual_seed(0)).float().flatten(1).numpy()
    poses = np.concatenate((rotations, g.normal(size=(n, 2)), np.ones((n, 1))), axis=1).astype(np.float32)[:, None]
    ctf = np.column_stack((g.uniform(8e3, 2.5e4, (n, 2)), g.uniform(0, 180, n), np.zeros(n))).astype(np.float32)
    cuts = [(first, min(first + PART, n)) for first in range(0, n, PART)]
    reads = {f"images/{i}": Region("images", (a, 0, 0), (b, size, size)) for i, (a, b) in enumerate(cuts)}
    parts = [{"ctf": ctf[a:b], "poses": poses[a:b]} for a, b in cuts]
    return project, Unit("fold", reads, {}, {"half": 0, "parts": parts})


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="that insert")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    # As the command does.
    keep_freed_memory()
    torch.set_num_threads(1)
    n, size = given.particles, given.box
    project, unit = stored(given.scratch / "project", n, size)
    inputs = LazyInputs(project, unit.reads)
    stage = FoldStage(OPTICS, size, threads=given.threads)
    ky, kx = disc_pixels(size, size / 2)
    order = by_rows(ky, kx)
    ky, kx = ky[order], kx[order]
    microscope, noise = Microscope(OPTICS, size, ky, kx), torch.ones(ky.shape)
    batch = min(n, poses_at_once(2 * size, len(ky)))
    parts = unit.parameters["parts"]
    columns = torch.from_numpy(np.concatenate([part["ctf"] for part in parts]))
    poses = torch.from_numpy(np.concatenate([part["poses"] for part in parts]))[:, 0]
    images = torch.from_numpy(np.concatenate([inputs[name] for name in unit.reads]))
    starts = range(0, n - batch + 1, batch)
    data, weights = weigh(images[:batch], microscope, columns[:batch], noise, ky, kx)
    total, workspace = empty_accumulator(size), Workspace.of(batch, len(ky))

    def reading() -> None:
        for name in unit.reads:
            inputs[name]

    def transforms() -> None:
        for first in range(0, n, 32):
            torch.fft.rfft2(images[first : first + 32].to(torch.float32))

    def weighing() -> None:
        for first in starts:
            some = slice(first, first + batch)
            weigh(images[some], microscope, columns[some], noise, ky, kx, (data, weights))

    def insertion() -> None:
        for first in starts:
            pose = poses[first : first + batch]
            turned, moved = pose[:, :9].reshape(-1, 3, 3), pose[:, 9:11]
            how = {"size": size, "threads": given.threads, "workspace": workspace}
            insert(total, data, weights, turned, moved, ky, kx, **how)

    def whole() -> None:
        stage.partial(unit, inputs)

    stage.partial(Unit("warm", {"images/0": unit.reads["images/0"]}, {}, {"half": 0, "parts": parts[:1]}), inputs)
    shares = {weighing: n / (batch * len(starts)), insertion: n / (batch * len(starts))}
    steps: list[Callable[[], None]] = [reading, transforms, weighing, insertion, whole]
    print(f"{n} particles of {size} px, {given.threads} threads insert, medians of {given.repeats}")
    print(f"{'':12} {'wall s':>8} {'cpu s':>8} {'particles a cpu s':>18}")
    found = {}
    for step in steps:
        taken = []
        for _ in range(given.repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))
        wall, cpu = (shares.get(step, 1.0) * median(column) for column in zip(*taken, strict=True))
        found[step] = wall
        print(f"{step.__name__:12} {wall:8.3f} {cpu:8.3f} {n / cpu:18.0f}", flush=True)
    slowest = max(found[step] for step in (reading, transforms, insertion))
    print(f"whole / slowest of reading, transforms, insertion: {found[whole] / slowest:.2f}")
    volume = 2.0 * 12 * (2 * size) ** 2 * (size + 1) / batch
    print(f"insertion moves at least {(12 * len(ky) + volume) * n / found[insertion] / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
