"""Room for workers on a Ray cluster."""

import time
from pathlib import Path

import pytest

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.ray_capacity import healthy_node, room, wait_for_room
from cryoseg_dist.store.project import Project


def node(cpus: float, gpus: float = 0.0, alive: bool = True) -> dict[str, object]:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus, "memory": 1.0}}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([node(8)], 1.0, 0.0, 8),
        ([node(3), node(3)], 2.0, 0.0, 2),  # six cores hold three such workers only if one could span nodes
        ([node(8, 2), node(8)], 2.0, 1.0, 2),
        ([node(8, 2), node(8, 2, alive=False)], 1.0, 0.5, 4),
        ([node(0.3)], 0.1, 0.0, 3),
        ([{"Alive": True, "Resources": {}}], 1.0, 0.0, 0),  # a head that takes no work
    ],
)
def test_room_counts_whole_workers_of_living_nodes(nodes: list, cpus: float, gpus: float, expected: int) -> None:
    assert room(cpus, gpus, nodes) == expected


def test_a_worker_moves_to_the_healthy_node_with_most_room() -> None:
    nodes = [{"NodeID": name, **node(cpus)} for name, cpus in (("a", 4), ("b", 4), ("c", 8))]
    assert healthy_node({"c"}, ["a", "a", "b", "c"], 1.0, 0.0, nodes) == "b"
    assert healthy_node({"a", "c"}, ["b", "b"], 2.0, 0.0, nodes) is None
    assert healthy_node({"a", "b", "c"}, [], 1.0, 0.0, nodes) is None


@pytest.mark.ray
def test_waiting_ends_at_once_where_all_fit(ray_session: None) -> None:
    started = time.monotonic()
    assert wait_for_room(2, 1.0, 0.0, 60.0) == 2
    assert time.monotonic() - started < 5.0


@pytest.mark.ray
def test_waiting_gives_up_and_tells_what_fits(ray_session: None) -> None:
    started = time.monotonic()
    assert wait_for_room(3, 1.0, 0.0, 1.0, poll=0.2) == 2
    assert 1.0 <= time.monotonic() - started < 10.0


@pytest.mark.ray
def test_an_engine_goes_on_with_the_workers_that_came(ray_session: None, tmp_path: Path) -> None:
    from cryoseg_dist.runtime.ray_actors import RayExecutor

    Project(tmp_path, create=True)
    executor = RayExecutor(tmp_path, workers=3, cpus_per_worker=1.0, wait=0.5)
    try:
        assert executor.workers == 2
    finally:
        executor.close()


@pytest.mark.ray
def test_an_engine_without_any_room_says_what_to_do(ray_session: None, tmp_path: Path) -> None:
    from cryoseg_dist.runtime.ray_actors import RayExecutor

    Project(tmp_path, create=True)
    with pytest.raises(StageFailedError, match="wait_for_workers"):
        RayExecutor(tmp_path, workers=1, gpus_per_worker=1.0, wait=0.5)
    with pytest.raises(StageFailedError, match="3 workers"):
        RayExecutor(tmp_path, workers=3)
