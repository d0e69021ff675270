import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import BadInputError, DamagedDataError
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store.manifest import read_manifest, write_manifest
from cryoseg_dist.store.project import Project, StoreError

SPEC = ArraySpec(
    "run-1/images",
    (10, 6, 7),
    ("p", "y", "x"),
    "float16",
    (2, 6, 7),
    (4, 6, 7),
    unit="sd",
    doc="Test images",
    attributes={"pixel_size": 1.5},
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "P", create=True)
    made.create(SPEC)
    return made


def rows(a: int, b: int) -> Region:
    return Region(SPEC.name, (a, 0, 0), (b, 6, 7))


def values(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6, 7)).astype(np.float16)


def test_shards_come_back_in_another_process_view(project: Project) -> None:
    first, last = values(4), values(2, 1)
    project.write(rows(0, 4), first)
    project.write(rows(8, 10), last)  # clipped at the end of the array
    again = pickle.loads(pickle.dumps(project))
    np.testing.assert_array_equal(again.read(rows(0, 4)), first)
    np.testing.assert_array_equal(again.read(Region(SPEC.name, (9, 1, 2), (10, 3, 7))), last[1:, 1:3, 2:])
    # What nobody wrote is no zeros, and zeros are no nothing.
    with pytest.raises(DamagedDataError, match="no file") as missing:
        again.read(rows(3, 9))
    assert (missing.value.start, missing.value.stop) == ((4, 0, 0), (8, 6, 7))
    project.write(rows(4, 8), np.zeros((4, 6, 7), np.float16))
    assert (again.read(rows(4, 8)) == 0).all()
    assert again.spec(SPEC.name) == SPEC


@pytest.mark.parametrize("first", [4, 8])
def test_a_damaged_shard_can_be_written_again(project: Project, first: int) -> None:
    region = rows(first, min(first + 4, 10))
    pixels = values(region.shape[0])
    project.write(region, pixels)
    [(_, path)] = project.shards(region)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedDataError):
        project.read(region)
    project.write(region, pixels)
    np.testing.assert_array_equal(project.read(region), pixels)


def test_create_keeps_an_equal_array_and_refuses_another(project: Project) -> None:
    project.write(rows(0, 4), values(4))
    Project(project.root).create(SPEC)
    np.testing.assert_array_equal(project.read(rows(0, 4)), values(4))
    other = ArraySpec(SPEC.name, (11, 6, 7), SPEC.dims, SPEC.dtype, SPEC.chunks, SPEC.shards)
    with pytest.raises(StoreError, match="Remove the run"):
        project.create(other)


@pytest.mark.parametrize(
    ("region", "shape"),
    [
        (rows(0, 2), (2, 6, 7)),
        (rows(2, 6), (4, 6, 7)),
        (rows(8, 12), (4, 6, 7)),
        (Region(SPEC.name, (0, 0, 0), (4, 6, 5)), (4, 6, 5)),
        (Region(SPEC.name, (-4, 0, 0), (0, 6, 7)), (4, 6, 7)),
        (rows(0, 4), (4, 6, 6)),
    ],
)
def test_writes_that_are_not_whole_shards_are_refused(project: Project, region: Region, shape: tuple[int, ...]) -> None:
    with pytest.raises(StoreError, match="expected"):
        project.write(region, np.ones(shape, np.float16))
    assert not any(path.exists() for _, path in project.shards(project.whole(SPEC.name)))


@pytest.mark.parametrize("region", [rows(0, 11), Region(SPEC.name, (0, 0), (1, 6)), rows(-1, 2)])
def test_reads_outside_are_refused(project: Project, region: Region) -> None:
    with pytest.raises(StoreError, match="inside"):
        project.read(region)


def test_shards_of_broken_chunks_are_refused(project: Project) -> None:
    with pytest.raises(StoreError, match="whole chunks"):
        project.create(ArraySpec("r/x", (10,), ("p",), "int8", (3,), (4,)))
    assert not project.exists("r/x")


def test_masks_are_compressed_and_noise_is_not(project: Project) -> None:
    shape, dims = (1, 512, 512), ("m", "y", "x")
    for dtype in ("uint8", "float32"):
        project.create(ArraySpec(f"r/{dtype}", shape, dims, dtype, (1, 256, 256), shape))
        mask = np.ones(shape, dtype)
        mask[:, 100:200] = 2
        region = project.whole(f"r/{dtype}")
        project.write(region, mask)
        np.testing.assert_array_equal(project.read(region), mask)

    def size(name: str) -> int:
        return sum(f.stat().st_size for f in (project.root / "store.zarr" / name / "c").rglob("*") if f.is_file())

    assert size("r/uint8") < 5_000
    assert size("r/float32") >= 4 * 512 * 512


def test_a_micrograph_needs_no_multiple_of_the_chunk(project: Project) -> None:
    shape = (2, 1200, 1240)
    project.create(ArraySpec("r/m", shape, ("m", "y", "x"), "float16", (1, 400, 414), (1, 1200, 1242)))
    image = np.random.default_rng(0).normal(size=(1, 1200, 1240)).astype(np.float16)
    region = Region("r/m", (1, 0, 0), (2, 1200, 1240))
    project.write(region, image)
    np.testing.assert_array_equal(project.read(region), image)


def test_threads_share_a_project(project: Project) -> None:
    project.create(ArraySpec("r/t", (64, 50), ("p", "x"), "float32", (1, 50), (4, 50)))
    errors: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for i in range(k, 16, 4):
                region = Region("r/t", (4 * i, 0), (4 * i + 4, 50))
                project.write(region, np.full((4, 50), i, np.float32))
                assert (project.read(region) == i).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    got = project.read(project.whole("r/t"))
    np.testing.assert_array_equal(got, np.repeat(np.arange(16, dtype=np.float32), 4)[:, None] * np.ones(50))


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"store\.zarr"):
        Project(tmp_path)


def test_a_missing_array_names_itself(project: Project) -> None:
    with pytest.raises(StoreError, match="run-9/none"):
        project.shape("run-9/none")


def test_manifest_tells_how_a_run_began(project: Project) -> None:
    first = write_manifest(project, "ctf-1", "ctf", {"size": 512}, {"ingest": "ingest-1"}, ["cryoseg", "run"])
    write_manifest(project, "ctf-1", "ctf", {"size": 512}, {"ingest": "ingest-1"}, ["cryoseg", "ctf"])
    held = read_manifest(project, "ctf-1")
    assert held == first
    assert held["command"] == ["cryoseg", "run"]
    assert held["versions"]["zarr"]
    assert read_manifest(project, "ctf-2") is None
