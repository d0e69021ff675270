"""Names in tables lead to images where they may lie, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest

from cryoseg_dist.errors import BadInputError, SettingsError
from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.pipeline.config import image_roots
from cryoseg_dist.pipeline.image_places import find_image
from cryoseg_dist.pipeline.micrographs import find_micrographs

STAR = "data_micrographs\n\nloop_\n_rlnMicrographName #1\n{}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one micrograph, a secret beside it, and links that lead out of it and within it."""
    folder = tmp_path / "project"
    (folder / "Movies").mkdir(parents=True)
    (folder / "Job").mkdir()
    write_stack(folder / "Movies" / "a.mrc", np.zeros((4, 4), np.float32), 1.0)
    write_stack(tmp_path / "secret.mrc", np.zeros((4, 4), np.float32), 1.0)
    (folder / "Movies" / "out.mrc").symlink_to(tmp_path / "secret.mrc")
    (folder / "Job" / "in.mrc").symlink_to(folder / "Movies" / "a.mrc")
    return folder


def test_names_start_from_the_table_or_a_folder_above(project: Path) -> None:
    assert find_image("Movies/a.mrc", project / "Job") == project / "Movies" / "a.mrc"
    assert find_image("in.mrc", project / "Job", [project]) == project / "Job" / "in.mrc"
    assert find_image("none.mrc", project) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../secret.mrc", "climbs"),
        ("Movies/../../secret.mrc", "climbs"),
        ("Movies/a\n.mrc", "control characters"),
        ("Movies/a\u202e.mrc", "control characters"),
        ("a\0.mrc", "control characters"),
        ("x" * 5000, "the name of a file"),
    ],
)
def test_strange_names_are_refused_without_roots_too(project: Path, name: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says) as caught:
        find_image(name, project)
    assert len(str(caught.value)) < 1000


def test_links_and_absolute_names_stay_within_the_roots(project: Path) -> None:
    secret = project.parent / "secret.mrc"
    assert find_image(str(secret), project) == secret
    for name in (str(secret), "Movies/out.mrc"):
        with pytest.raises(BadInputError, match="image_roots"):
            find_image(name, project, [project])
    # A folder whose name only begins like a root is none.
    twin = project.parent / "project2"
    twin.mkdir()
    (twin / "b.mrc").write_bytes((project / "Movies" / "a.mrc").read_bytes())
    with pytest.raises(BadInputError, match="image_roots"):
        find_image(str(twin / "b.mrc"), project, [project])


def test_lists_and_patterns_keep_to_the_roots(project: Path) -> None:
    table = project / "list.star"
    table.write_text(STAR.format("Movies/a.mrc"))
    assert find_micrographs(str(table), [project]) == [project / "Movies" / "a.mrc"]
    for name in ("../secret.mrc", "Movies/out.mrc", str(project.parent / "secret.mrc")):
        table.write_text(STAR.format(name))
        with pytest.raises(BadInputError, match=r"secret|out"):
            find_micrographs(str(table), [project])
    with pytest.raises(BadInputError, match="image_roots"):
        find_micrographs(str(project / "Movies" / "*.mrc"), [project])
    with pytest.raises(SettingsError, match="a list of folders"):
        image_roots({"data": {"image_roots": "/data"}})
