"""Every engine keeps the same promises."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.events import EventBus, StageFinished, UnitFinished, UnitRetried
from cryoseg_dist.runtime.executor import Executor
from cryoseg_dist.runtime.inline import InlineExecutor
from cryoseg_dist.runtime.runner import Runner
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.ledger import Ledger
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.take_back import take_back_failed
from tests.runtime.engine_stages import FailsOn, Squares, spec, units

N = 12


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.ray)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Path], Executor]]:
    made: list[Executor] = []

    def make(root: Path, deadline: float = 60.0) -> Executor:
        if request.param == "inline":
            made.append(InlineExecutor(root))
        else:
            request.getfixturevalue("ray_session")
            from cryoseg_dist.runtime.ray_actors import RayExecutor

            made.append(RayExecutor(root, workers=2, deadline=deadline))
        return made[-1]

    make.name = request.param  # type: ignore[attr-defined]
    yield make
    for executor in made:
        executor.close()


def run(
    root: Path, executor: Executor, stage: Squares, events: list[object] | None = None
) -> tuple[list[Outcome], np.ndarray, Project]:
    project = Project(root, create=True)
    seen = events if events is not None else []
    marks = Runner(project, executor, EventBus(seen.append)).run(stage, "run", [spec(N)], units(N))
    values = np.zeros((N, 3), dtype=np.float32)
    for i, mark in enumerate(marks):
        if mark.outcome is Outcome.DONE:
            values[i] = project.read(units(N)[i].writes["square"])
    return [m.outcome for m in marks], values, project


def squares() -> np.ndarray:
    return np.repeat(np.arange(N, dtype=np.float32)[:, None] ** 2, 3, axis=1)


def attempts(folder: Path) -> int:
    return len(list(folder.iterdir()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "attempts"
    out.mkdir()
    return out


def project_at(tmp_path: Path) -> Path:
    Project(tmp_path / "project", create=True)
    return tmp_path / "project"


def test_faults_that_pass_leave_no_trace(engine: Callable[..., Executor], tmp_path: Path, folder: Path) -> None:
    root = project_at(tmp_path)
    events: list[object] = []
    stage = Squares(str(folder), {i: "once" for i in range(0, N, 3)})
    outcomes, values, _ = run(root, engine(root), stage, events)
    assert outcomes == [Outcome.DONE] * N
    np.testing.assert_array_equal(values, squares())
    assert attempts(folder) == N + 4
    assert sum(isinstance(e, UnitRetried) for e in events) == 4
    assert sum(isinstance(e, UnitFinished) for e in events) == N


def test_bad_input_is_set_aside_at_once_and_poison_after_three(
    engine: Callable[..., Executor], tmp_path: Path, folder: Path
) -> None:
    root = project_at(tmp_path)
    events: list[object] = []
    outcomes, values, _ = run(root, engine(root), Squares(str(folder), {2: "bad", 5: "poison"}), events)
    expected = [Outcome.DONE] * N
    expected[2], expected[5] = Outcome.SET_ASIDE, Outcome.QUARANTINED
    assert outcomes == expected
    assert attempts(folder) == N - 2 + 1 + 3
    keep = [i for i in range(N) if i not in (2, 5)]
    np.testing.assert_array_equal(values[keep], squares()[keep])
    finished = [e for e in events if isinstance(e, StageFinished)]
    assert finished[0].outcomes == {"done": N - 2, "set_aside": 1, "quarantined": 1}


def test_a_second_run_computes_nothing(engine: Callable[..., Executor], tmp_path: Path, folder: Path) -> None:
    root = project_at(tmp_path)
    executor = engine(root)
    stage = Squares(str(folder), {4: "bad"})
    first = run(root, executor, stage)[0]
    before = attempts(folder)
    assert run(root, executor, stage)[0] == first
    assert attempts(folder) == before


def test_a_broken_stage_is_stopped_before_all_its_units_are_given_up(tmp_path: Path, folder: Path) -> None:
    root, n = project_at(tmp_path), 40
    broken = Squares(str(folder), dict.fromkeys(range(n), "poison"))
    runner = Runner(Project(root), InlineExecutor(root), EventBus())
    with pytest.raises(StageFailedError, match=r"20 that failed.*unit \d+ failed.*cryoseg retry"):
        runner.run(broken, "run", [spec(n)], units(n))
    assert len(Ledger(runner.project.ledger_path("run")).load()) == 20
    take_back_failed(runner.project, [Outcome.QUARANTINED])
    marks = runner.run(Squares(str(folder), {}), "run", [spec(n)], units(n))
    assert [mark.outcome for mark in marks] == [Outcome.DONE] * n


def test_nothing_done_is_an_error(engine: Callable[..., Executor], tmp_path: Path, folder: Path) -> None:
    root = project_at(tmp_path)
    with pytest.raises(StageFailedError, match="got 0"):
        run(root, engine(root), Squares(str(folder), dict.fromkeys(range(N), "bad")))


def wait_until_up(executor: Executor, project: Project, workers: int, tmp_path: Path) -> None:
    """Small stages until units have been done by so many workers."""
    (tmp_path / "warm").mkdir()
    for i in range(200):
        stage = Squares(str(tmp_path / "warm"), {})
        marks = Runner(project, executor, EventBus()).run(stage, f"warm-{i}", [spec(60)], units(4))
        if len({mark.worker for mark in marks}) == workers:
            return
        time.sleep(0.2)
    raise AssertionError(f"{workers} workers did not come up")


@pytest.mark.ray
def test_a_sick_worker_is_replaced_and_costs_no_unit(ray_session: None, tmp_path: Path, folder: Path) -> None:
    from cryoseg_dist.runtime.ray_actors import RayExecutor

    root, n = project_at(tmp_path), 60
    executor = RayExecutor(root, workers=2)
    project = Project(root)
    try:
        wait_until_up(executor, project, 2, tmp_path)
        marks = Runner(project, executor, EventBus()).run(FailsOn(str(folder)), "run", [spec(n)], units(n))
    finally:
        executor.close()
    assert [mark.outcome for mark in marks] == [Outcome.DONE] * n
    # It failed on three units in a row and got few more; without that it would have taken most of the sixty.
    failed = [p.name for p in folder.glob("failed-*")]
    assert 3 <= len(failed) <= 10
    assert {name.split("-")[2] for name in failed} == {(folder / "sick").read_text()}


@pytest.mark.ray
def test_a_lost_call_of_many_short_units_counts_for_none_of_them(
    ray_session: None, tmp_path: Path, folder: Path
) -> None:
    from cryoseg_dist.runtime.ray_actors import RayExecutor
    from cryoseg_dist.runtime.ray_call import MOST_UNITS

    root, n, deadly = project_at(tmp_path), 400, 200
    executor = RayExecutor(root, workers=1)
    events: list[object] = []
    try:
        stage = Squares(str(folder), {deadly: "deadly"})
        marks = Runner(Project(root), executor, EventBus(events.append)).run(stage, "run", [spec(n)], units(n))
    finally:
        executor.close()
    assert [(mark.outcome, mark.attempts) for mark in marks] == [(Outcome.DONE, 1)] * n
    [lost] = [event.reason for event in events if isinstance(event, UnitRetried)]
    together = re.fullmatch(r"worker lost \(.*\), with (\d+) units", lost)
    assert together
    assert 1 < int(together[1]) <= MOST_UNITS
    # What the call had finished is done again, and nothing else.
    assert n < attempts(folder) <= n + int(together[1])


def test_a_killed_driver_goes_on_where_it_ended(tmp_path: Path, folder: Path) -> None:
    root = project_at(tmp_path)
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from cryoseg_dist.runtime.inline import InlineExecutor
        from cryoseg_dist.runtime.runner import Runner
        from cryoseg_dist.runtime.events import EventBus
        from cryoseg_dist.store.ledger import Ledger
        from cryoseg_dist.store.project import Project
        from tests.runtime.engine_stages import Squares, spec, units
        root = Path({str(root)!r})
        slow = EventBus(lambda event: time.sleep(0.3))
        stage = Squares({str(folder)!r}, {{}})
        Runner(Project(root), InlineExecutor(root), slow).run(stage, "run", [spec({N})], units({N}))
    """)
    top = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=top, env={**os.environ, "PYTHONPATH": str(top)})
    deadline = time.monotonic() + 60
    while attempts(folder) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(Project(root).ledger_path("run").read_bytes().splitlines())
    killed = attempts(folder)
    assert 1 <= done < N
    outcomes, values, _ = run(root, InlineExecutor(root), Squares(str(folder), {}))
    assert outcomes == [Outcome.DONE] * N
    np.testing.assert_array_equal(values, squares())
    # At most the one unit that was under way is computed twice.
    assert attempts(folder) - killed == N - done
    assert attempts(folder) <= N + 1
