"""The memory plan: its arithmetic, what it refuses, and how near it comes to what a process really takes."""

import subprocess
import sys

import pytest

from cryoseg_dist.errors import SettingsError
from cryoseg_dist.runtime.memory import (
    GIB,
    PROCESS,
    available_bytes,
    finishing_bytes,
    folding_bytes,
    padded_bytes,
    plan_memory,
    plan_slabs,
    scoring_bytes,
    slab_finishing_bytes,
    summing_bytes,
)

SUM_AND_FINISH = """
import re, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.stages.reconstruct import complete
# getrusage would begin with the peak of the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
size, padding = int(sys.argv[1]), 2
before = peak()
m = size * padding
sums = [np.ones((m, m, m // 2 + 1, 3), dtype=np.float32) for _ in range(2)]
totals = [complete(s, "C1", size, padding) for s in sums]
maps = [finish(t, size, padding=padding) for t in totals] + [finish(totals[0] + totals[1], size, padding=padding)]
print(peak() - before)
"""


def plan(available: float, size: int = 256, threads: int = 8, workers: int = 2):
    return plan_memory(
        size, 2, workers=workers, worker_bytes=GIB, threads=threads, split_every=4, groups=2, available=int(available)
    )


def test_sums_grow_with_the_cube_of_the_box() -> None:
    assert padded_bytes(64, 2, 12) == 128 * 128 * 65 * 12
    summing = [summing_bytes(n, 2, threads=2, split_every=4, groups=2) - PROCESS for n in (256, 512)]
    finishing = [finishing_bytes(n, 2, groups=2) - PROCESS for n in (256, 512)]
    assert finishing[1] / finishing[0] == pytest.approx(8.0, rel=0.01)
    # A batch of pixels grows less than the sums do.
    assert 6.5 < summing[1] / summing[0] < 8.0


def test_threads_are_taken_as_far_as_they_fit() -> None:
    assert plan(64 * GIB).threads == 8
    one = plan(64 * GIB, threads=1)
    tight = plan(one.peak + 2.5 * padded_bytes(256, 2, 12))
    assert 1 <= tight.threads < 8
    assert tight.peak <= tight.available


def test_what_does_not_fit_is_refused_with_its_figures() -> None:
    with pytest.raises(SettingsError, match=r"memory: expected at most 21\.0 GiB, got \d+\.\d for a box of 1024 px"):
        plan(21 * GIB, size=1024)
    with pytest.raises(SettingsError, match=r"engine\.workers"):
        plan(4 * GIB, size=64, workers=100)


def test_scoring_counts_slices_and_volumes() -> None:
    few = scoring_bytes(64, maps=2, orientations=1000, pixels=200, shifts=10, batch=48, chunk=4096, kept=0)
    many = scoring_bytes(64, maps=2, orientations=40_000, pixels=200, shifts=10, batch=48, chunk=4096, kept=0)
    assert many - few >= 2 * 39_000 * 200 * 8
    assert few > PROCESS + 2 * padded_bytes(64, 2, 8)


def test_this_machine_has_memory() -> None:
    assert GIB // 4 < available_bytes() < 2**50


def test_finishing_takes_no_more_than_planned() -> None:
    size = 128
    run = subprocess.run([sys.executable, "-c", SUM_AND_FINISH, str(size)], capture_output=True, text=True, check=True)
    taken, planned = int(run.stdout), finishing_bytes(size, 2, groups=2) - PROCESS
    # Compiled kernels come on top, which PROCESS holds.
    assert 0.6 * planned < taken < planned + 0.5 * PROCESS, (taken, planned)


def test_a_reconstruction_ends_without_a_padded_volume() -> None:
    one = padded_bytes(1024, 2, 12)
    assert slab_finishing_bytes(1024, 2, threads=8) < one
    assert one < folding_bytes(1024, 2, threads=1) < 1.1 * one
    assert plan_slabs(256, 2, threads=8, available=64 * GIB).threads == 8
    assert plan_slabs(256, 2, threads=8, available=6 * GIB).threads == 3
    with pytest.raises(SettingsError, match=r"memory: expected at most 21\.0 GiB, got \d+\.\d for a box of 1024 px"):
        plan_slabs(1024, 2, threads=8, available=21 * GIB)
    # Without oversampling it fits the same machine.
    assert plan_slabs(1024, 1, threads=8, available=48 * GIB).threads >= 1
