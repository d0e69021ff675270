"""Many simulated particles through `cryoseg reconstruct`'s own path: memory, throughput by tenths, the merge, partitions.

    python tests/benchmarks/million.py --scratch DIR --particles 1000000 --size 64 --workers 1 2
    python tests/benchmarks/million.py --scratch DIR --particles 100000 --partitions
    python tests/benchmarks/million.py --scratch DIR --particles 16384 --sleep-bound

A few thousand distinct noisy projections are repeated in random order. Images are float16 in the shards of a project and are
removed at the end. ``--sleep-bound`` replaces the work of a fold by waiting, which shows what the scheduling of 1 to 8
workers costs, whatever the cores.
"""

import argparse
import itertools
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from cryoseg_dist.kernels.so3 import matrix_to_euler, random_rotations
from cryoseg_dist.pipeline import from_star
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import open_session
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.events import StageFinished, StageStarted, UnitFinished
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ArraySpec, Region, Unit
from cryoseg_dist.simulate.particles import simulate_particles
from cryoseg_dist.simulate.specimen import made_up
from cryoseg_dist.store.project import Project

DISTINCT, SHARD, PIXEL = 4096, 1024, 4.0
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.1)


def simulate(root: Path, n: int, size: int) -> Particles:
    """A project that holds the images, and their table."""
    project, rng = Project(root, create=True), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(DISTINCT, generator)
    origins = torch.from_numpy(rng.uniform(-8, 8, (DISTINCT, 2)))
    transfer = torch.from_numpy(np.column_stack([rng.uniform(8e3, 2.5e4, DISTINCT), np.zeros((DISTINCT, 3))]))
    transfer[:, 1] = transfer[:, 0] - 300.0
    images = simulate_particles(
        made_up(diameter=0.7 * size * PIXEL, size=size, pixel_size=PIXEL),
        rotations,
        origins,
        transfer,
        OPTICS,
        snr=0.1,
        dtype=torch.float16,
    ).numpy()
    which = rng.integers(0, DISTINCT, n)
    project.create(
        ArraySpec(
            "simulated/images", (n, size, size), ("p", "y", "x"), "float16", (16, size, size), (SHARD, size, size)
        )
    )
    for first in range(0, n, SHARD):
        last = min(first + SHARD, n)
        region = Region("simulated/images", (first, 0, 0), (last, size, size))
        project.write(region, images[which[first:last]])
    rot, tilt, psi = (a.numpy()[which] for a in matrix_to_euler(rotations))
    table = pd.DataFrame({"optics_group": 1, "rot": rot, "tilt": tilt, "psi": psi}, index=range(n))
    for name, values in (("origin_x", origins[:, 0]), ("origin_y", origins[:, 1])):
        table[name] = values.numpy()[which]
    for name, column in zip(("defocus_u", "defocus_v", "defocus_angle", "phase_shift"), transfer.T, strict=True):
        table[name] = column.numpy()[which]
    table["store_index"] = np.arange(n)
    return Particles(f"simulated-{n}-{size}", table, OPTICS, size, 0.8 * size * PIXEL, array="simulated/images")


@dataclass
class Watcher:
    """Notes when folds end, and how much memory the process holds."""

    ended: list[tuple[float, str]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    started: float = 0.0
    finished: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Any) -> None:
        now = time.perf_counter()
        if isinstance(event, StageStarted):
            self.started = now
        elif isinstance(event, UnitFinished):
            self.ended.append((now, event.key))
        elif isinstance(event, StageFinished):
            self.finished = now

    def sample(self) -> None:
        """Sample until it is over."""
        process = psutil.Process()
        while not self.over.wait(0.25):
            self.memory.append((time.perf_counter(), process.memory_info().rss))


