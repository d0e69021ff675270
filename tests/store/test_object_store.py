"""Projects whose arrays lie in an object store: the same code, an outage, credentials that stay secret."""

import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import BadInputError, DamagedDataError, SettingsError, StoreUnavailableError
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.runtime.reading import read
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store import location
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.tree import tree_of
from tests.s3_server import ENVIRONMENT, S3Server

SPEC = ArraySpec("run/images", (10, 6, 7), ("p", "y", "x"), "float16", (2, 6, 7), (4, 6, 7), doc="Images")
VALUES = np.random.default_rng(0).normal(size=(10, 6, 7)).astype(np.float16)
ALL = Region(SPEC.name, (0, 0, 0), (10, 6, 7))


def made(root: Path, url: str) -> Project:
    project = Project(root, create=True, store=url)
    project.create(SPEC)
    project.write(ALL, VALUES)
    return project


def test_arrays_at_a_url_are_those_of_a_folder(s3_server: S3Server, tmp_path: Path) -> None:
    project = made(tmp_path / "P", "s3://bucket/one")
    assert not (tmp_path / "P/store.zarr").exists()
    assert "one/run/images/c/2/0/0" in s3_server.objects()
    # A worker gets the project over the network, and need not see its folder.
    sent = pickle.dumps(project)
    (tmp_path / "P").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(pickle.loads(sent).read(ALL), VALUES)
    again = Project(tmp_path / "elsewhere", create=True)
    assert again.spec(SPEC.name) == SPEC
    assert again.array_names() == [SPEC.name]
    assert [again.holds(shard) for _, shard in again.shards(ALL)] == [True] * 3
    # Another project reads its images from there.
    other = Project(tmp_path / "Q", create=True)
    foreign = Region(SPEC.name, (3, 0, 0), (8, 6, 7), str(tmp_path / "elsewhere"))
    np.testing.assert_array_equal(read(other, foreign), VALUES[3:8])
    again.remove(SPEC.name)
    assert not again.exists(SPEC.name)
    assert "one/run/images/" not in s3_server.objects()


def test_what_lies_at_a_url_is_listed_weighed_and_removed_as_in_a_folder(s3_server: S3Server, tmp_path: Path) -> None:
    made(tmp_path / "R", "s3://bucket/tree2")
    at_url = made(tmp_path / "P", "s3://bucket/tree")
    in_folder = Project(tmp_path / "Q", create=True)
    in_folder.create(SPEC)
    in_folder.write(ALL, VALUES)
    for tree in (tree_of(at_url.location), tree_of(in_folder.location)):
        assert (tree.below(""), tree.below("run"), tree.below("none")) == (["run"], ["run/images"], [])
        assert tree.size("run/images") > VALUES.nbytes
        assert tree.size("run/im") == 0
        tree.remove("run/im")
        tree.remove("run/images")
        assert tree.below("run") == []
    # Nor does a prefix that begins alike suffer.
    assert "<Key>tree/run/images/" not in s3_server.objects()
    assert "<Key>tree2/run/images/c/0/0/0" in s3_server.objects()


def test_a_prefix_holds_one_project(s3_server: S3Server, tmp_path: Path) -> None:
    made(tmp_path / "P", "s3://bucket/two")
    with pytest.raises(BadInputError, match="prefix without arrays"):
        Project(tmp_path / "Q", create=True, store="s3://bucket/two")
    with pytest.raises(BadInputError, match="Name another project"):
        Project(tmp_path / "P", create=True, store="s3://bucket/three")


def test_an_outage_is_waited_out(s3_server: S3Server, tmp_path: Path) -> None:
    project = made(tmp_path / "P", "s3://bucket/outage")
    s3_server.pause()
    threading.Timer(1.0, s3_server.resume).start()
    started = time.monotonic()
    np.testing.assert_array_equal(project.read(ALL), VALUES)
    assert time.monotonic() - started > 0.5


def test_a_store_that_stays_away_is_named_and_no_secret_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server()
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(location, "RETRY_SECONDS", 1.0)
    project = made(tmp_path / "P", "s3://bucket/gone")
    server.close()
    for action in (lambda: project.read(ALL), lambda: project.write(ALL, VALUES), lambda: Project(tmp_path / "P")):
        with pytest.raises(StoreUnavailableError, match=r"s3://bucket/gone: expected a storage that reads") as caught:
            action()
        assert "the same command again" in str(caught.value)
        assert "sesame" not in str(caught.value)


def test_urls_hold_no_credentials() -> None:
    optics = {"pixel_size": 1, "voltage": 300, "spherical_aberration": 2.7}
    assert build_settings({"data": optics, "engine": {"store": "s3://bucket/a/b/"}}).engine.store == "s3://bucket/a/b"
    for wrong in ("s3://key:sesame@bucket/a", "s3://bucket", "https://bucket/a", "file:///tmp/x"):
        with pytest.raises(SettingsError, match=r"engine\.store") as caught:
            build_settings({"data": optics, "engine": {"store": wrong}})
        assert "sesame" not in str(caught.value)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    project = Project(tmp_path / "P", create=True)
    project.create(SPEC)
    project.write(ALL, VALUES)
    shard = tmp_path / "P/store.zarr/run/images/c/1/0/0"
    whole = shard.read_bytes()
    for damaged in (whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], bytes(len(whole)), whole[:60]):
        shard.write_bytes(damaged)
        with pytest.raises(DamagedDataError, match=r"run/images, \[4, 0, 0\] to \[8, 6, 7\]"):
            Project(tmp_path / "P").read(ALL)
    shard.write_bytes(whole)
    np.testing.assert_array_equal(Project(tmp_path / "P").read(ALL), VALUES)
