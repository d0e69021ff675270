"""The Slurm scripts without a Slurm: linted, and their functions against stand-ins for its commands."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deploy_manifests import DEPLOY, TOP

SCRIPTS = TOP / "cluster" / "slurm"
BATCH = sorted(SCRIPTS.glob("*.sbatch"))


def shellcheck(*paths: Path) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is absent: no script was linted")
    command = [found, "--external-sources", "--source-path=SCRIPTDIR", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_linter_finds_nothing() -> None:
    done = shellcheck(*BATCH, SCRIPTS / "ray_job.sh", DEPLOY / "base" / "run.sh")
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_linter_catches_a_planted_error(tmp_path: Path) -> None:
    text = (SCRIPTS / "cryoseg.sbatch").read_text(encoding="utf-8")
    path = tmp_path / "cryoseg.sbatch"
    path.write_text(text.replace('"$settings"', "$settings"), encoding="utf-8")
    shutil.copy(SCRIPTS / "ray_job.sh", tmp_path)
    assert "SC2086" in shellcheck(path).stdout


def header(path: Path) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("path", BATCH, ids=lambda p: p.stem)
def test_every_script_can_be_warned_and_queued_again(path: Path) -> None:
    options = header(path)
    assert "requeue" in options
    assert re.fullmatch(r"B:TERM@\d+", options["signal"])
    assert options["open-mode"] == "append", "a second start would wipe the log of the first"
    assert re.fullmatch(r"[\d:-]+", options["time"])
    assert "mem" in options
    text = path.read_text(encoding="utf-8")
    assert "run_requeueable" in text
    assert ("symmetric-run" in text) == ("exclusive" in options), "symmetric-run ends the Ray of every job on its nodes"


class Stage:
    """A folder of stand-ins that a shell finds first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls.log"
        for name in ("scontrol", "squeue", "cryoseg"):
            self.stand_in(name, "")

    def stand_in(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{self.log}"\n{body}\n', encoding="utf-8")
        path.chmod(0o755)

    def start(self, script: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "41234",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_TMPDIR": str(self.folder),
            **variables,
        }
        text = f"set -euo pipefail\nsource {SCRIPTS / 'ray_job.sh'}\noptions=()\n{script}"
        return subprocess.Popen(
            ["bash", "-c", text], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, script: str, **variables: str) -> tuple[int, str]:
        started = self.start(script, **variables)
        out, _ = started.communicate(timeout=30)
        return started.returncode, out

    def calls(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (3, 0), (137, 137)])
