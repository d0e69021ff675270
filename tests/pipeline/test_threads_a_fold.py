"""Cores without room for a volume of their own share one."""

from types import SimpleNamespace
from typing import Any

import pytest

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
