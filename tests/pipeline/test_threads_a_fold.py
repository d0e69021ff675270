"""Cores without room for a volume of their own share one; few particles are not cut into many sums."""

from types import SimpleNamespace
from typing import Any

import pytest

from cryoseg_dist.pipeline.from_star import folds_a_group
from cryoseg_dist.pipeline.memory_plan import threads_a_fold
from cryoseg_dist.runtime.memory import GIB, plan_slabs


@pytest.mark.parametrize(("room", "folds", "threads"), [(1000, 8, 1), (16, 2, 4), (9, 1, 8)])
def test_folds_take_as_many_threads_as_memory_leaves_without_one(room: int, folds: int, threads: int) -> None:
    plan = plan_slabs(512, 2, threads=8, available=room * GIB)
    session: Any = SimpleNamespace(
        settings=SimpleNamespace(engine=SimpleNamespace(workers=8, dask_address=None, ray_address=None))
    )
    assert (plan.threads, threads_a_fold(session, plan)) == (folds, threads)
    session.settings.engine.dask_address = "tcp://elsewhere:8786"
    assert threads_a_fold(session, plan) == 1


@pytest.mark.parametrize(
    ("images", "size", "workers", "wanted", "folds"),
    [
        (300, 256, 2, None, 1),  # To keep two sums would take longer than to make one.
        (100_000, 128, 2, None, 2),  # Two a worker.
        (10_000, 128, 2, None, 1),  # One a worker: to keep four sums would take a third of the time.
        (100_000, 128, 64, None, 32),  # One a worker.
        (50_000, 128, 64, None, 19),  # As many as have 1,280 images.
        (300, 256, 2, 50, 50),  # As it was asked for.
    ],
)
def test_sums_are_as_many_as_are_worth_keeping(
    images: int, size: int, workers: int, wanted: int | None, folds: int
) -> None:
    assert folds_a_group(images, 2, size, workers, wanted) == folds
