"""A real Prometheus scrapes a real run, evaluates the real rules, and answers every question of the dashboards."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from test_monitoring_files import expressions

from cryoseg_dist.cli.session import open_session
from cryoseg_dist.cli.simulate import write_micrographs
from cryoseg_dist.errors import BadInputError
from cryoseg_dist.monitor.prometheus import Metrics
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.run import run_pipeline
from cryoseg_dist.runtime.events import Figures, IterationFinished, StageStarted, UnitFinished, UnitRetried
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.simulate.micrographs import SimulateSettings
from cryoseg_dist.simulate.specimen import made_up

RULES = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "rules.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Ports: of a running Prometheus, and the one that it scrapes every second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is absent: no run was scraped (Debian: prometheus)")
    port, target = free_port(), free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{RULES}]\n"
        f"scrape_configs: [{{job_name: cryoseg, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
    )
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield port, target
    process.terminate()
    process.wait(timeout=30)


def ask(port: int, path: str, **query: str) -> Any:
    with urlopen(f"http://127.0.0.1:{port}/api/v1/{path}?{urlencode(query)}", timeout=5) as answer:
        return json.load(answer)["data"]


def values(port: int, query: str) -> dict[tuple[str, ...], float]:
    found = ask(port, "query", query=query)["result"]
    return {
        tuple(v for k, v in sorted(r["metric"].items()) if k in ("stage", "outcome")): float(r["value"][1])
        for r in found
    }


def eventually(port: int, query: str, expected: dict[tuple[str, ...], float]) -> None:
    found: Any = None
    for _ in range(60):
        try:
            found = values(port, query)
        except OSError as fault:
            found = fault
        if found == expected:
            return
        time.sleep(0.5)
    pytest.fail(f"{query}: expected {expected}, got {found}")


def every_panel(port: int) -> list[str]:
    """Questions of the dashboards that stay without an answer; those about Ray and Dask need only be understood."""
    unanswered: list[str] = []
    for where, text in expressions():
        # Grafana fills in its variables, and lists the values of a label.
        query = re.sub(r"label_values\((.*), \w+\)", r"\1", text)
        query = re.sub(r"\$(job|instance)", ".+", query).replace("$__interval", "30s")
        if query == "prometheus" or not re.search(r"cryoseg_|ray_|dask_|ALERTS", query):
            assert query == "prometheus", f"{where}: {query}"
            continue
        for _ in range(60):
            # A question that is not understood is an error of the server's.
            found = ask(port, "query", query=query)["result"]
            if found or "cryoseg_" not in query or ".json" not in where:
                break
            time.sleep(0.5)
        else:
            unanswered.append(f"{where}: {query}")
    return unanswered


def test_prometheus_scrapes_a_run_and_its_resume(prometheus: tuple[int, int], tmp_path: Path) -> None:
    port, target = prometheus
    simulated = SimulateSettings(n_micrographs=3, width=320, height=320, particles=8, snr=0.3, carbon=0.0, seed=2)
    specimen = made_up(symmetry="D2", diameter=150.0, size=56, pixel_size=4.0, seed=1)
    write_micrographs(specimen, Optics(4.0, 300.0, 2.7, 0.1), simulated, tmp_path)
    folder = tmp_path / "micrographs"
    (folder / "broken.mrc").write_bytes(b"not a micrograph")
    ctf = {"min_significance": 0, "max_resolution": 100, "max_astigmatism": 100000}
    settings = build_settings(
        {
            "data": {
                "micrographs": str(folder / "*.mrc"), "pixel_size": 4.0, "voltage": 300, "spherical_aberration": 2.7
            },
            "engine": {"engine": "inline", "metrics_port": target},
            "ctf": ctf,
        }
    )  # fmt: skip
    with open_session(settings, tmp_path / "P", ["test"]) as session:
        fits = run_pipeline(session, until="ctf").fits
        # What the later stages tell, for their panels.
        session.emit(UnitRetried("pick", "pick-1", "pick/000000", 1, "worker lost (ActorDiedError)"))
        picked = {"n_candidates": 40}
        session.emit(UnitFinished("pick", "pick-1", "pick/000000", Outcome.DONE, 0.1, 9, 9, 2, "w", "", picked))
        session.emit(StageStarted("classify", "classify-1", 8, 2))
        session.emit(IterationFinished("refine", 3, {"resolution": 9.5}))
        session.emit(Figures({"picks": 40.0, "particles": 30.0, "resolution": 9.1}))
        unanswered = every_panel(port)
    assert unanswered == []
    assert fits is not None
    done = {("done", "ingest"): 3, ("set_aside", "ingest"): 1, ("done", "ctf"): 3, ("done", "pick"): 1}
    eventually(port, "cryoseg_units_total", done)
    eventually(port, "cryoseg_unit_duration_seconds_count", {("ingest",): 4, ("ctf",): 3, ("pick",): 1})
    eventually(port, "cryoseg_micrographs_accepted", {(): len(fits.accepted)})
    eventually(port, "cryoseg_run_end_timestamp_seconds > bool cryoseg_run_start_timestamp_seconds", {(): 1})
    # Bad input beyond a fifth: the alert waits for its ten minutes.
    states: dict[tuple[str, str], str] = {}
    for _ in range(60):
        labelled = [(a["labels"], a["state"]) for a in ask(port, "alerts")["alerts"]]
        states = {(labels["alertname"], labels.get("stage", "")): state for labels, state in labelled}
        if ("CryosegInputSetAside", "ingest") in states:
            break
        time.sleep(0.5)
    assert states[("CryosegInputSetAside", "ingest")] == "pending"
    assert not {"CryosegNoProgress", "CryosegQuarantine", "CryosegWorkersDie"} & {name for name, _ in states}
    health = {r["name"]: r["health"] for g in ask(port, "rules")["groups"] for r in g["rules"]}
    assert len(health) == 8
    assert set(health.values()) == {"ok"}
    engine = settings.engine.model_copy(update={"metrics_port": free_port()})
    with open_session(settings.model_copy(update={"engine": engine}), tmp_path / "P", ["test"]) as session:
        run_pipeline(session, until="ctf")
    with urlopen(f"http://127.0.0.1:{engine.metrics_port}/metrics", timeout=5) as answer:
        again = answer.read().decode()
    assert 'cryoseg_units_total{outcome="skipped",stage="ingest"} 4.0' in again
    assert 'cryoseg_units_total{outcome="skipped",stage="ctf"} 3.0' in again
    assert 'outcome="done"' not in again


def test_a_pushgateway_keeps_the_figures_of_a_job_that_is_over(tmp_path: Path) -> None:
    program = shutil.which("prometheus-pushgateway")
    if program is None:
        pytest.skip("prometheus-pushgateway is absent: nothing was pushed (Debian: prometheus-pushgateway)")
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--web.listen-address={address}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = Metrics()
    metrics(UnitFinished("ctf", "ctf-1", "a", Outcome.DONE, 0.5, 100, 10, 1, "w"))
    try:
        for _ in range(100):
            try:
                metrics.push(f"http://{address}", "cryoseg_P")
                break
            except BadInputError:
                time.sleep(0.1)
        with urlopen(f"http://{address}/metrics", timeout=5) as answer:
            held = answer.read().decode()
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert 'cryoseg_units_total{instance="",job="cryoseg_P",outcome="done",stage="ctf"} 1' in held
