"""Engines end in the reverse of the order in which they were started: the first one may have started Ray."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cryoseg_dist.pipeline import session as sessions
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.runtime import dask_on_ray
from tests.runtime.engine_stages import Squares


@pytest.mark.parametrize("first", ["sums", "units"])
def test_what_was_started_first_ends_last(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    @contextmanager
    def workers(*_: object, **__: object):
        yield SimpleNamespace(address="tls://127.0.0.1:1", security=None, workers=1)
        ended.append("sums")

    engine = SimpleNamespace(map=lambda *_: iter(()), close=lambda: ended.append("units"), in_flight=0)
    monkeypatch.setattr(dask_on_ray, "DaskOnRay", workers)
    monkeypatch.setattr(sessions, "build_executor", lambda *_: engine)
    optics = {"pixel_size": 1, "voltage": 300, "spherical_aberration": 2.7}
    settings = build_settings({"data": optics, "engine": {"dask_workers": 1}})
    with sessions.open_session(settings, tmp_path, [], []) as session:
        starts = {
            "sums": session.accumulation,
            "units": lambda: list(session.runner.executor.map(Squares("", {}), [])),
        }
        starts.pop(first)()
        for start in starts.values():
            start()
    assert ended[-1] == first
    assert len(ended) == 2
