"""Where a run stands, followed from a log that grows."""

import json
from pathlib import Path

from cryoseg_dist.monitor.progress import RunProgress
from cryoseg_dist.runtime.events import (
    Figures,
    IterationFinished,
    JsonLog,
    StageFinished,
    StageStarted,
    UnitFinished,
    UnitRetried,
)
from cryoseg_dist.schema.work import Outcome


def finished(key: str, outcome: Outcome, reason: str = "") -> UnitFinished:
    return UnitFinished("ctf", "ctf-1", key, outcome, 0.5, 100, 10, 1, "w", reason)


def test_stages_failures_and_time_left(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    progress = RunProgress(path)
    progress.update()
    assert progress.stages == {}
    log = JsonLog(path)
    log(StageStarted("ctf", "ctf-1", 10, 2))
    log(finished("a", Outcome.DONE))
    progress.update()
    log(UnitRetried("ctf", "ctf-1", "b", 1, "worker lost"))
    log(finished("b", Outcome.QUARANTINED, "again"))
    log(UnitFinished("abinitio", "abinitio-7/it003", "c", Outcome.DONE, 0.5, 1, 1, 1, "w"))
    log(IterationFinished("refine", 1, {"resolution": 12.0}))
    log(IterationFinished("refine", 2, {"resolution": 9.0}))
    log(Figures({"particles": 7.0}))
    progress.update()
    ctf = progress.stages["ctf"]
    assert (ctf.run, ctf.total, ctf.done, dict(ctf.ended)) == ("ctf-1", 10, 4, {"done": 1, "quarantined": 1})
    # Two units in four seconds: six more take twelve.
    assert ctf.seconds_left(ctf.started + 4.0) == 12.0
    assert [(f.unit, f.outcome, f.message) for f in progress.failures] == [
        ("b", "retried", "worker lost"),
        ("b", "quarantined", "again"),
    ]
    assert (progress.stages["abinitio"].run, progress.stages["abinitio"].done) == ("abinitio-7", 1)
    assert progress.stages["refine"].run == ""
    assert progress.stages["refine"].history == [(1, 12.0), (2, 9.0)]
    assert progress.figures == {"particles": 7.0}
    log(StageFinished("ctf", "ctf-1", {"done": 9, "quarantined": 1}, 3.0))
    progress.update()
    assert ctf.seconds_left(ctf.started + 4.0) is None


def test_a_line_that_is_half_written_waits_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = JsonLog(path)
    log(StageStarted("ctf", "ctf-1", 10, 0))
    text = path.read_text()
    path.write_text('not json\n{"event": "Strange"}\n' + text[:20])
    progress = RunProgress(path)
    progress.update()
    assert progress.stages == {}
    with path.open("a") as stream:
        stream.write(text[20:])
    progress.update()
    assert progress.stages["ctf"].total == 10
    path.write_text(json.dumps({"time": 1.0, "event": "StageStarted", "stage": "x", "total": 1, "done": 0}) + "\n")
    progress.update()
    assert list(progress.stages) == ["x"]
