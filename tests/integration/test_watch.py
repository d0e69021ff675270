"""Micrographs that arrive slowly, half-written, twice, broken, and are deleted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cryoseg_dist.cli.session import open_session
from cryoseg_dist.cli.simulate import write_micrographs
from cryoseg_dist.errors import BadInputError
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.run import run_pipeline
from cryoseg_dist.pipeline.watch import WatchOptions, watch
from cryoseg_dist.pipeline.watch_list import LIST_NAME, Arrival, Arrivals, WatchList
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import SimulateSettings
from cryoseg_dist.simulate.specimen import made_up

OPTICS = {"pixel_size": 4.0, "voltage": 300, "spherical_aberration": 2.7}
CTF = {"min_significance": 0, "max_resolution": 100, "max_astigmatism": 100000}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    simulated = SimulateSettings(
        n_micrographs=4, width=640, height=640, particles=60, snr=0.3, ice_noise=0.8, carbon=0.0, seed=2
    )
    specimen = made_up(symmetry="D2", diameter=150.0, size=56, pixel_size=4.0, seed=1)
    write_micrographs(specimen, Optics(4.0, 300.0, 2.7, 0.1), simulated, folder)
    return sorted((folder / "micrographs").glob("*.mrc"))


def names(found: list[Arrival]) -> list[str]:
    return [Path(a.path).name for a in found]


def test_a_file_is_complete_when_it_is_still_and_whole(images: list[Path], tmp_path: Path) -> None:
    listed, folder = WatchList(tmp_path / LIST_NAME), tmp_path / "in"
    folder.mkdir()
    arrivals = Arrivals(folder, settle=10, patience=100)

    def complete(now: float) -> list[Arrival]:
        return list(arrivals.complete(listed, now))

    whole = images[0].read_bytes()
    (folder / "a.mrc").write_bytes(whole[: len(whole) // 2])
    (folder / "gone.mrc").write_bytes(whole)
    (folder / "notes.txt").write_text("no micrograph")
    (folder / ".a.mrc.part").write_bytes(whole)
    assert complete(0) == []
    (folder / "gone.mrc").unlink()
    # Still for longer than the settle time, and only half there.
    assert complete(20) == []
    (folder / "a.mrc").write_bytes(whole)
    assert complete(21) == []
    assert complete(30) == []
    [found] = complete(31)
    assert (found.path, found.size, found.fault) == (str(folder / "a.mrc"), len(whole), "")
    assert listed.add(found)
    assert complete(60) == []
    # A copy is told of once, and not read at every look.
    shutil.copy(folder / "a.mrc", folder / "copy.mrc")
    assert [names(complete(t)) for t in (61, 72, 80, 500)] == [[], ["copy.mrc"], [], []]
    # What never becomes whole arrives at last, as broken.
    (folder / "b.mrc").write_bytes(whole[:5000])
    assert [names(complete(t)) for t in (600, 620, 650, 699)] == [[], [], [], []]
    [broken] = complete(700)
    assert "5000 instead of" in broken.fault


def test_copies_renames_and_a_mount_that_does_not_answer(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, folder = WatchList(tmp_path / LIST_NAME), tmp_path / "in"
    (folder / "session 2").mkdir(parents=True)
    arrivals = Arrivals(folder, settle=10, patience=100)

    def complete(now: float) -> list[str]:
        found = list(arrivals.complete(listed, now))
        for arrival in found:
            listed.add(arrival)
        return names(found)

    # As rsync does: a hidden name first, the old time of change kept, then the name.
    hidden = folder / "session 2" / ".Ünter 1.mrc.Xy12"
    shutil.copy(images[0], hidden)
    os.utime(hidden, (1e9, 1e9))
    assert [complete(t) for t in (0, 20)] == [[], []]
    hidden.rename(folder / "session 2" / "Ünter 1.mrc")
    assert [complete(t) for t in (21, 30, 31)] == [[], [], ["Ünter 1.mrc"]]
    # The settle time starts anew with every growth, however slow.
    whole = images[1].read_bytes()
    for i in range(1, 6):
        (folder / "slow.mrc").write_bytes(whole[: i * len(whole) // 5])
        assert complete(30.0 + 9 * i) == []
    assert [complete(t) for t in (84, 85)] == [[], ["slow.mrc"]]
    # Moved after it was taken in, and rewritten: the first version counts.
    (folder / "slow.mrc").rename(folder / "moved.mrc")
    (folder / "slow.mrc").write_bytes(images[2].read_bytes())
    assert [complete(t) for t in (100, 120)] == [[], ["moved.mrc"]]
    assert names(listed.arrivals) == ["Ünter 1.mrc", "slow.mrc"]
    shutil.copy(images[3], folder / "3.mrc")
    assert complete(130) == []
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", lambda *_: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
        assert complete(135) == []
    assert complete(140) == ["3.mrc"]


def test_a_broken_first_file_and_a_folder_that_goes_away_end_nothing(images: list[Path], tmp_path: Path) -> None:
    folder, root = tmp_path / "in", tmp_path / "P"
    folder.mkdir()
    (folder / "0.mrc").write_bytes(b"not a micrograph")
    settings = build_settings(
        {"data": {"micrographs": str(root / LIST_NAME), **OPTICS}, "engine": {"engine": "inline"}}
    )
    stop = threading.Event()

    def told(text: str) -> bool:
        deadline = time.monotonic() + 60
        path = root / "events.jsonl"
        while not (path.exists() and text in path.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return text in path.read_text()

    def microscope() -> None:
        try:
            assert told("not yet: micrographs: expected at least one readable")
            folder.rename(tmp_path / "away")
            assert told("gone; waiting for it")
            shutil.copy(images[0], tmp_path / "away" / "1.mrc")
            (tmp_path / "away").rename(folder)
            assert told("ingest/000001")
        finally:
            stop.set()

    feeder = threading.Thread(target=microscope)
    with open_session(settings, root, ["test"]) as session:
        feeder.start()
        result = watch(session, WatchOptions(folder, settle=0.1, poll=0.05), stop, until="ingest")
        # Deleted between its arrival and its turn: set aside with its reason, like any broken file.
        lost = WatchList(root / LIST_NAME)
        assert lost.add(Arrival(str(folder / "2.mrc"), 9, "d", (1, 640, 640), 4.0))
        again = run_pipeline(session, "ingest")
    feeder.join()
    assert result.micrographs is not None
    assert result.micrographs.usable == (1,)
    assert again.micrographs is not None
    assert again.micrographs.usable == (1,)
    assert "2.mrc: expected a file, got none" in [s.reason for s in again.micrographs.set_aside][1]


def test_the_list_keeps_numbers_and_refuses_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / LIST_NAME
    first = WatchList(path)
    assert first.add(Arrival("/x/a.mrc", 3, "d1", (1, 4, 5), 1.5))
    assert not first.add(Arrival("/x/copy.mrc", 3, "d1"))
    assert not first.add(Arrival("/x/a.mrc", 3, "d2"))
    assert first.add(Arrival("/x/b.mrc", 3, "d3", fault="short"))
    # A driver killed in the middle of a line.
    with path.open("a") as stream:
        stream.write('{"path": "/x/c.m')
    again = WatchList(path)
    assert again.name == first.name
    assert again.arrivals == first.arrivals
    assert again.add(Arrival("/x/c.mrc", 3, "d4"))
    assert names(WatchList(path).arrivals) == ["a.mrc", "b.mrc", "c.mrc"]
    path.write_text("nonsense\n")
    with pytest.raises(BadInputError, match="a list of arrivals"):
        WatchList(path)


def test_what_arrives_is_computed_once(images: list[Path], tmp_path: Path) -> None:
    folder, root = tmp_path / "in", tmp_path / "P"
    folder.mkdir()
    settings = build_settings(
        {
            "data": {"micrographs": str(root / LIST_NAME), **OPTICS},
            "particle": {"diameter": 150},
            "engine": {"engine": "inline"},
            "ctf": CTF,
        }
    )
    stop = threading.Event()

    def marks(stage: str) -> list[str]:
        return [json.loads(line)["key"] for p in (root / "ledger").glob(f"{stage}-*.jsonl") for line in p.open()]

    def until(n: int) -> None:
        deadline = time.monotonic() + 60
        while len(marks("ctf")) < n and time.monotonic() < deadline:
            time.sleep(0.05)

    def microscope() -> None:
        try:
            shutil.copy(images[0], folder / "0.mrc")
            until(1)
            whole = images[1].read_bytes()
            with (folder / "1.mrc").open("wb") as stream:
                for i in range(0, len(whole), 100_000):
                    stream.write(whole[i : i + 100_000])
                    stream.flush()
                    time.sleep(0.1)
            until(2)
            # Taken in: it may be deleted. Twice: it counts once.
            (folder / "0.mrc").unlink()
            shutil.copy(images[1], folder / "again.mrc")
            shutil.copy(images[2], folder / "2.mrc")
            until(3)
        finally:
            stop.set()

    feeder = threading.Thread(target=microscope)
    with open_session(settings, root, ["test"]) as session:
        feeder.start()
        result = watch(session, WatchOptions(folder, settle=0.3, poll=0.1), stop, until="extract")
    feeder.join()
    assert result.micrographs is not None
    assert [Path(p).name for p in result.micrographs.paths] == ["0.mrc", "1.mrc", "2.mrc"]
    assert result.micrographs.usable == (0, 1, 2)
    assert result.fits is not None
    assert result.particles is not None
    assert {Path(n).name for n in result.particles.table["micrograph_name"]} == {"0.mrc", "1.mrc", "2.mrc"}
    for stage in ("ingest", "ctf", "segment", "pick"):
        assert sorted(marks(stage)) == [f"{stage}/{i:06d}" for i in range(3)]
        assert len(list((root / "ledger").glob(f"{stage}-*.jsonl"))) == 1
    assert "holds the bytes of an earlier micrograph" in (root / "events.jsonl").read_text()


def test_a_signal_ends_the_watch_and_the_run_goes_on_to_its_end(images: list[Path], tmp_path: Path) -> None:
    folder, root = tmp_path / "in", tmp_path / "P"
    folder.mkdir()
    for path in images[:2]:
        shutil.copy(path, folder)
    command = [
        sys.executable, "-m", "cryoseg_dist.cli.main", "ctf", "--project", str(root), "--engine", "inline",
        "--watch", str(folder), "--watch-settle", "0.3", "--pixel-size", "4", "--voltage", "300",
        "--spherical-aberration", "2.7", *(f"--set=ctf.{k}={v}" for k, v in CTF.items()),
    ]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 90
        while "ctf: 2 done" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 3), log.read_text()
    assert "watching ends with 2 micrographs" in log.read_text()
    assert (root / "export" / "micrographs_ctf.star").exists()
