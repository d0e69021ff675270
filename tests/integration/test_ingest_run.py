"""Ten micrographs, some of them broken, through the formats, the runner and the store."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.images import image_header
from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.runtime.events import EventBus
from cryoseg_dist.runtime.inline import InlineExecutor
from cryoseg_dist.runtime.runner import Runner
from cryoseg_dist.schema.work import Outcome, Region
from cryoseg_dist.stages.ingest import IngestSettings, IngestStage, MicrographHeader, array_specs, majority_shape, plan
from cryoseg_dist.store.project import Project

SHAPE, PIXEL, RUN = (150, 130), 1.5, "ingest-0"


def header(path: Path) -> MicrographHeader:
    try:
        found = image_header(path)
    except BadInputError as fault:
        return MicrographHeader(str(path), fault=str(fault))
    return MicrographHeader(str(path), found.shape, found.pixel_size)


def micrographs(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(9):
        image = rng.normal(500, 30, SHAPE).astype([np.float32, np.float16, np.uint16][i % 3])
        made.append(folder / f"{i}.mrc")
        if i == 3:
            image = image.astype(np.float32)
            image[5, 7] = np.nan
        if i == 4:
            image = np.full(SHAPE, 3, np.int16)
        if i == 5:
            image = image[:-2]
        write_stack(made[-1], image, PIXEL)
    made[6].write_bytes(made[6].read_bytes()[:-100])
    made[7].write_bytes(b"not a micrograph")
    packed = folder / "8.mrc.gz"
    packed.write_bytes(gzip.compress(made[8].read_bytes()))
    return [*made[:8], packed, folder / "missing.mrc"]


@pytest.fixture
def ingested(tmp_path: Path):
    paths = micrographs(tmp_path)
    headers = [header(p) for p in paths]
    settings = IngestSettings()
    shape = majority_shape(headers)
    assert shape == SHAPE
    project = Project(tmp_path / "P", create=True)
    runner = Runner(project, InlineExecutor(project.root), EventBus())

    def run():
        return runner.run(
            IngestStage(settings, PIXEL, shape),
            RUN,
            array_specs(RUN, len(headers), shape, PIXEL, settings),
            plan(RUN, headers, shape, PIXEL, settings),
        )

    return project, run


def test_broken_micrographs_are_set_aside_and_the_rest_goes_on(ingested) -> None:
    project, run = ingested
    marks = run()
    done = [m.outcome is Outcome.DONE for m in marks]
    assert done == [True, True, True, False, False, False, False, False, True, False]
    for m, word in ((3, "1 NaN"), (4, "constant 3"), (5, "130 x 148"), (6, "truncated"), (7, "cut short"), (9, "none")):
        assert marks[m].outcome is Outcome.SET_ASIDE
        assert word in marks[m].reason
    rng = np.random.default_rng(0)
    first = rng.normal(500, 30, SHAPE).astype(np.float32)
    stored = project.read(Region(f"{RUN}/micrographs", (0, 0, 0), (1, *SHAPE)))[0].astype(float)
    np.testing.assert_allclose(stored * marks[0].record["scale"] + marks[0].record["offset"], first, atol=0.1)


def test_a_second_run_reads_nothing(ingested, tmp_path: Path) -> None:
    _, run = ingested
    first = run()
    for path in tmp_path.glob("*.mrc*"):
        path.unlink()
    assert run() == first


def test_real_micrographs_come_in(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "apoferritin_empiar10146/micrographs"
    headers = [header(p) for p in sorted(folder.glob("*.mrc"))[:2]]
    settings = IngestSettings()
    project = Project(tmp_path / "P", create=True)
    runner = Runner(project, InlineExecutor(project.root), EventBus())
    shape = majority_shape(headers)
    marks = runner.run(
        IngestStage(settings, 1.5, shape),
        RUN,
        array_specs(RUN, 2, shape, 1.5, settings),
        plan(RUN, headers, shape, 1.5, settings),
        need_all=True,
    )
    assert all(m.record["level_pixel_size"] == 8.0 for m in marks)
    for name, extent in (("micrographs", (2, 1200, 1240)), ("level8", (2, 225, 233))):
        whole = project.read(project.whole(f"{RUN}/{name}")).astype(np.float32)
        assert whole.shape == extent
        assert np.isfinite(whole).all()
        assert abs(np.median(whole)) < 0.01
        assert 0.7 < whole.std() < 1.5
