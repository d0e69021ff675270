"""Events become metrics that a scraper reads."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.monitor.prometheus import Metrics
from cryoseg_dist.runtime.events import (
    EventBus,
    Figures,
    IterationFinished,
    JsonLog,
    StageFinished,
    StageStarted,
    UnitFinished,
    UnitRetried,
)
from cryoseg_dist.runtime.inline import InlineExecutor
from cryoseg_dist.runtime.runner import Runner
from cryoseg_dist.schema.work import Outcome, Unit, UnitResult
from cryoseg_dist.store.project import Project


def finished(key: str, outcome: Outcome) -> UnitFinished:
    return UnitFinished("ctf", "ctf-1", key, outcome, 0.5, 100, 10, 1, "w")


def test_events_are_counted_and_served_on_loopback() -> None:
    metrics = Metrics()
    metrics(StageStarted("ctf", "ctf-1", 5, 2))
    metrics(finished("a", Outcome.DONE))
    metrics(finished("b", Outcome.DONE))
    metrics(finished("c", Outcome.SET_ASIDE))
    metrics(UnitRetried("ctf", "ctf-1", "a", 1, "lost"))
    metrics(IterationFinished("refine", 7, {"resolution": 8.5}))
    port = metrics.serve(0)
    text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    for line in (
        'cryoseg_units_total{outcome="done",stage="ctf"} 2.0',
        'cryoseg_units_total{outcome="set_aside",stage="ctf"} 1.0',
        'cryoseg_unit_retries_total{stage="ctf"} 1.0',
        'cryoseg_read_bytes_total{stage="ctf"} 300.0',
        'cryoseg_stage_units_done{stage="ctf"} 5.0',
        'cryoseg_stage_running{stage="ctf"} 1.0',
        'cryoseg_iteration{stage="refine"} 7.0',
        'cryoseg_resolution_angstrom{stage="refine"} 8.5',
        'cryoseg_unit_duration_seconds_count{stage="ctf"} 3.0',
    ):
        assert line in text
    metrics(StageFinished("ctf", "ctf-1", {"done": 4, "set_aside": 1}, 1.0))
    assert (
        'cryoseg_stage_running{stage="ctf"} 0.0'
        in urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    )
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.1", port)) == 0


def test_two_runs_in_one_process_do_not_share_counts() -> None:
    one, two = Metrics(), Metrics()
    one(finished("a", Outcome.DONE))
    name, labels = "cryoseg_units_total", {"stage": "ctf", "outcome": "done"}
    assert one.registry.get_sample_value(name, labels) == 1.0
    assert two.registry.get_sample_value(name, labels) is None


class Squares:
    """A stage without arrays; units listed in ``bad`` are set aside."""

    name = "ctf"
    shared_reads: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, bad: set[str]) -> None:
        self.bad = bad
        self.in_flight: list[int] = []
        self.executor: InlineExecutor | None = None

    def setup(self, shared: object, device: str) -> None: ...

    def compute(self, unit: Unit, inputs: object, state: object) -> UnitResult:
        if self.executor is not None:
            self.in_flight.append(self.executor.in_flight)
        if unit.key in self.bad:
            raise BadInputError(unit.key, "a number", "none")
        return UnitResult(record={"value": int(np.square(int(unit.key)))})


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_counters_after_a_resume_tell_done_from_done_before(tmp_path: Path) -> None:
    units = [Unit(str(i)) for i in range(7)]
    project = Project(tmp_path / "P", create=True)
    executor, stage = InlineExecutor(project.root), Squares({"2"})
    stage.executor = executor
    first = Metrics()
    Runner(project, executor, EventBus(first)).run(stage, "ctf-1", [], units[:4])
    assert stage.in_flight == [1, 1, 1, 1]
    assert executor.in_flight == 0
    again = Metrics()
    runner = Runner(project, executor, EventBus(again))
    runner.run(stage, "ctf-1", [], units)
    # Twice in one process: neither what it did itself nor what it skipped counts again.
    runner.run(stage, "ctf-1", [], units)
    assert value(first, "cryoseg_units_total", stage="ctf", outcome="done") == 3
    assert value(first, "cryoseg_units_total", stage="ctf", outcome="set_aside") == 1
    assert value(first, "cryoseg_units_total", stage="ctf", outcome="skipped") is None
    assert value(again, "cryoseg_units_total", stage="ctf", outcome="done") == 3
    assert value(again, "cryoseg_units_total", stage="ctf", outcome="skipped") == 4
    assert value(again, "cryoseg_units_total", stage="ctf", outcome="set_aside") is None
    assert value(again, "cryoseg_stage_units_done", stage="ctf") == 7


def test_figures_of_micrographs_and_of_the_map() -> None:
    metrics = Metrics()
    record = {"accepted": True, "defocus_u": 12000.0, "defocus_v": 11000.0, "ctf_max_resolution": 4.2}
    metrics(UnitFinished("ctf", "r", "a", Outcome.DONE, 1, 0, 0, 1, "w", "", record))
    metrics(UnitFinished("ctf", "r", "b", Outcome.DONE, 1, 0, 0, 1, "w", "", {**record, "ctf_max_resolution": None}))
    metrics(UnitFinished("pick", "p", "a", Outcome.DONE, 1, 0, 0, 1, "w", "", {"n_candidates": 117}))
    metrics(UnitRetried("pick", "p", "b", 1, "worker lost (ActorDiedError)"))
    metrics(Figures({"particles": 1429.0, "resolution": 8.9, "box": 64.0}))
    assert value(metrics, "cryoseg_micrograph_resolution_angstrom_bucket", le="4.5") == 1
    assert value(metrics, "cryoseg_micrograph_resolution_angstrom_count") == 2
    assert value(metrics, "cryoseg_micrograph_defocus_angstrom_sum") == 23000.0
    assert value(metrics, "cryoseg_micrograph_picks_sum") == 117
    assert value(metrics, "cryoseg_worker_losses_total", stage="pick") == 1
    assert value(metrics, "cryoseg_particles") == 1429
    assert value(metrics, "cryoseg_map_resolution_angstrom") == 8.9


def test_room_on_the_disk_and_the_end_of_a_run(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics(StageStarted("ctf", "ctf-1", 5, 0))
    metrics.watch(tmp_path, lambda: 3)
    free, size = value(metrics, "cryoseg_disk_free_bytes"), value(metrics, "cryoseg_disk_size_bytes")
    assert free is not None
    assert size is not None
    assert 0 < free < size
    assert value(metrics, "cryoseg_units_in_flight") == 3
    assert value(metrics, "cryoseg_run_end_timestamp_seconds") == 0
    metrics.end()
    assert value(metrics, "cryoseg_stage_running", stage="ctf") == 0
    assert value(metrics, "cryoseg_units_in_flight") == 0
    started, ended = (value(metrics, f"cryoseg_run_{w}_timestamp_seconds") for w in ("start", "end"))
    assert started is not None
    assert ended is not None
    assert ended >= started


def test_a_final_push_reaches_a_gateway() -> None:
    taken: list[tuple[str, str, bytes]] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            taken.append((self.command, self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    metrics = Metrics()
    metrics(finished("a", Outcome.DONE))
    metrics.push(f"http://127.0.0.1:{server.server_port}", "cryoseg_P")
    server.shutdown()
    server.server_close()
    [(method, path, body)] = taken
    assert (method, path) == ("PUT", "/metrics/job/cryoseg_P")
    assert b'cryoseg_units_total{outcome="done",stage="ctf"} 1.0' in body
    with pytest.raises(BadInputError, match="Pushgateway"):
        metrics.push(f"http://127.0.0.1:{server.server_port}", "cryoseg_P")


def test_a_taken_port_is_refused_in_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BadInputError, match="a free port"):
            Metrics().serve(taken.getsockname()[1])


def test_log_lines_hold_what_an_operator_filters_by_and_no_secrets(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "events.jsonl")
    reason = (
        "OSError: https://user:hunter2@s3.example/b?X-Amz-Signature=abcd1234 AWS_SECRET_ACCESS_KEY=sesame Bearer open"
    )
    log(UnitFinished("ctf", "ctf-1", "ctf/000003", Outcome.QUARANTINED, 1.5, 9, 0, 3, "node7:41", reason, {"big": 1}))
    log.close()
    line = json.loads((tmp_path / "events.jsonl").read_text())
    assert line["time"] > 1.7e9
    assert {k: line[k] for k in ("event", "stage", "run", "unit", "worker", "outcome", "seconds")} == {
        "event": "UnitFinished", "stage": "ctf", "run": "ctf-1", "unit": "ctf/000003", "worker": "node7:41",
        "outcome": "quarantined", "seconds": 1.5,
    }  # fmt: skip
    assert "record" not in line
    assert line["message"].startswith("OSError: https://***@s3.example")
    for secret in ("hunter2", "abcd1234", "sesame", "open"):
        assert secret not in line["message"].replace("example", "")
