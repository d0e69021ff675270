"""The faults, each with the storage that it needs."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.chaos.places import S3, Bucket, Disk, Machines, Store
from tests.integration.chaos_faults import Follow, damage_one, signal_one, workers

# Percent of a core; seconds that a worker takes to start.
BUSY, STARTED = 30.0, 20.0


@dataclass
class Scene:
    """A disturbed run.

    Attributes
    ----------
    rng : random.Random
    machines : Machines
    store : Store
    driver : Popen
        Of the command that runs now.
    follow : Follow
        Its events so far.
    """

    rng: random.Random
    machines: Machines
    store: Store
    driver: subprocess.Popen
    follow: Follow


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes
    ----------
    inject : Callable
        What was hit; None where nothing of its kind is there now.
    store : type
        ``Disk`` or ``Bucket``.
    hits : int
        Workers whose unit under way is lost.
    """

    inject: Callable[[Scene], str | None]
    store: type = Disk
    hits: int = 0


def _kill_driver(scene: Scene) -> str:
    scene.driver.send_signal(signal.SIGKILL)
    scene.driver.wait()
    return f"process {scene.driver.pid}"


def _signal(name: str, number: signal.Signals) -> Callable[[Scene], str | None]:
    return lambda scene: signal_one(scene.rng, name, number, os.getpid())


def _kill_summing(scene: Scene) -> str | None:
    """A Dask worker that sums now: one that uses its processor, and not to start."""
    for process in workers("_WorkerActor", os.getpid()):
        with suppress(psutil.Error, ProcessLookupError):
            if time.time() - process.create_time() > STARTED and process.cpu_percent(0.1) > BUSY:
                os.kill(process.pid, signal.SIGKILL)
                return f"process {process.pid}"
    return None


def _damage(scene: Scene) -> str | None:
    return damage_one(scene.rng, scene.store.root, ("extract",))


def _disk(act: Callable[[Disk], str]) -> Callable[[Scene], str]:
    def inject(scene: Scene) -> str:
        assert isinstance(scene.store, Disk)
        return act(scene.store)

    return inject


def _bucket(act: Callable[[Bucket], str]) -> Callable[[Scene], str]:
    def inject(scene: Scene) -> str:
        assert isinstance(scene.store, Bucket)
        return act(scene.store)

    return inject


KINDS = {
    "actor killed": Kind(_signal("UnitActor", signal.SIGKILL), hits=1),
    "actor hangs": Kind(_signal("UnitActor", signal.SIGSTOP), hits=1),
    "dask worker killed": Kind(_kill_summing),
    "node lost": Kind(lambda scene: scene.machines.lose_one(scene.rng), hits=1),
    "driver killed": Kind(_kill_driver, hits=2),
    "shard damaged": Kind(_damage),
    "disk full": Kind(_disk(Disk.fill)),
    "disk read-only": Kind(_disk(Disk.set_read_only)),
    "permission removed": Kind(_disk(Disk.take_permission)),
    "S3 stopped and started": Kind(_bucket(lambda bucket: bucket.stop_for(15.0)), Bucket),
    "S3 stays away": Kind(_bucket(Bucket.stop), Bucket),
    "S3 slow": Kind(_bucket(lambda bucket: bucket.slow_down(0.1, 1.0, 120.0)), Bucket),
}


def store_of(kind: str, scratch: Path, s3: S3 | None) -> Store:
    """An empty storage for a run with a kind of fault."""
    name = kind.replace(" ", "-").lower()
    if s3 is not None and KINDS[kind].store is Bucket:
        return Bucket(scratch / f"bucket-{name}", s3)
    return Disk(scratch / f"disk-{name}")
