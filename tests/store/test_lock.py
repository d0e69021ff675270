"""One driver a project, whatever became of the last one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryoseg_dist.store import lock
from cryoseg_dist.store.lock import BLOCK, LOCK_NAME, LockedError, project_lock

HOLD = """
import sys, time
from pathlib import Path
from cryoseg_dist.store.lock import project_lock
with project_lock(Path(sys.argv[1]), 0.05):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = {"pid": 1, "host": "node7", "machine": "other boot", "started": "5", "since": "today"}


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write(path: Path, beat: int) -> None:
    path.write_bytes(json.dumps({**ELSEWHERE, "beat": beat}).encode().ljust(BLOCK))


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """A driver on another machine: its heartbeat moves, and the kernel here knows nothing of it."""
    stopped = threading.Event()

    def beat() -> None:
        n = 0
        while not stopped.wait(0.02):
            n += 1
            write(path, n)

    write(path, 0)
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    stopped.set()
    thread.join()


def test_a_second_driver_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with project_lock(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()} on"), project_lock(tmp_path):
        pass
    with project_lock(tmp_path):
        pass
    assert (tmp_path / LOCK_NAME).read_bytes() == b""


def test_a_killed_driver_leaves_the_project_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(LockedError, match=f"process {process.pid} on"), project_lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert f'"pid": {process.pid}' in (tmp_path / LOCK_NAME).read_text()
    started = time.monotonic()
    with project_lock(tmp_path):
        assert time.monotonic() - started < 1.0


def test_a_stopped_driver_keeps_it(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LockedError), project_lock(tmp_path, 0.05):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_live_driver_on_another_machine_is_seen_by_its_heartbeat(tmp_path: Path) -> None:
    with (
        beating(tmp_path / LOCK_NAME),
        pytest.raises(LockedError, match="process 1 on node7"),
        project_lock(tmp_path, 0.2),
    ):
        pass


def test_a_dead_driver_on_another_machine_is_given_some_beats(tmp_path: Path) -> None:
    write(tmp_path / LOCK_NAME, 3)
    started = time.monotonic()
    with project_lock(tmp_path, 0.05):
        waited = time.monotonic() - started
    assert 4 * 0.05 <= waited < 3.0


def test_without_file_locks_the_process_itself_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(lock.errno.ENOLCK, "No locks available")

    process = holder(tmp_path)
    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.raises(LockedError, match=str(process.pid)), project_lock(tmp_path):
        pass
    process.kill()
    process.wait()
    # Another process with the number of the dead one is not taken for it.
    held = json.loads((tmp_path / LOCK_NAME).read_bytes())
    (tmp_path / LOCK_NAME).write_text(json.dumps({**held, "pid": os.getpid()}))
    with project_lock(tmp_path):
        pass


def test_a_driver_that_lost_its_project_stops(tmp_path: Path) -> None:
    def work() -> None:
        with project_lock(tmp_path, 0.02):
            # Once alone, between a look of the heart and its beat, would be written over: a driver that took a project beats.
            for beat in range(500):
                write(tmp_path / LOCK_NAME, beat)
                time.sleep(0.01)

    with pytest.raises(LockedError, match="node7"):
        work()


@pytest.mark.parametrize("text", ["", "12345", "{", "[]", "\x00" * 40, '{"pid": 0}'])
def test_whatever_the_file_holds_nobody_is_shut_out(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with project_lock(tmp_path):
        pass
