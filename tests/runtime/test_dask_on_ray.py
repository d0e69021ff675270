"""A Dask cluster inside Ray actors: the same sums as threads, whoever dies."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.dask_on_ray import places, vacant
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.store.ledger import Mark
from cryoseg_dist.store.project import Project
from tests.integration.chaos_faults import workers
from tests.runtime.engine_stages import Noise, folds


def node(name: str, cpus: float, alive: bool = True) -> dict[str, object]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} if cpus else {}}


def test_workers_are_spread_by_cores_over_living_nodes() -> None:
    nodes = [node("head", 0), node("a", 4), node("b", 2), node("dead", 8, alive=False)]
    chosen = places(nodes, 6)
    assert sorted(chosen) == [("a", 4)] * 4 + [("b", 2)] * 2
    assert places([node("a", 2)], 3) == [("a", 3)] * 3
    with pytest.raises(StageFailedError, match="cores"):
        places([node("head", 0)], 1)


def test_a_replacement_goes_where_a_worker_is_missing() -> None:
    wanted = places([node("a", 4), node("b", 2)], 6)
    assert vacant(wanted, ["a", "a", "b", "a", "b"]) == ("a", 4)
    assert vacant(wanted, ["a", "a", "a", "b", "a"]) == ("b", 2)


@pytest.mark.ray
def test_actors_are_where_they_were_meant_to_be(ray_session: None) -> None:
    """On a node that is not there none starts: Ray would draw another for an actor without cores whose place is a mere wish."""
    import ray
    from ray.exceptions import ActorUnschedulableError

    from cryoseg_dist.runtime.dask_on_ray import _bound_to, _WorkerActor

    actor = _WorkerActor.options(scheduling_strategy=_bound_to("ab" * 28)).remote()  # type: ignore[attr-defined]
    with pytest.raises(ActorUnschedulableError):
        ray.get(actor.process.remote(), timeout=20)


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_the_sums_are_those_of_threads(ray_session: None, tmp_path: Path) -> None:
    from cryoseg_dist.runtime.dask_on_ray import DaskOnRay

    root, made = tmp_path / "project", tmp_path / "made"
    Project(root, create=True)
    made.mkdir()
    groups = {"a": folds(9), "b": folds(6, 20)}
    threads = Accumulation(root).sums(Noise(str(made)), groups)
    for path in made.iterdir():
        path.unlink()
    told: list[Mark] = []
    with DaskOnRay(2) as dask:
        accumulate = Accumulation(root, address=dask.address, security=dask.security)
        victims = dask.processes()[:1]

        def kill_one() -> None:
            while len(list(made.iterdir())) < 2:
                time.sleep(0.02)
            os.kill(victims[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        places = accumulate.keep(Noise(str(made), seconds=0.2), groups, "run", on_fold=told.append)
        killer.join()
        deadline = time.monotonic() + 60
        while (victims[0] in (now := dask.processes()) or len(now) < 2) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(now) == 2
        assert victims[0] not in now
        again = accumulate.keep(Noise(str(made)), groups, "run", on_fold=told.append)
        sums = accumulate.sums(Noise(str(made)), groups)
    assert again == places
    sums_kept = PartialSums(Project(root), "run", (6, 6, 4, 3))
    every = np.array([sums_kept.read(i, slice(0, 6)) for i in range(15)], dtype=np.float64)
    for name in groups:
        np.testing.assert_array_equal(sums[name], threads[name])
        np.testing.assert_allclose(every[list(places[name])].sum(axis=0), threads[name], atol=2e-6)
    # Each fold is told of and marked once, though the dead worker's were made again.
    assert sorted(mark.key for mark in told) == sorted(unit.key for units in groups.values() for unit in units)
    assert len(Project(root).ledger_path("run").read_bytes().splitlines()) == 15
    for process in now:
        assert _ended(process), f"worker {process} still runs"


def _ended(process: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.ray
def test_strangers_cannot_connect(ray_session: None) -> None:
    from distributed import Client, Security

    from cryoseg_dist.runtime.dask_on_ray import DaskOnRay

    with DaskOnRay(1) as dask:
        assert dask.address.startswith("tls://")
        with pytest.raises(OSError, match=r"TLS certificate|[Tt]imed out"):
            Client(dask.address, security=Security.temporary(), timeout=2)


@pytest.mark.ray
def test_a_worker_killed_while_it_starts_is_replaced(ray_session: None) -> None:
    from cryoseg_dist.runtime.dask_on_ray import DaskOnRay

    killed: list[int] = []

    def kill_first() -> None:
        deadline = time.monotonic() + 60
        while not (found := workers("_WorkerActor", os.getpid())) and time.monotonic() < deadline:
            time.sleep(0.02)
        killed.append(found[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_first)
    killer.start()
    with DaskOnRay(1) as dask:
        killer.join()
        assert not set(killed) & set(dask.processes())
    assert len(killed) == 1


@pytest.mark.ray
def test_workers_that_die_at_once_end_the_computation(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoseg_dist.runtime import dask_on_ray

    root, made = tmp_path / "project", tmp_path / "made"
    Project(root, create=True)
    made.mkdir()
    with dask_on_ray.DaskOnRay(1) as dask:
        stage = Noise(str(made), deadly=True)
        with pytest.raises(StageFailedError, match="fold"):
            Accumulation(root, address=dask.address, security=dask.security).sums(stage, {"a": folds(1)})
