"""An embedded Ray takes work from nobody but the run that started it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime import ray_token
from cryoseg_dist.runtime.ray_token import draw_token, forget_token

BOARDS = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "dashboards"
# Machines without a GPU say nothing of one, and clusters whose first actor is young nothing of actors.
RAY_METRICS = re.compile(r"\bray_(?!node_g|actors)[a-z_]+")
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", ray.get(ray.remote(lambda: 1).remote()))
"""


def test_a_token_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    draw_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "theirs"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setitem(sys.modules, "ray", object())
    draw_token()
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.delitem(sys.modules, "ray")
    draw_token()
    assert re.fullmatch("[0-9a-f]{64}", os.environ["RAY_AUTH_TOKEN"])
    # A cluster that is joined has a lock of its own; one that was given is kept for it.
    forget_token()
    assert not any(name.startswith("RAY_AUTH") for name in os.environ)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    forget_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "theirs"


def test_a_token_in_a_file_stays_where_none_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_token, "_drawn", {})
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/etc/ray-token")
    draw_token()
    forget_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_cluster_that_does_not_let_us_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryoseg_dist.runtime import ray_start

    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray_start.ray, "init", refuse)
    with pytest.raises(StageFailedError, match=r"cluster at head:6379 .*Failed to connect.*RAY_AUTH_TOKEN_PATH"):
        ray_start.start_ray("head:6379")


@pytest.mark.ray
def test_a_stranger_does_not_join_and_metrics_are_those_of_the_dashboards(ray_session: None) -> None:
    import ray

    context = ray.get_runtime_context()
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, context.gcs_address],
        env={**plain, "RAY_AUTH_MODE": "disabled", "RAY_NUM_REDIS_GET_RETRIES": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "joined" not in done.stdout
    # Refused, not merely late.
    assert "InvalidAuthToken" in done.stderr
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    [node] = ray.nodes()
    wanted = {name for path in BOARDS.glob("*.json") for name in RAY_METRICS.findall(path.read_text(encoding="utf-8"))}
    assert len(wanted) > 3
    said = ""
    for _ in range(40):
        with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            said = answer.read().decode()
        if all(name in said for name in wanted):
            break
        time.sleep(0.5)
    assert {name for name in wanted if name not in said} == set()