def test_a_map_with_something_set_aside_is_no_failure(stage: Stage, code: int, expected: int) -> None:
    got, out = stage.run(f"prepare_ray; run_requeueable bash -c 'exit {code}'")
    assert got == expected
    assert ("set aside" in out) == (code == 3)
    assert "requeue" not in stage.calls()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_warning_ends_the_run_and_queues_the_job_again(stage: Stage, stubborn: bool) -> None:
    # A driver that takes a moment to end, or ends well in spite of the warning.
    trap = "trap 'sleep 0.3; exit 0' TERM" if stubborn else ""
    stage.stand_in("driver", f"{trap}\ntouch {stage.folder}/up\nwhile true; do sleep 0.05; done")
    command = "prepare_ray; run_requeueable driver"
    started = stage.start(command)
    deadline = time.monotonic() + 20.0
    while not (stage.folder / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    out, _ = started.communicate(timeout=20)
    assert started.returncode == 0
    assert "goes back to the queue" in out
    assert "scontrol requeue 41234" in stage.calls()


def test_every_job_draws_a_token_of_its_own(stage: Stage) -> None:
    script = 'prepare_ray; echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $RAY_TMPDIR $port ${RAY_ADDRESS:-none}"'
    first, second = (stage.run(script, RAY_ADDRESS="10.0.0.1:6379", SLURM_TMPDIR="/tmp")[1].split() for _ in range(2))
    assert first[0] == "token"
    assert re.fullmatch(r"[0-9a-f]{64}", first[1])
    assert first[1] != second[1]
    assert first[2:] == ["/tmp/cryoseg-41234", str(20000 + 41234 % 20000), "none"]


def test_a_long_scratch_path_does_not_break_sockets(stage: Stage) -> None:
    _, out = stage.run('prepare_ray; echo "$RAY_TMPDIR"', SLURM_TMPDIR="/scratch/" + "x" * 80)
    assert out.strip() == "/tmp/cryoseg-41234"


def test_a_scratch_folder_that_somebody_laid_out_is_refused(stage: Stage, tmp_path: Path) -> None:
    code, out = stage.run('prepare_ray; stat -c %a "$RAY_TMPDIR"', SLURM_TMPDIR="/tmp", SLURM_JOB_ID="41235")
    assert (code, out.strip()) == (0, "700")
    Path("/tmp/cryoseg-41235").rmdir()
    trap = Path("/tmp/cryoseg-41236")
    trap.symlink_to(tmp_path)
    try:
        code, out = stage.run("prepare_ray; echo started", SLURM_TMPDIR="/tmp", SLURM_JOB_ID="41236")
    finally:
        trap.unlink()
    assert code == 2
    assert "a link" in out
    assert "started" not in out


def test_a_token_is_never_on_a_command_line() -> None:
    for path in (*BATCH, SCRIPTS / "ray_job.sh"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"--\S*\s+\S*RAY_AUTH_TOKEN|echo.*RAY_AUTH_TOKEN", line)


@pytest.mark.parametrize(
    ("gpus", "cores", "expected"),
    [
        ("0", "16", ""),
        ("4", "64", "--set engine.gpus_per_worker=1 --set engine.cpus_per_worker=16"),
        ("8", "4", "--set engine.gpus_per_worker=1 --set engine.cpus_per_worker=1"),
    ],
)
def test_each_gpu_gets_a_worker_and_its_share_of_cores(stage: Stage, gpus: str, cores: str, expected: str) -> None:
    script = f'prepare_ray; add_gpu_options {cores}; echo "${{options[*]}}"'
    assert stage.run(script, SLURM_GPUS_ON_NODE=gpus) == (0, expected + "\n")


def test_a_run_on_whole_nodes_wants_no_company(stage: Stage) -> None:
    stage.stand_in("squeue", "echo 41234")
    assert stage.run("refuse_company; echo alone")[1] == "alone\n"
    stage.stand_in("squeue", "echo 41234; echo 777")
    code, out = stage.run("refuse_company; echo alone")
    assert code == 2
    assert "777" in out
    assert "shared.sbatch" in out


def test_one_node_stays_on_loopback_and_many_do_not(stage: Stage) -> None:
    assert stage.run("own_address", SLURM_JOB_NUM_NODES="1") == (0, "127.0.0.1\n")
    stage.stand_in("hostname", "echo '127.0.1.1 fe80::1 10.1.2.3 10.9.9.9'")
    assert stage.run("own_address", SLURM_JOB_NUM_NODES="2") == (0, "10.1.2.3\n")
    stage.stand_in("hostname", "echo '127.0.1.1 fe80::1'")
    code, out = stage.run("address=$(own_address):1; echo $address", SLURM_JOB_NUM_NODES="2")
    assert code == 2
    assert "no address" in out


@pytest.mark.parametrize(
    ("line", "says"),
    [("settings.toml project", "a tab"), ("", "a tab"), ("nosuch.toml\tproject", "expected a file of settings")],
)
def test_a_list_of_data_sets_is_checked(stage: Stage, line: str, says: str) -> None:
    (stage.folder / "sets.tsv").write_text(line + "\n", encoding="utf-8")
    script = f"CRYOSEG_SLURM={SCRIPTS} bash {SCRIPTS / 'array.sbatch'} {stage.folder / 'sets.tsv'}"
    code, out = stage.run(script, SLURM_ARRAY_TASK_ID="1", SLURM_CPUS_PER_TASK="2")
    assert code == 2
    assert says in out
    assert "cryoseg run" not in stage.calls()


def test_an_array_task_runs_its_line(stage: Stage) -> None:
    settings = stage.folder / "settings of two.toml"
    settings.write_text("", encoding="utf-8")
    (stage.folder / "sets.tsv").write_text(f"other.toml\tother\n{settings}\t/data/two\n", encoding="utf-8")
    script = (
        f"CRYOSEG_SLURM={SCRIPTS} bash {SCRIPTS / 'array.sbatch'} {stage.folder / 'sets.tsv'} --set ctf.tile_size=256"
    )
    code, out = stage.run(script, SLURM_ARRAY_TASK_ID="2", SLURM_CPUS_PER_TASK="4")
    assert code == 0, out
    expected = f"cryoseg run --config {settings} --project /data/two --workers 4 --set ctf.tile_size=256"
    assert expected in stage.calls()


def test_the_job_of_kubernetes_treats_exit_codes_alike(stage: Stage) -> None:
    for code, expected in ((0, 0), (1, 1), (2, 2), (3, 0)):
        stage.stand_in("cryoseg", f"exit {code}")
        done = stage.run(f"bash {DEPLOY / 'base' / 'run.sh'}", CRYOSEG_PROJECT="/data/p")
        assert done[0] == expected
    assert "cryoseg run --config /etc/cryoseg/cryoseg.toml --project /data/p" in stage.calls()
