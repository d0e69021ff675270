"""Events become metrics that a scraper reads."""

import socket
from urllib.request import urlopen

from cryoseg_dist.monitor.prometheus import Metrics
from cryoseg_dist.runtime.events import IterationFinished, StageFinished, StageStarted, UnitFinished, UnitRetried
from cryoseg_dist.schema.work import Outcome


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
        'cryoseg_bytes_total{direction="read",stage="ctf"} 300.0',
        'cryoseg_stage_units_done{stage="ctf"} 5.0',
        'cryoseg_stage_running{stage="ctf"} 1.0',
        'cryoseg_iteration{stage="refine"} 7.0',
        'cryoseg_resolution_angstrom{stage="refine"} 8.5',
        'cryoseg_unit_seconds_count{stage="ctf"} 3.0',
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
