import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.ledger import Ledger, Mark, run_id
from cryoseg_dist.store.lock import project_lock


def test_marks_come_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "ctf-1.jsonl"
    marks = [
        Mark("ctf/0", Outcome.DONE, {"defocus_u": 15000.25, "spectrum": np.arange(3.0), "n": np.int64(4)}, seconds=0.5),
        Mark("ctf/1", Outcome.SET_ASIDE, reason="ü: expected a file, got none.", attempts=2, worker="w"),
    ]
    with Ledger(path) as ledger:
        for mark in marks:
            ledger.append(mark)
    held = Ledger(path).load()
    assert held["ctf/0"].record == {"defocus_u": 15000.25, "spectrum": [0.0, 1.0, 2.0], "n": 4}
    assert held["ctf/1"] == marks[1]
    assert held["ctf/0"].finished_at == marks[0].finished_at


@pytest.mark.parametrize("torn", [b'{"key":"b","outc', b"\xff\x00", b"x" * 200_000, b'{"key":"b","outcome":"done"}'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    with Ledger(path) as ledger:
        ledger.append(Mark("a", Outcome.DONE))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert set(Ledger(path).load()) == {"a"}
    assert path.read_bytes() == whole
    # Appending without loading must not glue two lines together either.
    path.write_bytes(whole + torn)
    with Ledger(path) as ledger:
        ledger.append(Mark("c", Outcome.DONE))
    assert set(Ledger(path).load()) == {"a", "c"}


def test_a_journal_of_one_torn_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"key')
    assert Ledger(path).load() == {}
    assert Ledger(tmp_path / "none.jsonl").load() == {}


def test_damage_inside_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Ledger(path) as ledger:
        ledger.append(Mark("a", Outcome.DONE))
    path.write_bytes(path.read_bytes() + b"garbage\n")
    with pytest.raises(BadInputError, match="line 2"):
        Ledger(path).load()


def test_the_last_mark_of_a_key_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.jsonl") as ledger:
        ledger.append(Mark("a", Outcome.QUARANTINED))
        ledger.append(Mark("a", Outcome.DONE))
        assert ledger.load()["a"].outcome is Outcome.DONE


def test_marks_survive_sigkill_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from cryoseg_dist.schema.work import Outcome
        from cryoseg_dist.store.ledger import Ledger, Mark
        from cryoseg_dist.store.lock import project_lock
        with project_lock(Path(sys.argv[1]).parent):
            ledger = Ledger(Path(sys.argv[1]))
            for i in range(100):
                ledger.append(Mark(str(i), Outcome.DONE))
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert set(Ledger(path).load()) == {str(i) for i in range(100)}
    # The lock went with the process.
    with project_lock(tmp_path):
        pass


def test_run_id_depends_on_what_determines_the_result() -> None:
    name = run_id("ctf", {"a": 1, "b": [1.5, None]}, {"ingest": "ingest-0"})
    assert name == run_id("ctf", {"b": (1.5, None), "a": 1}, {"ingest": "ingest-0"})
    assert name.startswith("ctf-")
    others = {
        run_id("pick", {"a": 1, "b": [1.5, None]}, {"ingest": "ingest-0"}),
        run_id("ctf", {"a": 2, "b": [1.5, None]}, {"ingest": "ingest-0"}),
        run_id("ctf", {"a": 1, "b": [1.5, None]}, {"ingest": "ingest-1"}),
    }
    assert len(others | {name}) == 4
    with pytest.raises(TypeError, match="set"):
        run_id("ctf", {"a": {1, 2}}, {})


def test_run_id_is_the_same_in_another_process() -> None:
    code = "from cryoseg_dist.store.ledger import run_id; print(run_id('x', {'a': 'ü', 'z': 0.1}, {'u': 'v'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == run_id("x", {"z": 0.1, "a": "ü"}, {"u": "v"})
