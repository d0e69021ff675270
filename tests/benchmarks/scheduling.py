"""What the runner costs: overhead at units of a second, many small units, more workers with as much work each.

Run from the checkout::

    python tests/benchmarks/scheduling.py overhead weak --scratch DIR
    python tests/benchmarks/scheduling.py many --engine inline --scratch DIR
    python tests/benchmarks/scheduling.py many --engine ray --scratch DIR

Units sleep, so that cores do not limit them. ``overhead`` is the time beyond ``units / workers`` seconds, over that time, for
a stage of a worker that is up; ``weak`` gives each worker as many units and tells the time with one worker over that with
more; ``many`` tells units a second and how the driver's memory grows while they pass.
"""

import argparse
import re
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoseg_dist.runtime.events import EventBus, JsonLog, UnitFinished
from cryoseg_dist.runtime.executor import Executor
from cryoseg_dist.runtime.inline import InlineExecutor
from cryoseg_dist.runtime.runner import Runner
from cryoseg_dist.schema.work import Outcome, Read, Unit, UnitResult
from cryoseg_dist.store.project import Project

FRACTION = 0.01  # of a core that a sleeping worker asks Ray for


@dataclass(frozen=True)
class Sleep:
    """A stage whose units sleep and write nothing."""

    seconds: float

    @property
    def name(self) -> str:
        """Stage name."""
        return "sleep"

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Nothing is shared."""
        return {}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> None:
        """Nothing is kept."""

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Sleep."""
        if self.seconds:
            time.sleep(self.seconds)
        return UnitResult({}, {"n": 1})


def units_of(n: int, first: int = 0) -> list[Unit]:
    """Units without inputs."""
    return [Unit(f"sleep/{i:06d}") for i in range(first, first + n)]


def resident() -> float:
    """MiB that this process holds now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def open_runner(root: Path, executor: Executor, *sinks: Any) -> Runner:
    """A runner in an empty project, with the log that every run has."""
    return Runner(Project(root, create=True), executor, EventBus(JsonLog(root / "events.jsonl"), *sinks))


def ray_engine(root: Path, workers: int) -> Executor:
    """Actors that ask for so little that all fit, up and with the stage's code loaded."""
    from cryoseg_dist.runtime.ray_actors import RayExecutor

    executor = RayExecutor(root, workers=workers, cpus_per_worker=FRACTION)
    runner = open_runner(root, executor)
    up: set[str] = set()
    for i in range(20):
        marks = runner.run(Sleep(0.2), f"warm-{i}", [], units_of(4 * workers))
        up = {mark.worker for mark in marks}
        if len(up) == workers:
            return executor
    raise RuntimeError(f"only {len(up)} of {workers} workers came up")


def timed(executor: Executor, root: Path, seconds: float, n: int, name: str) -> float:
    """Wall-clock seconds of a stage."""
    runner = open_runner(root, executor)
    units = units_of(n)
    started = time.monotonic()
    marks = runner.run(Sleep(seconds), name, [], units)
    took = time.monotonic() - started
    if any(mark.outcome is not Outcome.DONE for mark in marks):
        raise RuntimeError("a unit was not done")
    return took


def fresh(scratch: Path, name: str) -> Path:
    """An empty project folder."""
    root = scratch / name
    shutil.rmtree(root, ignore_errors=True)
    Project(root, create=True)
    return root


def overhead(scratch: Path, workers: int, n_each: int, repeats: int) -> None:
    """Overhead at units of a second."""
    root = fresh(scratch, "overhead")
    executor = ray_engine(root, workers)
    try:
        found = [timed(executor, root, 1.0, n_each * workers, f"run-{i}") / n_each - 1.0 for i in range(repeats)]
    finally:
        executor.close()
    shown = ", ".join(f"{100 * v:.2f}" for v in found)
    print(
        f"overhead  ray, {workers} workers, {n_each} units of 1 s each: {100 * statistics.median(found):.2f} % ({shown})"
    )


def weak(scratch: Path, counts: Sequence[int], n_each: int, seconds: float) -> None:
    """Weak scaling: as many units for each worker."""
    first = 0.0
    for workers in counts:
        root = fresh(scratch, f"weak-{workers}")
        executor = ray_engine(root, workers)
        try:
            took = timed(executor, root, seconds, n_each * workers, "run")
        finally:
            executor.close()
        first = first or took
        print(
            f"weak      {workers} workers x {n_each} units of {seconds:g} s: {took:.2f} s, efficiency "
            f"{100 * first / took:.1f} % of one worker, {100 * n_each * seconds / took:.1f} % of no overhead",
            flush=True,
        )


def many(scratch: Path, engine: str, n: int, workers: int) -> None:
    """Many small units: rate, and the driver's memory as they pass."""
    root = fresh(scratch, f"many-{engine}")
    executor = InlineExecutor(root) if engine == "inline" else ray_engine(root, workers)
    seen = 0
    held: dict[int, float] = {}

    def watch(event: object) -> None:
        nonlocal seen
        if isinstance(event, UnitFinished):
            seen += 1
            if seen % (n // 10) == 0:
                held[seen] = resident()

    runner = open_runner(root, executor, watch)
    units = units_of(n)
    before = resident()
    started = time.monotonic()
    try:
        marks = runner.run(Sleep(0.0), "run", [], units)
        took = time.monotonic() - started
        started = time.monotonic()
        runner.run(Sleep(0.0), "run", [], units)
        again = time.monotonic() - started
    finally:
        executor.close()
    last = resident()
    growth = 1024 * (held[max(held)] - held[min(held)]) / (max(held) - min(held))
    print(f"many      {engine}: {len(marks)} units, {n / took:.0f} units/s; a second run finds them in {again:.1f} s")
    print(
        f"memory    {before:.0f} MiB with the units planned, {last:.0f} at the end: {growth:.2f} KiB a unit, its mark"
    )
    print("          " + ", ".join(f"{k}: {v:.0f}" for k, v in held.items()))


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["overhead", "weak", "many"])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--engine", choices=["inline", "ray"], default="inline")
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--each", type=int, default=20, help="Units a worker, of overhead and weak.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Of a unit of weak.")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    if "overhead" in a.parts:
        overhead(a.scratch, a.workers, a.each, a.repeats)
    if "weak" in a.parts:
        weak(a.scratch, a.counts, a.each, a.seconds)
    if "many" in a.parts:
        many(a.scratch, a.engine, a.units, a.workers)


if __name__ == "__main__":
    main()
