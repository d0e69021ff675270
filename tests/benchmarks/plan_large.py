"""What a large reconstruction takes, reckoned from parts that are measured here: bytes, hours, memory.

    python tests/benchmarks/plan_large.py --scratch DIR --particles 10000000 --size 512 --workers 64

Measured are one worker's fold (CTF, transform, insertion of images of ``--measured`` pixels), reading of shards from the scratch
folder's disk, and the slab-wise end of a reconstruction of that box. A fold's time grows with the pixels of an image, the end's
with the voxels of the padded box; both are told in processor time. Workers have one thread each, as fast as this processor.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.pipeline.from_star import FOLD_IMAGES
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.memory import folding_bytes, padded_bytes, slab_finishing_bytes
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.runtime.slab_finishing import MapOfGroups, SlabFinishing
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ArraySpec, Region, Unit
from cryoseg_dist.stages.reconstruct import FoldStage
from cryoseg_dist.store.project import Project

OPTICS = Optics(1.5, 300.0, 2.7, 0.1)
FOLDS_A_WORKER = 2


def fold_unit(region: Region, n: int) -> Unit:
    """A fold over images in random orientations."""
    poses = np.zeros((n, 1, 12), np.float32)
    poses[:, 0, :9] = random_rotations(n, torch.Generator().manual_seed(0)).reshape(-1, 9).numpy()
    poses[:, 0, 11] = 1.0
    part = {"ctf": np.tile(np.float32([15000, 14000, 30, 0]), (n, 1)), "poses": poses}
    return Unit("fold/0", {"images/0": region}, {}, {"half": 0, "parts": [part]})


def main() -> None:
    """Measure, then reckon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--particles", type=int, default=10_000_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--padding", type=int, default=2)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--measured", type=int, default=128)
    parser.add_argument("--images", type=int, default=1024)
    given = parser.parse_args()
    torch.set_num_threads(1)
    root, small, n = given.scratch / "plan", given.measured, given.images
    try:
        project = Project(root, create=True)
        shape = (n, small, small)
        project.create(ArraySpec("sim/images", shape, ("p", "y", "x"), "float16", (16, *shape[1:]), shape))
        region = Region("sim/images", (0, 0, 0), shape)
        project.write(region, np.random.default_rng(0).normal(size=shape).astype(np.float16))
        started = time.perf_counter()
        images = project.read(region)
        reading = images.nbytes / (time.perf_counter() - started)
        stage = FoldStage(OPTICS, small, given.padding)
        unit = fold_unit(region, n)
        stage.partial(fold_unit(region, 16), {"images/0": images[:16]})
        started = time.process_time()
        stage.partial(unit, {"images/0": images})
        rate = n / (time.process_time() - started)
        accumulate = Accumulation(root, workers=1)
        places = accumulate.keep(stage, {"half1": [unit]}, "plan")
        started = time.process_time()
        sums = PartialSums(project, "plan", stage.partial_shape)
        slabs = SlabFinishing(sums, small, given.padding, operators("C1"), places)
        slabs.create(1, {})
        (mean,) = slabs.add_up(accumulate.run)
        slabs.make_maps(accumulate.run, [MapOfGroups(0, (0,), mean)])
        ending = time.process_time() - started
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(
        f"measured at {small} px: fold {rate:.0f} particles/s, end {ending:.2f} s a map, reading {reading / 2**20:.0f} MiB/s"
    )
    scale = given.size / small
    rate, ending = rate / scale**2, ending * scale**3
    volume = padded_bytes(given.size, given.padding, 12)
    folds = 2 * max(FOLDS_A_WORKER * given.workers // 2, -(-given.particles // (2 * FOLD_IMAGES)))
    pixels = 2 * given.particles * given.size**2
    hours = given.particles / (rate * given.workers) / 3600
    finish = (3 * ending + 2 * folds * volume / reading) / given.workers / 3600
    print(f"{given.particles} particles of {given.size} px on {given.workers} workers")
    print(
        f"  images read once       {pixels / 1e12:.2f} TB, {pixels / hours / 3600 / 1e9:.2f} GB/s in all while folds run"
    )
    print(
        f"  partial sums           {folds} folds of {volume / 1e9:.2f} GB: {folds * volume / 1e12:.2f} TB written, read once"
    )
    print(f"  folds                  {hours:.2f} h at {rate:.1f} particles/s a worker")
    print(f"  merge and maps         {finish:.2f} h")
    print(f"  memory of a worker     {folding_bytes(given.size, given.padding, threads=1) / 2**30:.1f} GiB for a fold, "
          f"{slab_finishing_bytes(given.size, given.padding, threads=1) / 2**30:.1f} GiB at the end")  # fmt: skip


if __name__ == "__main__":
    main()
