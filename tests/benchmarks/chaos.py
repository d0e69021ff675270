"""A whole run while actors, Dask workers, a Ray node and the driver are killed, actors hang, shards are damaged, the disk fills.

Run from the checkout::

    python tests/benchmarks/chaos.py --scratch DIR --seed 1

Needs to be root, for the disk is a small one that is mounted. Simulated micrographs go through ``cryoseg run`` twice on a Ray cluster of two nodes, with the sums on Dask workers: first
undisturbed, then with faults at times and places drawn from the seed. Whenever the command ends early it is given again.
Told are the faults, units that were finished more than once, the half maps' largest difference over their standard
deviation, and the time from each new command to the first unit that it finished.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster

from cryoseg_dist.cli.simulate import write_micrographs
from cryoseg_dist.formats.mrc import read_volume
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import SimulateSettings
from cryoseg_dist.simulate.specimen import made_up

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))
from tests.integration.chaos_faults import Follow, Injected, damage_one, finished, signal_one, work_of  # noqa: E402

OPTICS = Optics(4.0, 300.0, 2.7, 0.1)
KINDS = (
    "actor killed",
    "dask worker killed",
    "node lost",
    "driver killed",
    "actor hangs",
    "shard damaged",
    "disk full",
)
DISK_BYTES = 1 << 30
MOST_STARTS = 40
# Seconds until a unit counts as hung: some ten times the longest.
DEADLINE = 30.0


def simulated(folder: Path, n: int, particles: int) -> Path:
    """Micrographs with known truth, made once."""
    if not (folder / "truth.star").exists():
        specimen = made_up(symmetry="D2", diameter=150.0, size=56, pixel_size=4.0, seed=1)
        settings = SimulateSettings(
            n_micrographs=n, width=640, height=640, particles=particles, snr=0.3, ice_noise=0.8, carbon=0.0, seed=2
        )
        write_micrographs(specimen, OPTICS, settings, folder)
    return folder


class Machines:
    """A Ray cluster on this machine: a head without cores and two nodes of one core."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self._cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=200 << 20)
        self.nodes = [self._add() for _ in range(2)]

    def _add(self) -> object:
        return self._cluster.add_node(num_cpus=1, object_store_memory=200 << 20)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return str(self._cluster.address)

    def lose_one(self, rng: random.Random) -> str:
        """Kill a node with everything on it; a new one comes."""
        place = rng.randrange(len(self.nodes))
        self._cluster.remove_node(self.nodes[place], allow_graceful=False)
        self.nodes[place] = self._add()
        return f"node {place}"

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


class Disk:
    """A disk of its own for the disturbed project, which can be full at any moment."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.is_full = False
        where.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(where)], check=True)

    def fill(self) -> str:
        """Leave no room."""
        used = shutil.disk_usage(self.where).used
        self._resize(used)
        self.is_full = True
        return f"at {used >> 20} MiB"

    def make_room(self) -> None:
        """As an operator would, once the run has stopped."""
        if self.is_full:
            self._resize(DISK_BYTES)
            self.is_full = False

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.where)], check=True)

    def close(self) -> None:
        """Let go of it; what it held is gone."""
        subprocess.run(["umount", "-l", str(self.where)], check=True)


def command(micrographs: Path, project: Path, address: str, iterations: int) -> list[str]:
    """The command that is given, again and again."""
    return [
        sys.executable, "-m", "cryoseg_dist.cli.main", "run", "--project", str(project),
        "--ray-address", address, "--workers", "2",
        "--micrographs", str(micrographs / "micrographs" / "*.mrc"), "--pixel-size", "4", "--voltage", "300",
        "--spherical-aberration", "2.7", "--amplitude-contrast", "0.1", "--diameter", "150", "--symmetry", "D2",
        "--set", "abinitio.iterations=10", "--set", "abinitio.batch=120", "--set", "extract.pixel_size=6",
        "--set", f"refine.max_iterations={iterations}", "--set", "refine.unit_size=40", "--set", "classify.unit_size=40",
        "--set", "ctf.min_significance=0", "--set", "ctf.max_resolution=100", "--set", "ctf.max_astigmatism=10000",
        "--set", f"engine.unit_deadline={DEADLINE}", "--set", "engine.dask_workers=2",
    ]  # fmt: skip


def start(words: list[str], log: Path) -> subprocess.Popen:
    """The driver as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
    with log.open("ab") as stream:
        return subprocess.Popen(words, stdout=stream, stderr=stream, env=environment)


