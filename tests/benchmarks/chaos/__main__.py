"""A whole run while actors, Dask workers, a Ray node and the driver are killed, actors hang, shards are damaged, storages fail.

Run from the checkout::

    python -m tests.benchmarks.chaos --scratch DIR --seed 1 --each 1
    python -m tests.benchmarks.chaos --scratch DIR --seed 1 --each 3 --only "driver killed" "node lost"

Needs to be root, for the disk is a small one that is mounted. Simulated micrographs go through ``cryoseg run`` on a Ray
cluster of two nodes, with the sums on Dask workers: once undisturbed, then once for each kind of fault, ``--each`` times
at points of the run drawn from the seed. Whenever the command ends early, what broke is mended and it is given again. What is
finished is kept in the scratch folder: the same command goes on with the kinds that are missing, and prints the table of all.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from cryoseg_dist.cli.simulate import write_micrographs
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import SimulateSettings
from cryoseg_dist.simulate.specimen import made_up
from tests.benchmarks.chaos.faults import KINDS, Scene, store_of
from tests.benchmarks.chaos.places import S3, Bucket, Machines, Store, obey_permissions
from tests.benchmarks.chaos.table import Start, Told, difference, measured, table
from tests.integration.chaos_faults import Follow, Injected, finished, work_of

TOP = Path(__file__).resolve().parents[3]
OPTICS = Optics(4.0, 300.0, 2.7, 0.1)
MOST_STARTS = 40
# Seconds until a unit counts as hung, some ten times the longest, and more where a bucket's requests are tried again for two
# minutes; until a storage that refuses ends the run.
DEADLINE, BUCKET_DEADLINE, PATIENCE = 20.0, 150.0, 5.0
# Seconds after its point of the run at which a fault comes at the latest: so that also what lies between units is hit.
SPREAD = 2.0


def simulated(folder: Path, n: int, particles: int) -> Path:
    """Micrographs with known truth, made once."""
    if not (folder / "truth.star").exists():
        specimen = made_up(symmetry="D2", diameter=150.0, size=56, pixel_size=4.0, seed=1)
        settings = SimulateSettings(
            n_micrographs=n, width=640, height=640, particles=particles, snr=0.3, ice_noise=0.8, carbon=0.0, seed=2
        )
        write_micrographs(specimen, OPTICS, settings, folder)
    return folder


def command(micrographs: Path, root: Path, url: str | None, address: str, iterations: int) -> list[str]:
    """The command that is given, again and again."""
    return [
        sys.executable, "-m", "cryoseg_dist.cli.main", "run", "--project", str(root),
        "--ray-address", address, "--workers", "2",
        "--micrographs", str(micrographs / "micrographs" / "*.mrc"), "--pixel-size", "4", "--voltage", "300",
        "--spherical-aberration", "2.7", "--amplitude-contrast", "0.1", "--diameter", "150", "--symmetry", "D2",
        "--set", "abinitio.iterations=10", "--set", "abinitio.batch=120", "--set", "extract.pixel_size=6",
        "--set", f"refine.max_iterations={iterations}", "--set", "refine.unit_size=40", "--set", "classify.unit_size=40",
        "--set", "ctf.min_significance=0", "--set", "ctf.max_resolution=100", "--set", "ctf.max_astigmatism=10000",
        "--set", f"engine.unit_deadline={DEADLINE if url is None else BUCKET_DEADLINE}", "--set", f"engine.store_patience={PATIENCE}",
        "--set", "engine.dask_workers=2", *(() if url is None else ("--set", f"engine.store={url}")),
    ]  # fmt: skip


def start(words: list[str], log: Path) -> subprocess.Popen:
    """The driver as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
    with log.open("ab") as stream:
        return subprocess.Popen(words, stdout=stream, stderr=stream, env=environment)


def undisturbed(words: list[str], project: Path) -> None:
    """A run without faults, made once."""
    log, seconds = project.with_suffix(".log"), project.with_suffix(".seconds")
    if seconds.exists():
        return
    shutil.rmtree(project, ignore_errors=True)
    started = time.monotonic()
    if start(words, log).wait() not in (0, 3):
        raise RuntimeError(f"the undisturbed run failed: {log.read_text()[-2000:]}")
    seconds.write_text(f"{time.monotonic() - started:.0f}\n")


