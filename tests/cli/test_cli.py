"""The command line: help, clear errors, exit codes."""

import io
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.cli.progress import Progress, duration
from cryoseg_dist.runtime.events import IterationFinished, StageFinished, StageStarted, UnitFinished
from cryoseg_dist.schema.work import Outcome

COMMANDS = (
    "run", "ingest", "ctf", "segment", "pick", "extract", "classify", "abinitio", "refine", "reconstruct", "postprocess",
    "report", "init", "dashboard", "demo", "simulate", "train", "status", "validate",
)  # fmt: skip


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_help_lists_every_command() -> None:
    code, text = call("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"  {command}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    code, text = call(command, "--help")
    assert code == 0
    assert "Usage" in text


def test_init_writes_settings_and_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "cryoseg.toml"
    assert call("init", str(path))[0] == 0
    assert "pixel_size" in path.read_text()
    tomllib.loads(path.read_text())
    code, text = call("init", str(path))
    assert code == 2
    assert "an existing file" in text


def test_every_fault_is_told_before_anything_starts(tmp_path: Path) -> None:
    project = tmp_path / "P"
    code, text = call(
        "run", "--project", str(project), "--pixel-size", "-3", "--symmetry", "Z9", "--set", "ctf.nothing=1",
        "--micrographs", "x",
    )  # fmt: skip
    assert code == 2
    for part in ("data.pixel_size", "data.voltage", "Z9", "ctf.nothing: unknown"):
        assert part in text
    assert not project.exists()


def test_missing_micrographs_and_diameter_are_told(tmp_path: Path) -> None:
    arguments = (
        "--pixel-size",
        "1",
        "--voltage",
        "300",
        "--spherical-aberration",
        "2.7",
        "--project",
        str(tmp_path / "P"),
    )
    code, text = call("run", *arguments)
    assert code == 2
    assert "data.micrographs" in text
    assert "particle.diameter" in text
    code, text = call("ctf", *arguments, "--micrographs", str(tmp_path / "*.mrc"))
    assert code == 2
    assert "none for" in text


def test_status_of_no_project(tmp_path: Path) -> None:
    code, text = call("status", str(tmp_path))
    assert code == 2
    assert "a project that was run" in text


def test_plain_progress_tells_counts_failures_and_iterations() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress(StageStarted("ctf", "ctf-1", 3, 1))
        progress(UnitFinished("ctf", "ctf-1", "ctf/1", Outcome.SET_ASIDE, 1.0, 0, 0, 1, "w", "no rings"))
        progress(IterationFinished("refine", 3, {"resolution": 8.25, "angular_step": 3.75}))
        progress(StageFinished("ctf", "ctf-1", {"done": 2, "set_aside": 1}, 75.0))
    text = stream.getvalue()
    assert "3 units, 1 of them finished before" in text
    assert "ctf/1 set aside: no rings" in text
    assert "iteration 3, 8.25 A, step 3.75 deg" in text
    assert "2 done, 1 set aside in 1 min 15 s" in text
    assert duration(3725) == "1 h 02 min"