def run(root: Path, particles: Particles, workers: int, folds_per_worker: int) -> tuple[Watcher, np.ndarray]:
    """One reconstruction from the start; what was seen, and the three maps."""
    optics = {"pixel_size": PIXEL, "voltage": 300.0, "spherical_aberration": 2.7}
    settings = build_settings(
        {
            "data": optics,
            "engine": {"engine": "inline", "workers": workers},
            "reconstruct": {"folds_per_worker": folds_per_worker},
        }
    )
    for folder in ("ledger", "state", "runs"):
        shutil.rmtree(root / folder, ignore_errors=True)
    for path in (root / "store.zarr").glob("reconstruct-*"):
        shutil.rmtree(path)
    watcher = Watcher()
    sampler = threading.Thread(target=watcher.sample)
    sampler.start()
    try:
        with open_session(settings, root, [watcher], ["million"]) as session:
            refined = from_star.run_reconstruct(session, particles, None)[0]
    finally:
        watcher.over.set()
        sampler.join()
    assert refined.full is not None
    return watcher, torch.stack((refined.half1, refined.half2, refined.full)).numpy()


def tell(watcher: Watcher, n: int, workers: int) -> None:
    """Print the figures of a run."""
    folded = watcher.ended[-1][0]
    whole = watcher.finished - watcher.started
    print(
        f"{workers} workers: {n} particles, {whole:.1f} s in all, {n / whole:.0f} a second; merge and maps "
        f"{watcher.finished - folded:.1f} s, {100 * (watcher.finished - folded) / whole:.1f} % of it"
    )
    times = np.array([watcher.started, *(t for t, _ in watcher.ended)])
    done = np.linspace(0, n, len(times))
    edges = np.interp(np.linspace(0, n, 11), done, times)
    rates = n / 10 / np.diff(edges)
    peaks = [max((m for t, m in watcher.memory if a <= t < b), default=0) / 2**20 for a, b in itertools.pairwise(edges)]
    print("  tenth           " + " ".join(f"{i:6d}" for i in range(1, 11)))
    print("  particles/s     " + " ".join(f"{r:6.0f}" for r in rates))
    print("  peak MiB (RSS)  " + " ".join(f"{p:6.0f}" for p in peaks))
    print(
        f"  peak MiB of the merge and maps {max((m for t, m in watcher.memory if t >= folded), default=0) / 2**20:.0f}"
    )


@dataclass(frozen=True)
class Waiting:
    """A fold that waits for as long as it would compute."""

    seconds: float
    size: int

    @property
    def partial_shape(self) -> tuple[int, ...]:
        """That of the real one."""
        m = 2 * self.size
        return (m, m, m // 2 + 1, 3)

    def without(self, unit: Unit, reads: Collection[str]) -> Unit | None:
        """Nothing is read."""
        return unit

    def partial(self, unit: Unit, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Wait."""
        time.sleep(self.seconds)
        return np.zeros(self.partial_shape, np.float32)


def sleep_bound(root: Path, size: int) -> None:
    """Time of 32 folds that wait a second, by number of workers."""
    Project(root, create=True)
    first = 0.0
    for workers in (1, 2, 4, 8):
        units = {f"half{h}": [Unit(f"{workers}/{h}/{i}") for i in range(16)] for h in (1, 2)}
        started = time.perf_counter()
        Accumulation(root, workers=workers).keep(Waiting(1.0, size), units, f"wait-{workers}")
        seconds = time.perf_counter() - started
        first = first or seconds
        print(f"{workers} workers: {seconds:.2f} s, {first / seconds:.2f} times faster than one")


def main() -> None:
    """Simulate, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--partitions", action="store_true")
    parser.add_argument("--sleep-bound", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = given.scratch / "million"
    try:
        if given.sleep_bound:
            sleep_bound(root, given.size)
            return
        started = time.perf_counter()
        particles = simulate(root, given.particles, given.size)
        print(f"simulated in {time.perf_counter() - started:.0f} s")
        if not given.partitions:
            for workers in given.workers:
                tell(run(root, particles, workers, 2)[0], given.particles, workers)
            return
        reference: np.ndarray | None = None
        for workers, folds in ((1, 2), (2, 7), (2, 16), (1, 60)):
            watcher, maps = run(root, particles, workers, folds)
            reference = maps if reference is None else reference
            worst = max(np.abs(m - r).max() / np.abs(r).max() for m, r in zip(maps, reference, strict=True))
            print(f"{workers} workers, {len(watcher.ended)} folds: largest difference {worst:.2e} of the largest value")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
