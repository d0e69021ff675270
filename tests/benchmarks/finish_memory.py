"""Peak memory and time of the end of a reconstruction: whole volumes in memory beside slabs through the store.

    python tests/benchmarks/finish_memory.py --scratch DIR --size 192 --padding 2 --symmetry C1

Each way runs in a process of its own on the same two sums; their maps are compared.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cryoseg_dist.kernels.accumulator import enforce_friedel
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.runtime.slab_finishing import MapOfGroups, SlabFinishing
from cryoseg_dist.stages.reconstruct import complete
from cryoseg_dist.store.project import Project

RUN = "reconstruct-benchmark"


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def partial_sums(project: Project, size: int, padding: int) -> PartialSums:
    """Where they are kept."""
    m = size * padding
    return PartialSums(project, RUN, (m, m, m // 2 + 1, 3))


def simulate(project: Project, size: int, padding: int) -> None:
    """Two partial sums."""
    sums, rng = partial_sums(project, size, padding), np.random.default_rng(0)
    sums.create(2)
    for fold in (0, 1):
        values = rng.random(sums.shape, dtype=np.float32) + np.float32(0.1)
        sums.write(fold, enforce_friedel(torch.from_numpy(values)).numpy())


def in_memory(project: Project, size: int, padding: int, symmetry: str) -> np.ndarray:
    """The maps of whole volumes."""
    totals = []
    for fold in (0, 1):
        total = partial_sums(project, size, padding).read(fold, slice(0, size * padding))
        totals.append(complete(total, symmetry, size, padding))
    maps = [finish(t, size, padding=padding) for t in totals]
    maps.append(finish(totals[0] + totals[1], size, padding=padding, shrinkage=torch.ones(size // 2 + 1)))
    return torch.stack(maps).numpy()


def by_slabs(project: Project, size: int, padding: int, symmetry: str, workers: int) -> np.ndarray:
    """The same, slab by slab."""
    folds = {"half1": (0,), "half2": (1,)}
    slabs = SlabFinishing(partial_sums(project, size, padding), size, padding, operators(symmetry), folds)
    slabs.create(3, {})
    run = Accumulation(project.root, workers=workers).run
    means = slabs.add_up(run)
    if slabs.has_symmetry:
        means = slabs.complete(run)
    slabs.make_maps(run, [MapOfGroups(i, (i,), means[i]) for i in (0, 1)])
    slabs.make_maps(run, [MapOfGroups(2, (0, 1), means[0] + means[1], torch.ones(size // 2 + 1))])
    slabs.remove()
    return project.read(project.whole(slabs.maps))


def main() -> None:
    """Simulate, run both, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--padding", type=int, default=2)
    parser.add_argument("--symmetry", default="C1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--way", choices=("memory", "slabs"))
    given = parser.parse_args()
    root = given.scratch / "finish"
    if given.way is not None:
        torch.set_num_threads(given.workers)
        project, before, started, spent = Project(root), peak(), time.perf_counter(), time.process_time()
        if given.way == "memory":
            maps = in_memory(project, given.size, given.padding, given.symmetry)
        else:
            torch.set_num_threads(1)
            maps = by_slabs(project, given.size, given.padding, given.symmetry, given.workers)
        used = f"{time.perf_counter() - started:.1f} s, {time.process_time() - spent:.1f} s of processor"
        print(f"{given.way}: {used}, {(peak() - before) / 2**20:.0f} MiB beyond the process")
        np.save(root / f"{given.way}.npy", maps)
        return
    try:
        simulate(Project(root, create=True), given.size, given.padding)
        for way in ("memory", "slabs"):
            subprocess.run([sys.executable, *sys.argv, "--way", way], check=True)
        one, other = (np.load(root / f"{way}.npy") for way in ("memory", "slabs"))
        worst = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(one, other, strict=True))
        print(f"largest difference {worst:.2e} of the largest value")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
