"""A disk that fills up, turns read-only, refuses this user or is slow: a clear refusal, and a second run finishes."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import DamagedDataError, StageFailedError, StoreUnavailableError
from cryoseg_dist.runtime.events import EventBus, JsonLog, UnitRetried
from cryoseg_dist.runtime.inline import InlineExecutor
from cryoseg_dist.runtime.runner import Runner
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.journal import Journal
from cryoseg_dist.store.project import Project
from tests.runtime.engine_stages import Planes, Squares, plane_spec, plane_units, spec, units
from tests.s3_server import S3Server

N = 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB of its own."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(where)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk: mount is not permitted here ({mounted.stderr.strip()})")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def remount(where: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(where)], check=True)


def run_planes(root: Path, check_space: bool = False, patience: float = 0.0, sinks: tuple = ()) -> list[Outcome]:
    project = Project(root, create=True)
    runner = Runner(project, InlineExecutor(root, patience=patience), EventBus(*sinks), check_space)
    marks = runner.run(Planes(), "run", [plane_spec(N)], plane_units(N))
    assert [int(project.read(u.writes["plane"])[0, 0, 0]) for u in plane_units(N)] == list(range(N))
    return [mark.outcome for mark in marks]


def test_a_full_disk_stops_the_run_and_a_second_run_finishes_it(small_disk: Path) -> None:
    root = small_disk / "project"
    log = JsonLog(root / "events.jsonl")
    with pytest.raises(StoreUnavailableError, match=r"No space left.*same command again"):
        run_planes(root, sinks=(log,))
    log.close()
    ledger = Project(root).ledger_path("run")
    done = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    assert 1 <= len(done) < N
    assert {mark["outcome"] for mark in done} == {"done"}
    assert all(json.loads(line) for line in (root / "events.jsonl").read_bytes().splitlines())
    remount(small_disk, "size=64m")
    assert run_planes(root) == [Outcome.DONE] * N
    assert len(ledger.read_bytes().splitlines()) == N


def test_what_will_not_fit_is_refused_before_it_starts(small_disk: Path) -> None:
    root = small_disk / "project"
    with pytest.raises(StageFailedError, match=r"planes: expected 0\.00781 GiB of room"):
        run_planes(root, check_space=True)
    assert not Project(root).ledger_path("run").exists()
    remount(small_disk, "size=64m")
    assert run_planes(root, check_space=True) == [Outcome.DONE] * N


def test_a_small_disk_does_not_limit_what_goes_to_a_bucket(small_disk: Path, s3_server: S3Server) -> None:
    root = small_disk / "project"
    Project(root, create=True, store="s3://bucket/planes")
    assert run_planes(root, check_space=True) == [Outcome.DONE] * N


def test_a_journal_on_a_full_disk_holds_whole_lines_only(small_disk: Path) -> None:
    (small_disk / "fill").write_bytes(b"x" * (3 * 2**20 - 40_000))
    journal = Journal(small_disk / "a.jsonl")

    def fill() -> None:
        for i in range(1000):
            journal.append(json.dumps({"i": i, "text": "y" * 997}))

    with pytest.raises(StoreUnavailableError, match="No space left"):
        fill()
    (small_disk / "fill").unlink()
    journal.append(json.dumps({"i": -1}))
    journal.close()
    numbers = [json.loads(line)["i"] for line in (small_disk / "a.jsonl").read_text().splitlines()]
    assert len(numbers) > 3
    assert numbers == [*range(len(numbers) - 1), -1]


def test_a_disk_that_is_read_only_for_a_while_costs_no_unit(small_disk: Path, tmp_path: Path) -> None:
    root, attempts = small_disk / "project", tmp_path / "attempts"
    attempts.mkdir()
    project = Project(root, create=True)
    seen: list[object] = []

    def watch(event: object) -> None:
        seen.append(event)
        if isinstance(event, UnitRetried) and len(seen) < 3:
            threading.Timer(0.5, remount, (small_disk, "rw")).start()

    project.create(spec(N))
    remount(small_disk, "ro")
    try:
        runner = Runner(project, InlineExecutor(root, patience=30.0), EventBus(watch), patience=30.0)
        marks = runner.run(Squares(str(attempts), {}), "run", [spec(N)], units(N))
    finally:
        remount(small_disk, "rw")
    assert [mark.outcome for mark in marks] == [Outcome.DONE] * N
    assert {mark.attempts for mark in marks} == {1}
    assert any(isinstance(event, UnitRetried) and "Read-only" in event.reason for event in seen)


def test_permission_taken_away_is_a_refusal_and_given_back_the_run_goes_on(small_disk: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    root = small_disk / "project"
    remount(small_disk, "size=64m")
    Project(root, create=True).create(plane_spec(N))
    os.chmod(small_disk, 0o755)
    os.seteuid(65534)
    try:
        with pytest.raises((StoreUnavailableError, PermissionError), match=r"Permission denied"):
            run_planes(root)
    finally:
        os.seteuid(0)
    assert run_planes(root) == [Outcome.DONE] * N


def test_a_slow_storage_only_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Project.write
    waits = iter([0.0, 0.7] * N)

    def slowly(self: Project, *arguments: object) -> None:
        time.sleep(next(waits))
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Project, "write", slowly)
    seen: list[object] = []
    assert run_planes(tmp_path / "project", sinks=(seen.append,)) == [Outcome.DONE] * N
    assert not any(isinstance(event, UnitRetried) for event in seen)


def test_a_damaged_and_a_lost_shard_are_named(tmp_path: Path) -> None:
    root = tmp_path / "project"
    run_planes(root)
    project = Project(root)
    shards = root / "store.zarr" / "run" / "planes" / "c"
    data = (shards / "3" / "0" / "0").read_bytes()
    (shards / "3" / "0" / "0").write_bytes(data[:-100])
    (shards / "5" / "0" / "0").unlink()
    whole = project.whole("run/planes")
    with pytest.raises(DamagedDataError, match="no file") as lost:
        project.read(whole)
    assert (lost.value.start[0], lost.value.stop[0]) == (5, 6)
    (shards / "5" / "0" / "0").write_bytes(data)
    with pytest.raises(DamagedDataError, match=r"run/planes, \[3, 0, 0\] to \[4, 512, 512\]") as damaged:
        project.read(whole)
    assert damaged.value.start == (3, 0, 0)
    np.testing.assert_array_equal(project.read(plane_units(N)[2].writes["plane"]), np.full((1, 512, 512), 2.0))
