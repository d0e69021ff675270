"""Workers killed in the middle of a reconstruction: the same maps, and the work that is done twice.

    python tests/benchmarks/killed_workers.py --scratch DIR --workers 10 --kill 1 --folds 100

Dask workers inside Ray actors sum simulated particles; when a third of the folds is done, some workers get SIGKILL. Told are
the folds that were started beside those in the ledger, and the largest difference of the partial sums from those of a run that nobody disturbed.
"""

import argparse
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.dask_on_ray import DaskOnRay
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ArraySpec, Region, Unit
from cryoseg_dist.stages.reconstruct import FoldStage
from cryoseg_dist.store.ledger import Ledger
from cryoseg_dist.store.project import Project

SIZE = 32
OPTICS = Optics(4.0, 300.0, 2.7, 0.1)


@dataclass(frozen=True)
class Noted:
    """A fold that notes when and where it was started."""

    stage: FoldStage
    folder: str

    @property
    def partial_shape(self) -> tuple[int, ...]:
        """That of the fold."""
        return self.stage.partial_shape

    def without(self, unit: Unit, reads: Collection[str]) -> Unit | None:
        """As the fold."""
        return self.stage.without(unit, reads)

    def partial(self, unit: Unit, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Note it, then sum."""
        name = f"{unit.key.replace('/', '_')}-{os.getpid()}-{time.time():.3f}"
        (Path(self.folder) / name).touch()
        return self.stage.partial(unit, inputs)


def simulated(project: Project, folds: int, images: int) -> dict[str, list[Unit]]:
    """Folds of images of noise in random orientations."""
    n = folds * images
    project.create(
        ArraySpec("sim/images", (n, SIZE, SIZE), ("p", "y", "x"), "float16", (16, SIZE, SIZE), (images, SIZE, SIZE))
    )
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    groups: dict[str, list[Unit]] = {"half1": [], "half2": []}
    for i in range(folds):
        region = Region("sim/images", (i * images, 0, 0), ((i + 1) * images, SIZE, SIZE))
        project.write(region, rng.normal(size=region.shape).astype(np.float16))
        poses = np.zeros((images, 1, 12), np.float32)
        poses[:, 0, :9] = random_rotations(images, generator).reshape(-1, 9).numpy()
        poses[:, 0, 11] = 1.0
        ctf = np.tile(np.float32([15000, 14000, 30, 0]), (images, 1))
        part = {"ctf": ctf, "poses": poses}
        groups[f"half{i % 2 + 1}"].append(Unit(f"fold/{i:04d}", {"images/0": region}, {}, {"half": 0, "parts": [part]}))
    return groups


def kept(sums: PartialSums, places: Mapping[str, tuple[int, ...]]) -> list[np.ndarray]:
    """The sum of each group."""
    return [sums.added(some, slice(0, sums.shape[0])) for some in places.values()]


def main() -> None:
    """Run twice, kill in the second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--kill", type=int, default=1)
    parser.add_argument("--folds", type=int, default=100)
    parser.add_argument("--images", type=int, default=1024)
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(dir=given.scratch))
    top = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (top, os.environ.get("PYTHONPATH"))))
    try:
        project = Project(root, create=True)
        groups = simulated(project, given.folds, given.images)
        (root / "notes").mkdir()
        stage = Noted(FoldStage(OPTICS, SIZE, 2), str(root / "notes"))
        calm, struck = (PartialSums(project, run, stage.partial_shape) for run in ("whole", "killed"))
        whole = kept(calm, Accumulation(root, workers=2).keep(stage, groups, calm.run))
        shutil.rmtree(root / "notes")
        (root / "notes").mkdir()
        with DaskOnRay(given.workers) as dask:
            victims = dask.processes()[: given.kill]

            def kill() -> None:
                while len(list((root / "notes").iterdir())) < given.folds // 3:
                    time.sleep(0.02)
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            accumulate = Accumulation(root, address=dask.address, security=dask.security)
            started = time.perf_counter()
            places = accumulate.keep(stage, groups, struck.run)
            seconds = time.perf_counter() - started
            killer.join()
        marks = Ledger(project.ledger_path(struck.run)).load()
        work = sum(mark.seconds for mark in marks.values())
        started_folds = len(list((root / "notes").iterdir()))
        again = started_folds - len(marks)
        sums = kept(struck, places)
        worst = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(whole, sums, strict=True))
        print(f"{given.workers} workers, {given.kill} killed, {given.folds} folds, {seconds:.1f} s")
        print(f"folds started {started_folds}, in the ledger {len(marks)} ({work:.1f} s of work)")
        print(
            f"made again {again}: {100 * again / len(marks):.1f} % more work at most, for a fold that was cut short counts whole"
        )
        print(f"largest difference of the sums {worst:.1e} of the largest value")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
