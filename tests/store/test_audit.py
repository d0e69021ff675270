"""What verify finds, what is taken back, and what may go."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.schema.work import ArraySpec, Outcome, Region
from cryoseg_dist.store.audit import audit
from cryoseg_dist.store.checksums import digest_of, write_sums
from cryoseg_dist.store.clean import Part, parts, write_current
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.manifest import write_manifest
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.take_back import take_back_failed, take_back_region
from tests.s3_server import S3Server

RUN = "ingest-1"
OBJECT = re.compile(r"<Key>([^<]*)</Key>.*?<Size>(\d+)</Size>", re.DOTALL)


def array(project: Project, name: str, n: int = 3) -> None:
    project.create(ArraySpec(name, (n, 8), ("unit", "x"), "float32", (1, 4), (1, 8)))


def write(project: Project, name: str, i: int) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    project.write(Region(name, (i, 0), (i + 1, 8)), np.full((1, 8), i + 1.0, dtype=np.float32))
    return (name, (i, 0), (i + 1, 8))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "P", create=True)
    array(made, f"{RUN}/rows")
    source = tmp_path / "input.mrc"
    source.write_bytes(b"an input")
    with Ledger(made.ledger_path(RUN)) as ledger:
        ledger.append(
            Mark("u/0", Outcome.DONE, writes=(write(made, f"{RUN}/rows", 0),), inputs={str(source): digest_of(source)})
        )
        ledger.append(Mark("u/1", Outcome.DONE, writes=(write(made, f"{RUN}/rows", 1),)))
        ledger.append(Mark("u/2", Outcome.QUARANTINED, reason="ValueError: no"))
        ledger.append(Mark("u/3", Outcome.SET_ASIDE, reason="bad"))
    made.export.mkdir()
    (made.export / "map.mrc").write_bytes(b"a map")
    write_sums(made.export)
    write_manifest(made, RUN, "ingest", {}, {}, ["cryoseg"])
    return made


def shard(project: Project, name: str, i: int) -> Path:
    return project.root / "store.zarr" / name / "c" / str(i) / "0"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)


def test_a_whole_project_is_whole(project: Project) -> None:
    found = audit(project)
    assert found.findings == []
    assert (found.shards, found.inputs, found.exports, found.gone) == (2, 1, 1, 0)


def test_each_damage_is_found_and_named(project: Project, tmp_path: Path) -> None:
    flip(shard(project, f"{RUN}/rows", 0), -10)
    shard(project, f"{RUN}/rows", 1).unlink()
    (tmp_path / "input.mrc").write_bytes(b"AN INPUT")
    (project.export / "map.mrc").write_bytes(b"a nap")
    (project.root / "runs" / "broken.json").write_text("{")
    with project.ledger_path("ctf-1").open("w") as stream:
        stream.write("garbage\n")
    found = {(f.kind, f.where.removeprefix(str(project.root))): f for f in audit(project).findings}
    assert {kind for kind, _ in found} == {"array", "input", "export", "state", "ledger"}
    assert len(found) == 6
    lost = found["array", f"{RUN}/rows, [1, 0] to [2, 8]"]
    assert lost.got == "no file"
    assert "u/1 of ingest-1" in lost.remedy
    assert found["array", f"{RUN}/rows, [0, 0] to [1, 8]"].got != "no file"
    quick = {(f.kind, f.got) for f in audit(project, quick=True).findings}
    assert ("array", "no file") in quick
    assert "input" not in {kind for kind, _ in quick}


def test_an_input_that_is_gone_is_no_damage(project: Project, tmp_path: Path) -> None:
    (tmp_path / "input.mrc").unlink()
    found = audit(project)
    assert (found.findings, found.gone) == ([], 1)


def test_failed_units_are_taken_back_and_the_rest_stays(project: Project) -> None:
    taken = take_back_failed(project, [Outcome.QUARANTINED])
    assert [(t.run, [m.key for m in t.marks]) for t in taken] == [(RUN, ["u/2"])]
    assert set(Ledger(project.ledger_path(RUN)).load()) == {"u/0", "u/1", "u/3"}
    assert take_back_failed(project, [Outcome.QUARANTINED]) == []
    taken = take_back_failed(project, [Outcome.QUARANTINED, Outcome.SET_ASIDE])
    assert [m.key for t in taken for m in t.marks] == ["u/3"]
    with Ledger(project.ledger_path(RUN)) as ledger:
        ledger.append(Mark("u/2", Outcome.DONE))
    assert set(Ledger(project.ledger_path(RUN)).load()) == {"u/0", "u/1", "u/2"}


def test_what_wrote_a_region_is_taken_back(project: Project) -> None:
    taken = take_back_region(project, Region(f"{RUN}/rows", (1, 0), (2, 8)))
    assert [mark.key for mark in taken.marks] == ["u/1"]
    assert "u/1" not in Ledger(project.ledger_path(RUN)).load()
    assert not take_back_region(project, Region(f"{RUN}/none", (0, 0), (1, 8)))


def test_results_of_an_iteration_go_back_before_it(project: Project) -> None:
    for i in range(4):
        project.write_json(f"state/refine-1/it{i:03d}.json", {})
    taken = take_back_region(project, Region("refine-1/it002/maps", (0,), (1,)))
    assert taken.states == ("it003.json", "it002.json")
    assert sorted(p.name for p in (project.root / "state/refine-1").iterdir()) == ["it000.json", "it001.json"]
    project.write_json("state/refine-1/done.json", {})
    # An array of the run's end goes with its last step.
    assert take_back_region(project, Region("refine-1/averages", (0,), (1,))).states == ("it001.json", "done.json")


def remains_what_shall(project: Project) -> list[Part]:
    """Make and remove what may go; what that was."""
    for run, stage in (("segment-1", "segment"), ("pick-1", "pick"), ("refine-1", "refine"), ("refine-0", "refine")):
        write_manifest(project, run, stage, {}, {}, ["cryoseg"])
    for name in (
        "segment-1/probability", "refine-0/it001/maps", "refine-1/it001/maps", "refine-1/it001/poses",
        "refine-1/it002/maps", "refine-1/it002/best", "refine-1/it002/poses",
    ):  # fmt: skip
        array(project, name)
        write(project, name, 0)
    for run in ("segment-1", "refine-1/it001", "refine-1/it002"):
        with Ledger(project.ledger_path(run)) as ledger:
            ledger.append(Mark("a", Outcome.DONE))
    for i in (1, 2):
        project.write_json(f"state/refine-1/it{i:03d}.json", {})
    (project.export / ".map.mrc.partial").write_bytes(b"half")
    # Nothing has finished: only left-overs may go.
    assert [part.name for part in parts(project)] == ["left over"]
    write_current(project, [RUN, "segment-1", "pick-1", "refine-1"], os.path.getmtime(project.root) + 1e6)
    found = parts(project)
    assert {part.name for part in found} == {"left over", "segment-1", "refine-0", "refine-1"}
    assert all(part.size > 0 for part in found)
    for part in found:
        part.remove()
    assert project.array_names() == [f"{RUN}/rows", "refine-1/it002/best", "refine-1/it002/maps"]
    assert [p.name for p in (project.root / "state/refine-1").iterdir()] == ["it002.json"]
    assert project.ledger_path(RUN).exists()
    assert not project.ledger_path("segment-1").exists()
    assert parts(project) == []
    assert audit(project).findings == []
    return found


def test_only_what_can_go_goes(project: Project) -> None:
    remains_what_shall(project)


def test_only_what_can_go_goes_from_a_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    def sizes(prefix: str) -> list[int]:
        return [int(n) for key, n in OBJECT.findall(s3_server.objects()) if key.startswith(prefix)]

    project = Project(tmp_path / "P", create=True, store="s3://bucket/cleaned")
    project.export.mkdir()
    array(project, f"{RUN}/rows")
    with Ledger(project.ledger_path(RUN)) as ledger:
        ledger.append(Mark("u/0", Outcome.DONE, writes=(write(project, f"{RUN}/rows", 0),)))
    # Of another project, though its prefix begins with the same letters.
    near = Project(tmp_path / "Q", create=True, store="s3://bucket/cleaned-not")
    array(near, "refine-0/it001/maps")
    array(project, "refine-0/it001/maps")
    write(project, "refine-0/it001/maps", 0)
    before, held = sizes("cleaned/refine-0/"), sizes("cleaned-not/")
    told = {part.name: part.size for part in remains_what_shall(project)}
    assert told["refine-0"] == sum(before) > 0
    assert sizes("cleaned/refine-0/") == []
    assert sizes("cleaned-not/") == held


def test_a_run_younger_than_the_last_end_stays(project: Project) -> None:
    write_current(project, [RUN], 0.0)
    write_manifest(project, "ctf-9", "ctf", {}, {}, ["cryoseg"])
    array(project, "ctf-9/spectra")
    assert parts(project) == []
