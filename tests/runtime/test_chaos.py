"""Actors killed and stopped at random while a stage runs: its results are those of an undisturbed one."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.runtime.events import EventBus, UnitFinished, UnitRetried
from cryoseg_dist.runtime.ray_actors import IN_FLIGHT
from cryoseg_dist.runtime.runner import Runner
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.project import Project
from tests.integration.chaos_faults import signal_one
from tests.runtime.engine_stages import Squares, spec, units

N, SEED = 50, 3
FAULTS = (signal.SIGKILL, signal.SIGSTOP)


@pytest.mark.ray
def test_actors_that_die_and_hang_at_random_cost_only_what_they_had(ray_session: None, tmp_path: Path) -> None:
    from cryoseg_dist.runtime.ray_actors import RayExecutor

    root, made = tmp_path / "project", tmp_path / "made"
    project = Project(root, create=True)
    made.mkdir()
    rng = random.Random(SEED)
    finished = threading.Semaphore(0)
    hit: list[str] = []
    events: list[object] = []

    def take(event: object) -> None:
        events.append(event)
        if isinstance(event, UnitFinished):
            finished.release()

    def disturb() -> None:
        for number in FAULTS:
            for _ in range(rng.randint(4, 12)):
                finished.acquire()
            deadline = time.monotonic() + 30
            while (victim := signal_one(rng, "UnitActor", number, os.getpid())) is None and time.monotonic() < deadline:
                time.sleep(0.05)
            hit.append(str(victim))

    executor = RayExecutor(root, workers=2, deadline=4.0)
    chaos = threading.Thread(target=disturb, daemon=True)
    chaos.start()
    try:
        marks = Runner(project, executor, EventBus(take)).run(Squares(str(made), {}, 0.1), "run", [spec(N)], units(N))
    finally:
        executor.close()
    chaos.join(timeout=10)
    assert len(hit) == len(FAULTS)
    assert "None" not in hit
    assert [mark.outcome for mark in marks] == [Outcome.DONE] * N
    np.testing.assert_array_equal(
        project.read(project.whole("run/squares")), np.repeat(np.arange(N, dtype=np.float32)[:, None] ** 2, 3, axis=1)
    )
    # What an actor had in flight may be computed twice, and nothing else; the fault counts for one unit of it.
    assert len(list(made.iterdir())) <= N + IN_FLIGHT * len(FAULTS)
    assert sum(isinstance(event, UnitRetried) for event in events) <= len(FAULTS)