def disturbed(kind: str, words: list[str], store: Store, scene: Scene, points: list[float], log: Path) -> Told:
    """Give the command until it is done; a fault at each point, in units that are finished."""
    log.unlink(missing_ok=True)
    began = time.time()
    starts: list[Start] = []
    injected: list[Injected] = []
    seen: set[tuple[str, str]] = set()
    while len(starts) < MOST_STARTS:
        said = log.stat().st_size if log.exists() else 0
        scene.driver, at, up, due = start(words, log), time.time(), False, 0.0
        while scene.driver.poll() is None:
            for run, key, _, when in finished(scene.follow.update()):
                seen.add((run, key))
                up = up or when > at
            # Faults come while units pass: a driver that is not up yet has nothing to lose.
            if up and points and len(seen) >= points[0]:
                due = due or time.time() + scene.rng.uniform(0.0, SPREAD)
                # A lost node is replaced before the fault is over, which takes seconds.
                now = time.time()
                if now >= due and (what := KINDS[kind].inject(scene)) is not None:
                    injected.append(Injected(now, kind, what))
                    points.pop(0)
                    due = 0.0
                    print(f"  {now - began:6.1f} s  {kind}: {what}", flush=True)
            time.sleep(0.05)
        scene.follow.update()
        starts.append(Start(at, time.time(), scene.driver.returncode, log.read_bytes()[said:].decode(errors="replace")))
        store.mend()
        if scene.driver.returncode in (0, 3):
            return Told(kind, injected, starts, scene.follow.events)
    raise RuntimeError(f"no end after {MOST_STARTS} starts: {log.read_text()[-3000:]}")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--micrographs", type=int, default=4)
    parser.add_argument("--particles", type=int, default=80, help="In each micrograph.")
    parser.add_argument("--iterations", type=int, default=4, help="Of the refinement.")
    parser.add_argument("--each", type=int, default=3, help="Faults of a kind.")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="These kinds of fault."
    )
    a = parser.parse_args()
    name = f"{a.micrographs}-{a.particles}-{a.iterations}"
    micrographs = simulated(a.scratch / f"micrographs-{a.micrographs}-{a.particles}", a.micrographs, a.particles)
    calm, results = a.scratch / f"calm-{name}", a.scratch / f"results-{name}-{a.seed}"
    results.mkdir(parents=True, exist_ok=True)
    missing = [kind for kind in a.only if not (results / f"{kind}.json").exists()]
    if missing:
        # A kill of this program must not leave its machines and its disk behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        obey_permissions()
        s3 = S3() if any(KINDS[kind].store is Bucket for kind in missing) else None
        machines = Machines()
        try:
            undisturbed(command(micrographs, calm, None, machines.address, a.iterations), calm)
            n = len(work_of(Follow(calm / "events.jsonl").update()))
            for kind in missing:
                rng = random.Random(f"{a.seed} {kind}")
                store = store_of(kind, a.scratch, s3)
                try:
                    words = command(micrographs, store.root, store.url, machines.address, a.iterations)
                    points = sorted(rng.uniform(0.02, 0.98) * n for _ in range(a.each))
                    scene = Scene(rng, machines, store, None, Follow(store.root / "events.jsonl"))
                    told = disturbed(kind, words, store, scene, points, results / f"{kind}.log")
                    replace(told, difference=difference(calm, store.root)).keep(results)
                finally:
                    store.close()
        finally:
            machines.close()
            if s3 is not None:
                s3.close()
    reference = Follow(calm / "events.jsonl").update()
    held = [Told.kept(path) for kind in KINDS if (path := results / f"{kind}.json").exists()]
    print(f"undisturbed: {calm.with_suffix('.seconds').read_text().strip()} s")
    print(table([measured(told, KINDS[told.kind].hits, reference) for told in held]))


if __name__ == "__main__":
    main()