def undisturbed(words: list[str], project: Path) -> float:
    """Seconds of a run without faults."""
    started = time.monotonic()
    process = start(words, project.with_suffix(".log"))
    if process.wait() not in (0, 3):
        raise RuntimeError(f"the undisturbed run failed: {project.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - started


def disturbed(
    words: list[str], project: Path, machines: Machines, disk: Disk, rng: random.Random, gap: float, kinds: list[str]
) -> tuple[list[Injected], list[float], list[int], float]:
    """Faults injected, seconds from each new start to its first unit, exit codes, and seconds in all."""
    # Not on the disk that gets full.
    log, follow = project.parent.with_suffix(".log"), Follow(project / "events.jsonl")
    injected: list[Injected] = []
    resumed: list[float] = []
    codes: list[int] = []
    began = time.monotonic()
    plan = list(kinds)
    rng.shuffle(plan)
    for number in range(MOST_STARTS):
        process = start(words, log)
        at = time.time()
        first = False
        due = time.monotonic() + rng.uniform(0.5, 1.5) * gap
        while process.poll() is None:
            for _, _, _, when in finished(follow.update()):
                if not first and when > at:
                    first = True
                    if number:
                        resumed.append(when - at)
            # Faults come while units pass: a driver that is not up yet has nothing to lose.
            if plan and first and time.monotonic() > due:
                kind = plan[0]
                what = inject(kind, rng, project, machines, disk, process)
                if what is None:
                    # Nothing of that kind is there now: another first.
                    plan.append(plan.pop(0))
                    due = time.monotonic() + 0.5
                else:
                    plan.pop(0)
                    injected.append(Injected(time.monotonic() - began, kind, what))
                    print(f"  {injected[-1].at:6.1f} s  {kind}: {what}", flush=True)
                    due = time.monotonic() + rng.uniform(0.5, 1.5) * gap
            time.sleep(0.05)
        codes.append(process.returncode)
        disk.make_room()
        if process.returncode in (0, 3):
            return injected, resumed, codes, time.monotonic() - began
    raise RuntimeError(f"no end after {MOST_STARTS} starts: {log.read_text()[-3000:]}")


def inject(
    kind: str, rng: random.Random, project: Path, machines: Machines, disk: Disk, driver: subprocess.Popen
) -> str | None:
    """Inject one fault; what it hit, None where nothing of its kind is there."""
    if kind == "driver killed":
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        return f"process {driver.pid}"
    if kind == "disk full":
        return disk.fill()
    if kind == "node lost":
        return machines.lose_one(rng)
    if kind == "shard damaged":
        return damage_one(rng, project, ("extract",))
    name, number = {
        "actor killed": ("_Actor", signal.SIGKILL),
        "dask worker killed": ("_WorkerActor", signal.SIGKILL),
        "actor hangs": ("_Actor", signal.SIGSTOP),
    }[kind]
    return signal_one(rng, name, number, os.getpid())


def difference(a: Path, b: Path) -> float:
    """Largest difference of the exported maps over their standard deviation."""
    worst = 0.0
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        first, second = (read_volume(folder / "export" / name)[0] for folder in (a, b))
        worst = max(worst, float(np.abs(first - second).max() / first.std()))
    return worst


def main() -> None:
    """Run both and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--micrographs", type=int, default=4)
    parser.add_argument("--particles", type=int, default=80, help="In each micrograph.")
    parser.add_argument("--iterations", type=int, default=4, help="Of the refinement.")
    parser.add_argument("--gap", type=float, default=6.0, help="Mean seconds between faults.")
    parser.add_argument("--each", type=int, default=2, help="Faults of each kind.")
    a = parser.parse_args()
    a.scratch.mkdir(parents=True, exist_ok=True)
    micrographs = simulated(a.scratch / f"micrographs-{a.micrographs}-{a.particles}", a.micrographs, a.particles)
    rng = random.Random(a.seed)
    machines, disk = Machines(), Disk(a.scratch / "disk")
    calm, wild = a.scratch / f"calm-{a.seed}", disk.where / "wild"
    shutil.rmtree(calm, ignore_errors=True)
    # A kill of this program must not leave its machines and its disk behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        alone = undisturbed(command(micrographs, calm, machines.address, a.iterations), calm)
        print(f"undisturbed: {alone:.0f} s", flush=True)
        words = command(micrographs, wild, machines.address, a.iterations)
        injected, resumed, codes, took = disturbed(words, wild, machines, disk, rng, a.gap, list(KINDS) * a.each)
        report(calm, wild, alone, injected, resumed, codes, took)
    finally:
        machines.close()
        disk.close()


def report(
    calm: Path, wild: Path, alone: float, injected: list[Injected], resumed: list[float], codes: list[int], took: float
) -> None:
    """Print the table."""
    logs = [Follow(project / "events.jsonl") for project in (calm, wild)]
    for log in logs:
        log.update()
    work, again = (work_of(log.events) for log in logs)
    twice = {unit: seconds for unit, seconds in again.items() if len(seconds) > 1}
    mended = sum(event["event"] == "Message" and event.get("stage") == "mend" for event in logs[1].events)
    retried = sum(event["event"] == "UnitRetried" for event in logs[1].events)
    total = sum(sum(seconds) for seconds in work.values())
    extra = sum(sum(seconds[1:]) for seconds in twice.values())
    counts = Counter(fault.kind for fault in injected)
    for kind in KINDS:
        print(f"{kind:22} {counts[kind]}")
    print(f"{'commands given':22} {len(codes)} (exit codes {codes})")
    print(f"{'units':22} {len(work)} undisturbed, {len(again)} disturbed, {retried} retried after a fault")
    print(
        f"{'units finished twice':22} {sum(len(s) - 1 for s in twice.values())} for {mended} damaged shards that were met; "
        f"{100 * extra / total:.2f} % of the work"
    )
    print(f"{'seconds':22} {alone:.0f} undisturbed, {took:.0f} disturbed, starts included")
    print(f"{'to the first new unit':22} " + ", ".join(f"{s:.1f}" for s in resumed) + " s")
    print(f"{'largest difference':22} {difference(calm, wild):.3g} standard deviations of the maps")
    figures = {
        name: json.loads((p / "export" / "result.json").read_text())["resolution"]
        for name, p in (("calm", calm), ("wild", wild))
    }
    print(f"{'resolution':22} {figures['calm']:.3f} and {figures['wild']:.3f} A")


if __name__ == "__main__":
    main()
