"""The profiles of ``cluster/``: settings that are taken, scripts that do what they say, Dask's run for real."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import dask

# Before any of its settings is changed for a while: changing back would take away the defaults that it brings.
import distributed  # noqa: F401
import numpy as np
import pytest
import yaml
from deploy_manifests import TOP
from test_slurm_scripts import shellcheck

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.pipeline.config import build_settings, merge
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.store.project import Project
from tests.runtime.engine_stages import Noise, folds

CLUSTER = TOP / "cluster"
PROFILES = sorted(CLUSTER.rglob("*.toml"))
SCRIPTS = sorted(p for p in CLUSTER.rglob("*.sh") if p.parent.name != "slurm")
NEEDED = {"data": {"pixel_size": 1.0, "voltage": 300, "spherical_aberration": 2.7}}
DASK_METRICS = re.compile(r"dask_scheduler_[a-z_]+")


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.parent.name)
def test_settings_are_taken(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    held = tomllib.loads(text)
    assert held
    built = build_settings(merge(NEEDED, held)).model_dump()
    for section, values in held.items():
        assert values.items() <= built[section].items()
    assert text.startswith("#")


def test_scripts_pass_the_linter_and_the_shell() -> None:
    assert {p.parent.name for p in SCRIPTS} == {"ray", "dask", "storage"}
    done = shellcheck(*SCRIPTS)
    assert (done.stdout, done.returncode) == ("", 0)
    for path in SCRIPTS:
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_ray_takes_the_cluster_file(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (CLUSTER / "ray" / "on-premises.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    validate_config(prepare_config(yaml.safe_load(text)))
    with pytest.raises(Exception, match="head_start"):
        validate_config(prepare_config({**config, "head_start": []}))
    for source in config["file_mounts"].values():
        assert source.startswith("~") or (TOP / source).is_file()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "CRYOSEG_TOKEN_FILE=/home/cryoseg/ray-token" in commands[-1]
    # Without these the head starts no worker.
    assert "--autoscaling-config=" in config["head_start_ray_commands"][-1]
    assert "RAY_enable_autoscaler_v2=0" in config["head_start_ray_commands"][-1]


class Stage:
    """A folder of stand-ins that a shell finds first; they write down how they were called."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        for name in names:
            path = folder / name
            body = f'echo "{name} $*" >> {folder}/calls\nenv | grep -E "^(RAY|DASK|NUMBA)" >> {folder}/calls\nexit 0\n'
            path.write_text(f"#!/usr/bin/env bash\n{body}")
            path.chmod(0o755)

    def run(self, *command: str | Path, **variables: str) -> tuple[int, str]:
        environment = {"PATH": f"{self.folder}:{os.environ['PATH']}", "HOME": str(self.folder), **variables}
        done = subprocess.run(
            list(map(str, command)), env=environment, cwd=self.folder, capture_output=True, text=True, timeout=30
        )
        return done.returncode, done.stdout + done.stderr

    def calls(self) -> str:
        path = self.folder / "calls"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("0" * 64)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("role", "says"),
    [(("head",), "ray start --head --port 6379 --num-cpus 0"), (("worker", "n0"), "ray start --address n0:6379 ")],
)
def test_a_ray_node_starts_with_the_token_and_known_ports(
    tmp_path: Path, token: Path, role: tuple[str, ...], says: str
) -> None:
    stage = Stage(tmp_path, "ray")
    script = CLUSTER / "ray" / "node.sh"
    scratch = Path(f"/tmp/cs{os.getpid()}")
    given = {
        "CRYOSEG_TOKEN_FILE": str(token),
        "CRYOSEG_NODE_ADDRESS": "10.1.2.3",
        "RAY_AUTH_TOKEN": "other",
        "CRYOSEG_SCRATCH": str(scratch),
        "CRYOSEG_WAIT": "0",
    }
    assert stage.run("bash", script, *role, **given) == (0, "")
    calls = stage.calls()
    assert says in calls
    assert "--node-ip-address 10.1.2.3" in calls
    assert "RAY_AUTH_MODE=token" in calls
    assert f"RAY_AUTH_TOKEN_PATH={token}" in calls
    assert "RAY_AUTH_TOKEN=" not in calls
    assert ("--dashboard-host 127.0.0.1" in calls) == (role[0] == "head")
    shutil.rmtree(scratch)
    token.chmod(0o644)
    code, out = stage.run("bash", script, *role, **given)
    assert code == 2
    assert "chmod 600" in out
    token.write_text("")
    assert stage.run("bash", script, *role, **given)[0] == 2
    assert stage.run("bash", script, "both", **given)[0] == 2


def test_a_worker_that_is_up_before_its_head_waits_for_it(tmp_path: Path, token: Path) -> None:
    stage, scratch = Stage(tmp_path, "ray"), Path(f"/tmp/cw{os.getpid()}")
    given = {"CRYOSEG_TOKEN_FILE": str(token), "CRYOSEG_NODE_ADDRESS": "10.1.2.3", "CRYOSEG_SCRATCH": str(scratch)}
    head, early = socket.socket(), []
    head.bind(("127.0.0.1", 0))

    def listen() -> None:
        early.append(stage.calls())
        head.listen()

    threading.Timer(1.5, listen).start()
    with head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert stage.run("bash", CLUSTER / "ray" / "node.sh", "worker", address, **given) == (0, "")
    assert early == [""]
    assert f"ray start --address {address} " in stage.calls()
    shutil.rmtree(scratch)


