"""The live page of a project: while there is little, after a run, and for nobody else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.cli.dashboard import Dashboard, make_server
from cryoseg_dist.cli.session import open_session
from cryoseg_dist.cli.status import describe
from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.run import run_pipeline


@contextmanager
def served(root: Path) -> Iterator[HTTPConnection]:
    with make_server(root, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        try:
            yield connection
        finally:
            connection.close()
            server.shutdown()
            thread.join()


def get(connection: HTTPConnection, path: str, host: str | None = None) -> tuple[int, str, str]:
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers["Content-Security-Policy"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        write_stack(folder / f"{name}.mrc", rng.normal(500, 30, (200, 220)).astype(np.float32), 4.0)
    (folder / "<img src=x>.mrc").write_bytes(b"not a micrograph")
    optics = {"pixel_size": 4.0, "voltage": 300, "spherical_aberration": 2.7}
    settings = build_settings(
        {"data": {"micrographs": str(folder / "*.mrc"), **optics}, "engine": {"engine": "inline"}}
    )
    with open_session(settings, folder / "P", ["test"]) as session:
        run_pipeline(session, until="ingest")
    return folder / "P"


def test_the_page_asks_for_contents_and_fetches_nothing_from_elsewhere(project: Path) -> None:
    with served(project) as connection:
        code, page, policy = get(connection, "/")
        assert code == 200
        assert "http" not in page.lower().replace("http-equiv", "")
        assert "default-src 'none'" in policy
        assert f'nonce="{policy.partition("nonce-")[2].partition(chr(39))[0]}"' in page
        code, _, policy = get(connection, "/contents")
        assert code == 200
        assert "script-src" not in policy
        assert get(connection, "/../settings.json")[0] == 404


def test_contents_show_progress_micrographs_and_failures_escaped(project: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in project.rglob("*") if p.is_file()}
    text = Dashboard(project).page()
    assert "3 of 3 (1 set aside)" in text
    assert text.count('<svg class="picture"') == 2
    assert "one.mrc" in text
    assert "&lt;img src=x&gt;.mrc" in text
    assert "<img src=x>" not in text
    # A reader beside a driver leaves every file as it is.
    assert {p: p.stat().st_mtime_ns for p in project.rglob("*") if p.is_file()} == before


def test_a_folder_before_its_first_event_has_a_page(tmp_path: Path) -> None:
    text = Dashboard(tmp_path).page()
    assert "no event yet" in text
    assert "No stage has started yet." in text


def test_a_page_of_another_site_cannot_read_it(project: Path) -> None:
    with served(project) as connection:
        assert get(connection, "/contents", "evil.example")[0] == 403
        assert get(connection, "/contents", f"localhost:{connection.port}")[0] == 200


def test_bad_places_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="a project folder"):
        make_server(tmp_path / "none", "127.0.0.1", 0)
    with make_server(tmp_path, "127.0.0.1", 0) as server, pytest.raises(BadInputError, match="a free port"):
        make_server(tmp_path, "127.0.0.1", server.server_port)


def test_status_tells_of_stages_and_failures(project: Path) -> None:
    lines = describe(project)
    assert lines[0].startswith("ingest       finished: 2 done, 1 set aside, ")
    assert lines[1].startswith("set aside    ingest/000000: ")
    with pytest.raises(BadInputError, match="a project that was run"):
        describe(project.parent)
