"""``cryoseg retry``, ``verify`` and ``clean``."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cryoseg_dist.cli.main import app
from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.run import run_pipeline
from cryoseg_dist.pipeline.session import open_session
from cryoseg_dist.runtime.events import Message, UnitFinished
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.clean import write_current
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def ingested(tmp_path: Path) -> Path:
    """A project of three micrographs, one of which is broken."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(3):
        write_stack(tmp_path / "in" / f"m{i}.mrc", rng.normal(0, 1, (128, 128)).astype(np.float32), 4.0)
    broken = tmp_path / "in" / "m2.mrc"
    broken.write_bytes(broken.read_bytes()[:2000])
    ingest(tmp_path)
    return tmp_path / "P"


def ingest(folder: Path, until: str = "ingest", events: tuple = ()) -> list[Outcome]:
    settings = build_settings(
        {
            "data": {
                "micrographs": str(folder / "in" / "*.mrc"), "pixel_size": 4.0, "voltage": 300, "spherical_aberration": 2.7
            },
            "engine": {"engine": "inline"},
            "ctf": {"min_significance": 0, "max_resolution": 100, "max_astigmatism": 1e4},
        }
    )  # fmt: skip
    with open_session(
        settings, folder / "P", events, ["cryoseg", "--metrics-push", "http://user:word@host"]
    ) as session:
        run = run_pipeline(session, until=until).micrographs
        assert run is not None
        marks = Ledger(session.project.ledger_path(run.run)).load()
    return [marks[key].outcome for key in sorted(marks)]


def test_set_aside_and_quarantined_units_come_back(ingested: Path) -> None:
    ledger = next((ingested / "ledger").glob("ingest-*.jsonl"))
    with Ledger(ledger) as journal:
        journal.append(Mark("ingest/000001", Outcome.QUARANTINED, reason="OSError: cable", attempts=3))
    told = call("retry", ingested)
    assert told.exit_code == 0
    assert "ingest/000001: OSError: cable" in told.output
    assert "1 units taken back" in told.output
    assert "nothing to try again" in call("retry", ingested).output
    told = call("retry", ingested, "--set-aside")
    assert "ingest/000002" in told.output
    assert ingest(ingested.parent) == [Outcome.DONE, Outcome.DONE, Outcome.SET_ASIDE]
    attempts = [mark.attempts for mark in Ledger(ledger).load().values()]
    assert attempts == [1, 1, 1]


def test_verify_names_what_is_damaged_and_mends_it(ingested: Path) -> None:
    told = call("verify", ingested)
    assert told.exit_code == 0, told.output
    assert "4 shards, 2 inputs, 0 exported files: whole" in told.output
    changed = ingested.parent / "in" / "m0.mrc"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    told = call("verify", ingested)
    assert told.exit_code == 2
    assert "m0.mrc: other bytes than were read. Put the file back" in told.output
    shard = next((ingested / "store.zarr").glob("ingest-*/level8/c/1/0/0"))
    shard.unlink()
    told = call("verify", ingested, "--quick", "--mend")
    assert told.exit_code == 1
    assert "no file" in told.output
    assert "taken back ingest/000001" in told.output
    marks = Ledger(next((ingested / "ledger").glob("ingest-*.jsonl"))).load()
    assert sorted(marks) == ["ingest/000000", "ingest/000002"]
    assert call("verify", ingested.parent / "in").exit_code == 2


def test_a_run_that_meets_damage_computes_it_again(ingested: Path) -> None:
    shard = next((ingested / "store.zarr").glob("ingest-*/micrographs/c/1/0/0"))
    shard.write_bytes(shard.read_bytes()[:-100])
    seen: list = []
    assert ingest(ingested.parent, "ctf", (seen.append,)) == [Outcome.DONE, Outcome.DONE, Outcome.SET_ASIDE]
    ended = [event.key for event in seen if isinstance(event, UnitFinished)]
    # The damaged one once, and no other again.
    assert sorted(ended) == ["ctf/000000", "ctf/000001", "ingest/000001"]
    [told] = [event.text for event in seen if isinstance(event, Message) and event.stage == "mend"]
    assert "ingest/000001 computed again" in told
    assert call("verify", ingested).exit_code == 0


def test_clean_says_what_goes_and_asks(ingested: Path) -> None:
    assert "nothing that may go" in call("clean", ingested, "--yes").output
    # As if a later run with other settings had finished.
    write_current(Project(ingested), ["ingest-other"], 4e9)
    told = call("clean", ingested, "--dry-run")
    assert told.exit_code == 0
    assert "a run of older settings or inputs" in told.output
    assert "in all" in told.output
    told = call("clean", ingested)
    assert told.exit_code == 2
    assert "Give --yes" in told.output
    assert list((ingested / "store.zarr").glob("ingest-*"))
    told = call("clean", ingested, "--yes")
    assert told.exit_code == 0
    assert "freed" in told.output
    assert not list((ingested / "store.zarr").glob("ingest-*"))
    assert list((ingested / "runs").glob("ingest-*.json"))
    # What went is computed again where it is needed.
    assert ingest(ingested.parent) == [Outcome.DONE, Outcome.DONE, Outcome.SET_ASIDE]


def test_no_password_is_kept(ingested: Path) -> None:
    kept = [path for path in ingested.rglob("*.json*") if b"word@host" in path.read_bytes()]
    assert kept == []
    manifest = next((ingested / "runs").glob("ingest-*.json")).read_text()
    assert "***@host" in manifest
