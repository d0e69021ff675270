from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.star import image_reads, per_row, read_star, require, write_star
from cryoseg_dist.schema.work import ImageFile

OPTICS = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
1 one 300 2.7 0.1 1.5
2 two 200 2.0 0.07 2
"""
ROWS = """
data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnOriginXAngst #4
_rlnOriginYAngst #5
_rlnHelicalTrackLength #6
000001@a.mrcs 0007 2 3.5 -1 0.25
000002@a.mrcs 0008 1 0 2 1e-07
"""


def star(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.star"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ["# version 30001\n" + OPTICS + ROWS, ROWS + OPTICS])
def test_tables_in_either_order(tmp_path: Path, text: str) -> None:
    tables = read_star(star(tmp_path, text))
    assert list(tables.rows["micrograph_name"]) == ["0007", "0008"]
    np.testing.assert_array_equal(per_row(tables, "voltage"), [200.0, 300.0])
    np.testing.assert_array_equal(tables.rows["origin_x"], [3.5, 0.0])
    np.testing.assert_array_equal(tables.rows["rlnHelicalTrackLength"], [0.25, 1e-7])


def test_written_tables_come_back_whole(tmp_path: Path) -> None:
    tables = read_star(star(tmp_path, OPTICS + ROWS))
    tables.rows["defocus_u"] = [15432.125, 0.000123456]
    write_star(tmp_path / "y.star", {"optics": tables.optics, "particles": tables.rows})
    again = read_star(tmp_path / "y.star")
    pd.testing.assert_frame_equal(again.optics, tables.optics, check_dtype=False)
    pd.testing.assert_frame_equal(again.rows, tables.rows, check_dtype=False)
    text = (tmp_path / "y.star").read_text()
    assert "_rlnHelicalTrackLength" in text
    assert text.count("# version 30001") == 2
    write_star(tmp_path / "z.star", {"optics": tables.optics, "particles": tables.rows})
    assert (tmp_path / "z.star").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.star", "y.star", "z.star"]


def test_relion_30_becomes_optics_groups_and_angstrom(tmp_path: Path) -> None:
    labels = ["ImageName", "Voltage", "SphericalAberration", "AmplitudeContrast", "DetectorPixelSize", "Magnification"]
    header = "".join(f"_rln{n}\n" for n in [*labels, "OriginX", "OriginY"])
    rows = "1@a.mrcs 300 2.7 0.1 5 20000 2 -1\n2@a.mrcs 300 2.7 0.1 5 20000 0 4\n1@b.mrcs 300 2.7 0.1 5 10000 1 1\n"
    tables = read_star(star(tmp_path, f"data_\n\nloop_\n{header}{rows}"))
    np.testing.assert_allclose(tables.optics["pixel_size"], [2.5, 5.0])
    np.testing.assert_array_equal(tables.rows["optics_group"], [1, 1, 2])
    np.testing.assert_allclose(tables.rows["origin_x"], [5.0, 0.0, 5.0])
    np.testing.assert_allclose(tables.rows["origin_y"], [-2.5, 10.0, 5.0])
    assert not {"rlnMagnification", "rlnOriginX", "voltage"} & set(tables.rows)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "a table of particles"),
        ("\x00\x01 no star at all", "a table of particles"),
        ("data_x\n", "a STAR file"),
        (OPTICS + ROWS.replace(" 2 3.5", " 9 3.5"), r"rows of groups \[9\]"),
        (OPTICS + ROWS.replace("3.5", "abc"), "'abc' in row 1"),
        (OPTICS.replace("300", "volt") + ROWS, "'volt' in row 1"),
        (OPTICS.replace("_rlnOpticsGroup #1", "_rlnOther #1") + ROWS, "_rlnOpticsGroup"),
    ],
)
def test_faults_are_told_with_file_and_column(tmp_path: Path, text: str, word: str) -> None:
    path = star(tmp_path, text)
    with pytest.raises(BadInputError, match=word) as caught:
        read_star(path)
    assert "x.star" in str(caught.value)


def test_missing_columns_are_listed_by_relion_label(tmp_path: Path) -> None:
    tables = read_star(star(tmp_path, OPTICS + ROWS))
    with pytest.raises(BadInputError, match=r"_rlnDefocusU, _rlnAngleRot.*Run cryoseg ctf\."):
        require(tables.rows, ("image_name", "defocus_u", "rot"), "x.star", "Run cryoseg ctf.")


def test_images_of_a_stack_are_read_together() -> None:
    reads = image_reads(["3@a.mrcs", "000004@a.mrcs", "1@b.mrcs", "1@a.mrcs"], Path("base"))
    assert reads == (ImageFile("base/a.mrcs", (2, 3)), ImageFile("base/b.mrcs", (0,)), ImageFile("base/a.mrcs", (0,)))
    with pytest.raises(BadInputError, match="section@stack"):
        image_reads(["0@a.mrcs"], Path())


REAL = {
    "bgal_empiar10204/particles_refinedangles_shared.star": (635, 1, "pixel_size", 3.54),
    "bgal_empiar10204/particles_allpicks_goodctf_shared.star": (1157, 1, "pixel_size", 3.54),
    "bgal_empiar10204/particles_wrong_ctf.star": (1157, 1, "voltage", 200.0),
    "io/aspire/sample_relion_data.star": (17, 1, "voltage", 300.0),
    "io/cryodrgn/relion31.6opticsgroups.star": (139, 6, "voltage", 200.0),
    "io/cryodrgn/relion31.star": (5, 1, "pixel_size", 2.806),
    "io/cryodrgn/relion31.v2.star": (5, 1, "pixel_size", 2.806),
    "metadata/t20s_empiar10025_ctf.star": (30, 1, "micrograph_pixel_size", 2.5e4 / 38023),
    "metadata/t20s_empiar10025_particles.star": (1500, 1, "pixel_size", 3.733333e4 / 38023),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_and_survive_writing(shared_data: Path, tmp_path: Path, name: str) -> None:
    n, groups, column, value = REAL[name]
    tables = read_star(shared_data / name)
    assert (len(tables.rows), len(tables.optics)) == (n, groups)
    assert tables.optics[column].iloc[0] == pytest.approx(value, rel=1e-6)
    assert not tables.rows.isna().any().any()
    block = "particles" if "image_name" in tables.rows else "micrographs"
    write_star(tmp_path / "again.star", {"optics": tables.optics, block: tables.rows})
    again = read_star(tmp_path / "again.star")
    pd.testing.assert_frame_equal(again.rows, tables.rows, check_dtype=False, rtol=1e-8)
    pd.testing.assert_frame_equal(again.optics, tables.optics, check_dtype=False, rtol=1e-8)


def test_odd_and_even_tables_order_give_the_same(shared_data: Path) -> None:
    one, two = (read_star(shared_data / "io/cryodrgn" / n) for n in ("relion31.star", "relion31.v2.star"))
    pd.testing.assert_frame_equal(one.rows, two.rows)
    pd.testing.assert_frame_equal(one.optics, two.optics)


def test_zernike_lists_stay_text(shared_data: Path) -> None:
    optics = read_star(shared_data / "io/cryodrgn/relion31.6opticsgroups.star").optics
    assert optics["odd_zernike"].iloc[0].startswith("[1.70554063513,1.2131261042")


def test_real_particle_images_are_where_the_table_says(shared_data: Path) -> None:
    from cryoseg_dist.formats.images import read_images

    folder = shared_data / "bgal_empiar10204"
    names = list(read_star(folder / "particles_refinedangles_shared.star").rows["image_name"][:3])
    images = np.concatenate([read_images(r) for r in image_reads(names, folder)])
    assert images.shape == (3, 64, 64)
    assert images.dtype == np.float16
