"""Sums over folds do not depend on how they are made."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.ledger import Mark
from cryoseg_dist.store.project import Project
from tests.runtime.engine_stages import Noise, folds


def expected(n: int, first: int = 0) -> np.ndarray:
    parts = [np.random.default_rng(i).normal(size=(6, 6, 4, 3)).astype(np.float32) for i in range(first, first + n)]
    return np.sum(np.array(parts, dtype=np.float64), axis=0)


def kept(root: Path, places: tuple[int, ...]) -> np.ndarray:
    """The sum of partial sums that are kept."""
    sums = PartialSums(Project(root), "run", (6, 6, 4, 3))
    return np.sum([sums.read(place, slice(0, 6)) for place in places], axis=0, dtype=np.float64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Project(tmp_path / "project", create=True)
    (tmp_path / "made").mkdir()
    return tmp_path / "project"


def test_sums_are_right_and_do_not_depend_on_the_partition(root: Path, tmp_path: Path) -> None:
    stage = Noise(str(tmp_path / "made"))
    first = None
    for workers, split, slabs in ((1, 4, 4), (2, 4, 4), (2, 2, 3), (1, 8, 1), (2, 3, 99)):
        sums = Accumulation(root, workers, split, slabs).sums(stage, {"a": folds(11), "b": folds(5, 20)})
        np.testing.assert_allclose(sums["a"], expected(11), atol=2e-6)
        np.testing.assert_allclose(sums["b"], expected(5, 20), atol=2e-6)
        if (split, slabs) == (4, 4):
            first = sums["a"] if first is None else first
            # The tree's order is fixed: scheduling changes no bit.
            np.testing.assert_array_equal(sums["a"], first)


def test_finished_folds_are_read_and_not_made_again(root: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    stage = Noise(str(made))
    groups = {"a": folds(4), "b": folds(3, 10)}
    first = Accumulation(root).keep(stage, groups, "run")
    assert first == {"a": (0, 1, 2, 3), "b": (4, 5, 6)}
    count = len(list(made.iterdir()))
    assert count == 7
    assert Accumulation(root).keep(stage, groups, "run") == first
    assert len(list(made.iterdir())) == count
    np.testing.assert_allclose(kept(root, first["b"]), expected(3, 10), atol=2e-6)


def test_a_broken_fold_is_named_and_the_rest_is_kept(root: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(StageFailedError, match="broken fold"):
        Accumulation(root, workers=1).sums(Noise(str(made), broken=2), {"a": folds(4)})
    told: list[Mark] = []
    stage = Noise(str(made), broken=2, unreadable=3)
    places = Accumulation(root, workers=1).keep(stage, {"a": folds(4)}, "run", on_fold=told.append)
    assert places == {"a": (0, 1)}
    reasons = {mark.key: mark.reason for mark in told if mark.outcome is not Outcome.DONE}
    assert "broken fold" in reasons["fold/0002"]
    assert "half of them" in reasons["fold/0003"]
    np.testing.assert_allclose(kept(root, places["a"]), expected(2), atol=2e-6)
    with pytest.raises(StageFailedError, match="got 0"):
        Accumulation(root).keep(Noise(str(made), broken=9), {"a": folds(1, 9)}, "other")


def test_a_killed_worker_of_a_cluster_changes_nothing(root: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    made = tmp_path / "made"
    stage = Noise(str(made), seconds=0.3)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        victims: list[int] = []

        def kill_one() -> None:
            while not (names := [p.name for p in made.iterdir()]):
                time.sleep(0.05)
            victims.append(int(names[0].split("-")[2]))
            os.kill(victims[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        accumulate = Accumulation(root, address=cluster.scheduler_address)
        places = accumulate.keep(stage, {"a": folds(10)}, "run")
        # Tasks answer in their order.
        assert accumulate.run([partial(int, str(i)) for i in range(5)]) == [0, 1, 2, 3, 4]
        killer.join()
    assert len(victims) == 1
    workers = {p.name.split("-")[2] for p in made.iterdir()}
    assert len(workers) > 1
    assert len(places["a"]) == 10
    np.testing.assert_allclose(kept(root, places["a"]), expected(10), atol=2e-6)