def test_stop_ends_what_the_file_started_and_no_other_ray(tmp_path: Path, token: Path) -> None:
    stage, scratch = Stage(tmp_path), Path(f"/tmp/ct{os.getpid()}")
    ray, script = tmp_path / "ray", CLUSTER / "ray" / "node.sh"
    ray.write_text("#!/usr/bin/env bash\nsleep 60 &\nwait\n")
    ray.chmod(0o755)
    given = {"CRYOSEG_TOKEN_FILE": str(token), "CRYOSEG_NODE_ADDRESS": "10.1.2.3", "CRYOSEG_SCRATCH": str(scratch)}
    assert stage.run("bash", script, "stop", **given) == (0, "")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **given}
    ours = subprocess.Popen(["bash", script, "head"], env=environment, start_new_session=True)
    other = subprocess.Popen([ray, "start"], env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while not (scratch / "ray" / "node.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert stage.run("bash", script, "stop", **given) == (0, "")
        assert ours.wait(5) != 0
        assert other.poll() is None
    finally:
        for process in (ours, other):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    shutil.rmtree(scratch)


def test_a_folder_on_lustre_is_striped_before_its_first_run_only(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "lfs")
    project = tmp_path / "P"
    assert stage.run(CLUSTER / "storage" / "lustre.sh", project)[0] == 0
    assert f"lfs setstripe --stripe-count 1 --stripe-size 4M {project}\n" in stage.calls()
    Project(project, create=True)
    code, out = stage.run(CLUSTER / "storage" / "lustre.sh", project)
    assert code == 2
    assert "has data already" in out


def test_scratch_goes_to_the_local_disk(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "ray")
    script = f"source {CLUSTER / 'storage' / 'local-nvme.sh'} {tmp_path} && ray"
    assert stage.run("bash", "-euc", script) == (0, "")
    calls = stage.calls()
    assert f"NUMBA_CACHE_DIR={tmp_path}/cryoseg-" in calls
    # Sockets would not fit below a path of this length.
    assert re.search(r"RAY_TMPDIR=/tmp/cryoseg-ray-\w+$", calls, re.MULTILINE)
    assert stage.run("bash", "-euc", script.replace(str(tmp_path) + " ", "/none "))[0] != 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def dask_cluster(tmp_path: Path) -> Iterator[tuple[Path, Path, int]]:
    """Scheduler file, folder of the configuration and port of the pages of a cluster that the scripts started."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is absent: Dask was not run with certificates")
    scripts, keys, file = CLUSTER / "dask", tmp_path / "keys", tmp_path / "scheduler.json"
    subprocess.run([scripts / "certificates.sh", keys], check=True, capture_output=True)
    assert (keys / "node.key").stat().st_mode & 0o77 == 0
    config = tmp_path / "config"
    config.mkdir()
    text = (scripts / "dask.yaml").read_text(encoding="utf-8")
    (config / "dask.yaml").write_text(text.replace("/etc/cryoseg/dask", str(keys)))
    pages = free_port()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(TOP),
        "DASK_CONFIG": str(config),
        "CRYOSEG_DASK_PORT": str(free_port()),
        "CRYOSEG_DASK_DASHBOARD": str(pages),
        "CRYOSEG_SCRATCH": str(tmp_path),
    }
    log = (tmp_path / "log").open("w")
    started = []
    try:
        for command in ([scripts / "scheduler.sh", file], [scripts / "worker.sh", file, "1"]):
            started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
            )
            deadline = time.monotonic() + 60
            while not file.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        assert file.exists(), (tmp_path / "log").read_text()
        yield file, config, pages
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            process.wait(30)
        log.close()


def test_a_site_that_runs_dask_sums_with_certificates_alone(
    dask_cluster: tuple[Path, Path, int], tmp_path: Path
) -> None:
    file, config, pages = dask_cluster
    root, made = tmp_path / "P", tmp_path / "made"
    Project(root, create=True)
    made.mkdir()
    stage, groups = Noise(str(made)), {"a": folds(5)}
    comm = yaml.safe_load((config / "dask.yaml").read_text(encoding="utf-8"))["distributed"]["comm"]
    # What the driver's Dask takes from the file.
    given = {"require-encryption": comm["require-encryption"], **{f"tls.{name}": v for name, v in comm["tls"].items()}}
    with dask.config.set({f"distributed.comm.{name}": value for name, value in given.items()}):
        sums = Accumulation(root, address=str(file)).sums(stage, groups)["a"]
    np.testing.assert_array_equal(sums, Accumulation(root).sums(stage, groups)["a"])
    # What the dashboards ask Dask for is what its scheduler says of itself.
    boards = (TOP / "deploy" / "monitoring" / "dashboards").glob("*.json")
    wanted = {name for path in boards for name in DASK_METRICS.findall(path.read_text(encoding="utf-8"))}
    with urlopen(f"http://127.0.0.1:{pages}/metrics", timeout=10) as answer:
        said = answer.read().decode()
    assert wanted
    assert all(name in said for name in wanted)
    # Who has no certificate is not let in.
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        pytest.raises(StageFailedError, match=r"(?i)lets this client in, got .*(tls|ssl|certificate)"),
    ):
        Accumulation(root, address=str(file)).sums(stage, groups)
