"""Units that wait their turn, and the judgement on workers."""

import errno
import pickle
import time
from contextlib import nullcontext

import pytest

from cryoseg_dist.errors import DamagedDataError, StoreUnavailableError
from cryoseg_dist.runtime import backlog as module
from cryoseg_dist.runtime.backlog import Backlog, Job, pause
from cryoseg_dist.runtime.executor import Finished, Retry
from cryoseg_dist.runtime.health import Health
from cryoseg_dist.schema.work import Outcome, Unit
from cryoseg_dist.store.faults import storage_faults, unavailable


def units(n: int) -> list[Unit]:
    return [Unit(f"u/{i}") for i in range(n)]


def drain(backlog: Backlog) -> list[str]:
    keys = []
    while backlog:
        job = backlog.take()
        if job is None:
            time.sleep(0.005)
            continue
        keys.append(job.unit.key)
    return keys


def test_pauses_grow_up_to_a_bound_and_are_random() -> None:
    for failures, longest in ((1, 0.2), (2, 0.6), (3, 1.8), (9, 20.0)):
        drawn = [pause(failures) for _ in range(50)]
        assert 0.5 * longest <= min(drawn) < max(drawn) <= longest + 1e-9


def test_a_failed_unit_waits_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.1)
    backlog = Backlog(units(4), 0.0)
    first = backlog.take()
    assert first is not None
    assert isinstance(backlog.failed(first, ValueError("no"), "w"), Retry)
    assert backlog.remaining == 4
    assert 0.0 < (backlog.until_due() or 0.0) <= 0.1
    assert drain(backlog) == ["u/1", "u/2", "u/3", "u/0"]


def test_a_unit_put_back_is_next_and_keeps_its_attempts() -> None:
    backlog = Backlog(units(3), 0.0)
    job = backlog.take()
    assert job is not None
    backlog.put_back(job)
    assert backlog.take() is job
    assert backlog.remaining == 2


def test_a_unit_goes_to_another_worker_than_the_one_it_failed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    backlog = Backlog(units(1), 0.0)
    job = backlog.take()
    assert job is not None
    backlog.failed(job, ValueError("no"), "a")
    assert backlog.take(lambda job: job.failed_on != "a") is None
    again = backlog.take(lambda job: job.failed_on != "b")
    assert again is not None
    assert (again.attempts, again.failed_on) == (2, "a")


def test_poison_ends_after_three() -> None:
    backlog = Backlog([], 0.0)
    job = Job(Unit("u"), attempts=3)
    ended = backlog.failed(job, ValueError("always"))
    assert isinstance(ended, Finished)
    assert (ended.mark.outcome, ended.mark.attempts) == (Outcome.QUARANTINED, 3)
    assert "always" in ended.mark.reason


def test_a_storage_that_is_away_counts_for_no_attempt_until_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
    backlog = Backlog(units(1), 0.4)
    away = StoreUnavailableError("p", "Stale file handle", "Mount it.")
    started = time.monotonic()
    tries: list[int] = []

    def go_on() -> None:
        while backlog:
            job = backlog.take()
            if job is None:
                time.sleep(0.005)
                continue
            tries.append(job.attempts)
            backlog.failed(job, away)

    with pytest.raises(StoreUnavailableError):
        go_on()
    assert len(tries) >= 3
    assert set(tries) == {1}
    assert 0.4 <= time.monotonic() - started < 5.0


def test_what_a_request_has_waited_counts_for_the_patience() -> None:
    def refused() -> None:
        # Through a process boundary, as an actor's answer.
        try:
            with storage_faults("s3://bucket/p"):
                time.sleep(0.2)
                raise OSError(errno.ETIMEDOUT, "x")
        except StoreUnavailableError as fault:
            backlog.failed(job, pickle.loads(pickle.dumps(fault)))

    for patience, ends in ((0.1, True), (10.0, False)):
        backlog = Backlog(units(1), patience)
        job = backlog.take()
        assert job is not None
        with pytest.raises(StoreUnavailableError) if ends else nullcontext():
            refused()


def test_a_full_disk_and_damage_stop_at_once() -> None:
    backlog = Backlog(units(2), 1e9)
    job = backlog.take()
    assert job is not None
    for fault in (
        StoreUnavailableError("p", "full", "Make room.", full=True),
        DamagedDataError("a", (0,), (1,), "no file"),
    ):
        with pytest.raises(type(fault)):
            backlog.failed(job, fault)


@pytest.mark.parametrize(
    ("fault", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("No space left on device (os error 28)"), True),
        (PermissionError(errno.EACCES, "x"), False),
        (RuntimeError("Read-only file system (os error 30)"), False),
        (OSError(errno.ESTALE, "x"), False),
    ],
)
def test_faults_of_the_storage_are_told_from_others(fault: Exception, full: bool) -> None:
    told = unavailable(fault, "project")
    assert told is not None
    assert told.full is full
    assert str(told).endswith("then give the same command again: it goes on.")
    assert unavailable(ValueError("nonsense"), "project") is None
    assert unavailable(FileNotFoundError(errno.ENOENT, "x"), "project") is None


def test_a_worker_that_fails_where_others_succeed_is_sick() -> None:
    health = Health()
    assert not health.failed("bad", "n", "u/0")
    health.finished("good", "n")
    # The same unit again says nothing of the worker.
    assert not health.failed("bad", "n", "u/0")
    assert not health.failed("bad", "n", "u/1")
    assert health.failed("bad", "n", "u/2")
    health.forget("bad")
    assert not health.sick_nodes()


def test_a_broken_stage_makes_no_worker_sick() -> None:
    health = Health()
    assert not any(health.failed(f"w{i % 3}", "n", f"u/{i}") for i in range(100))


def test_success_in_between_clears_a_worker() -> None:
    health = Health()
    for i in range(20):
        health.finished("other", "n")
        assert not health.failed("w", "n", f"u/{i}")
        if i % 2:
            health.finished("w", "n")


def test_a_node_is_sick_when_several_of_its_workers_were() -> None:
    health = Health()
    for worker in ("a", "b"):
        for i in range(2):
            health.failed(worker, "bad", f"{worker}/{i}")
        health.finished("good", "fine")
        assert health.failed(worker, "bad", f"{worker}/2")
        health.forget(worker)
    assert health.sick_nodes() == {"bad"}
