"""The image file: rules, a linter, its own commands, and the health check against real servers."""

import http.server
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from deploy_image import faults, instructions
from deploy_manifests import DEPLOY, TOP

from cryoseg_dist.monitor.prometheus import Metrics
from cryoseg_dist.runtime.events import StageStarted, UnitFinished
from cryoseg_dist.schema.work import Outcome

TEXT = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "hadolint"
    found = str(program) if program.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is absent: the image file was not linted")
    return subprocess.run([found, "-"], input=text, capture_output=True, text=True, check=False, timeout=60)


def test_the_image_file_keeps_the_rules() -> None:
    assert list(faults(TEXT)) == []


def test_the_linter_finds_nothing() -> None:
    done = hadolint(TEXT)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("python:3.11.14-slim-bookworm", "python:latest", "not pinned"),
        ("python:3.11.14-slim-bookworm", "python", "not pinned"),
        ("USER 10001:10001\n", "", "runs as root"),
        ("USER 10001:10001", "USER root", "runs as root"),
        ("USER 10001:10001", "USER 0:0", "runs as 0"),
        ("HEALTHCHECK", "LABEL", "health check"),
        ('ENTRYPOINT ["cryoseg"]', "ENTRYPOINT cryoseg", "shell"),
        ("ARG PIP_INDEX_URL", "ARG PIP_INDEX_URL=https://example.org/simple", "registry"),
        ("COPY --from=build", "ENV API_TOKEN=abc\nCOPY --from=build", "secret"),
        ("COPY cryoseg_dist ./cryoseg_dist", "COPY . .", "lies around"),
        ("COPY constraints.txt ./", "ADD constraints.txt ./", "ADD"),
        ("--constraint /tmp/constraints.txt torch", "torch", "without constraints"),
        ("    HOME=/tmp \\\n", "", "HOME"),
        ("COPY --from=build /opt/cryoseg /opt/cryoseg", "COPY cryoseg_dist /opt/cryoseg", "builds is part"),
        ("USER 10001:10001\n", "RUN pip install --constraint c x\nUSER 10001:10001\n", "installs packages"),
    ],
)
def test_a_planted_error_is_caught(old: str, new: str, says: str) -> None:
    assert old in TEXT
    found = list(faults(TEXT.replace(old, new)))
    assert any(says in fault for fault in found), found


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("ARG BASE=python:3.11.14-slim-bookworm\n\nFROM ${BASE} AS build", "FROM python AS build", "DL3006"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("RUN python -m venv /opt/cryoseg", "RUN cd /opt && python -m venv cryoseg", "DL3003"),
        ("RUN python -m venv /opt/cryoseg", "RUN pip install numpy", "DL3013"),
        ('CMD ["--help"]', "CMD --help", "DL3025"),
    ],
)
def test_the_linter_catches_a_planted_error(old: str, new: str, code: str) -> None:
    assert old in TEXT
    done = hadolint(TEXT.replace(old, new))
    assert done.returncode == 1
    assert code in done.stdout


def test_the_variants_install_the_same_versions(tmp_path: Path) -> None:
    """The shell that the image file runs, on the constraints as they are."""
    script = next(rest for word, rest in instructions(TEXT) if word == "RUN" and "VARIANT" in rest)
    choice = script[: script.index("esac") + 4].replace("/tmp/", f"{tmp_path}/")
    held = {}
    for variant in ("cpu", "cuda", "rocm"):
        command = f"VARIANT={variant}; {choice}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=TOP, capture_output=True, text=True, check=False
        )
        assert done.returncode == (2 if variant == "rocm" else 0), done.stderr
        held[variant] = (tmp_path / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert held["cpu"] == (TOP / "constraints.txt").read_text(encoding="utf-8").splitlines()
    differing = [(a, b) for a, b in zip(held["cpu"], held["cuda"], strict=True) if a != b]
    assert len(differing) == 1
    assert differing[0][0] == differing[0][1] + "+cpu"
    assert differing[0][1].startswith("torch==")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    taken = set()
    for word, rest in instructions(TEXT):
        if word == "COPY" and "--from" not in rest:
            taken |= set(rest.split()[:-1])
    assert taken == allowed
    assert all((TOP / name).exists() for name in taken)


def test_tags_agree_with_the_package() -> None:
    from cryoseg_dist import __version__

    assert set(re.findall(r"--tag cryoseg:([0-9.]+)", TEXT)) == {__version__}
    pinned = re.search(r"python:(3\.\d+)", TEXT)
    assert pinned is not None
    assert f"lib/python{pinned.group(1)}/" in TEXT


@pytest.fixture(scope="module")
def health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthcheck", DEPLOY / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_driver_that_works_is_well(health: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics()
    port = metrics.serve(0)
    environment = {"CRYOSEG_ENGINE__METRICS_PORT": str(port), "CRYOSEG_ENGINE__UNIT_DEADLINE": "10"}
    assert health.main(environment) == 0, "before the first unit"
    metrics(StageStarted("ctf", "run", 10, 0))
    metrics(UnitFinished("ctf", "run", "ctf/0", Outcome.DONE, 1.0, 1, 1, 1, "w", "", {}))
    assert health.main(environment) == 0
    assert capsys.readouterr().out.endswith("well\n")
    assert health.driver_fault(port, 90.0, time.time() + 80.0) is None
    assert "91 s" in str(health.driver_fault(port, 90.0, time.time() + 91.4))


def test_a_driver_that_does_not_answer_is_not(health: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as taken:
        port = taken.server_port
    assert health.main({"CRYOSEG_ENGINE__METRICS_PORT": str(port)}) == 1
    assert capsys.readouterr().out.startswith("driver: ")


@pytest.fixture
def agent() -> Iterator[http.server.HTTPServer]:
    class Answer(http.server.BaseHTTPRequestHandler):
        body = b"success"

        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/healthz" else 404)
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_ray_node_is_as_well_as_its_agent_says(health: ModuleType, agent: http.server.HTTPServer) -> None:
    environment = {"CRYOSEG_RAY_AGENT_PORT": str(agent.server_port)}
    assert health.main(environment) == 0
    agent.RequestHandlerClass.body = b"raylet is gone"
    assert health.main(environment) == 1


def test_a_short_command_needs_no_check(health: ModuleType) -> None:
    assert health.main({}) == 0
    done = subprocess.run(
        [sys.executable, DEPLOY / "healthcheck.py"], env={}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
