import io
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy.spatial.transform import Rotation

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.coordinates import read_coordinates
from cryoseg_dist.formats.cs import read_cs
from cryoseg_dist.formats.fsc_files import read_fsc, write_fsc_star, write_fsc_xml
from cryoseg_dist.formats.images import image_header, read_images
from cryoseg_dist.formats.mrc import read_mrc, read_volume
from cryoseg_dist.formats.star import read_blocks
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.schema.work import ImageFile

# TIFF


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_tiff_pages_come_back(tmp_path: Path, dtype: str, compression: str | None) -> None:
    images = (np.random.default_rng(0).random((3, 20, 30)) * 100).astype(dtype)
    # Content decides, not the name.
    tifffile.imwrite(tmp_path / "a.dat", images, compression=compression, photometric="minisblack")
    header = image_header(tmp_path / "a.dat")
    assert (header.shape, header.dtype, header.pixel_size) == ((3, 20, 30), dtype, None)
    np.testing.assert_array_equal(read_images(ImageFile(str(tmp_path / "a.dat"))), images)
    np.testing.assert_array_equal(read_images(ImageFile(str(tmp_path / "a.dat"), (2, 0))), images[[2, 0]])


def test_tiff_resolution_in_angstrom(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((4, 5), np.uint8), resolution=(1e8 / 1.25, 1e8 / 1.25), resolutionunit=3
    )
    assert image_header(tmp_path / "a.tif").pixel_size == pytest.approx(1.25)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((4, 5), np.uint8), resolution=(300, 300), resolutionunit=2)
    assert image_header(tmp_path / "b.tif").pixel_size is None


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_that_is_cut_short_is_bad_input(tmp_path: Path, keep: float, compression: str | None) -> None:
    image = np.random.default_rng(0).integers(0, 9999, (64, 64)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, compression=compression, rowsperstrip=8)
    raw = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(BadInputError, match=r"a\.tif"):
        read_images(ImageFile(str(tmp_path / "a.tif")))


def test_colour_pictures_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(BadInputError, match="grey"):
        image_header(tmp_path / "a.tif")
    with pytest.raises(BadInputError, match="grey"):
        read_images(ImageFile(str(tmp_path / "a.tif")))


# SPIDER and the shared image files


def test_spider_equals_its_mrc_twins(shared_data: Path) -> None:
    folder = shared_data / "io/xmipp"
    for spider, mrc in (("singleImage.spi", "singleImage.mrc"), ("smallStack.stk", "smallStack.mrcs")):
        assert image_header(folder / spider).shape == image_header(folder / mrc).shape
        np.testing.assert_array_equal(read_images(ImageFile(str(folder / spider))), read_mrc(folder / mrc))
    stack = ImageFile(str(folder / "smallStack.stk"), (3, 1))
    np.testing.assert_array_equal(read_images(stack), read_mrc(folder / "smallStack.mrcs")[[3, 1]])
    assert read_images(ImageFile(str(folder / "smallVolume.vol"))).shape == (4, 64, 64)


def test_spider_cut_short_is_bad_input(shared_data: Path, tmp_path: Path) -> None:
    raw = (shared_data / "io/xmipp/smallStack.stk").read_bytes()
    (tmp_path / "a.stk").write_bytes(raw[:-1])
    with pytest.raises(BadInputError, match="truncated"):
        read_images(ImageFile(str(tmp_path / "a.stk")))
    with pytest.raises(BadInputError, match="section 5"):
        read_images(ImageFile(str(shared_data / "io/xmipp/smallStack.stk"), (4,)))


@pytest.mark.parametrize(
    ("name", "shape", "pixel_size"),
    [
        ("apoferritin_empiar10146/micrographs/May08_03.05.02.mrc", (1, 1200, 1240), 1.5),
        ("bgal_empiar10204/Extract/job009/Movies/20170629_00021_frameImage.mrcs", None, 3.54),
        ("bgal_empiar10204/power_spectra/20170629_00021_frameImage_PS.mrc", (1, 512, 512), 716.57086 / 512),
        ("bgal_empiar10204/run_it025_classes.mrcs", (50, 64, 64), None),
        ("io/aspire/sample.mrcs", (17, 200, 200), None),
        ("io/cryodrgn/relion31.mrcs", (5, 256, 256), 1.0),
        ("io/mrcfile/EMD-3197.map", (20, 20, 20), 11.4),
        ("io/mrcfile/emd_3197.map.gz", (20, 20, 20), 11.4),
        ("maps/betaGal.mrc", (100, 100, 100), 3.54),
    ],
)
def test_real_images(
    shared_data: Path, name: str, shape: tuple[int, int, int] | None, pixel_size: float | None
) -> None:
    header = image_header(shared_data / name)
    if shape is not None:
        assert header.shape == shape
    if pixel_size is not None:
        assert header.pixel_size == pytest.approx(pixel_size, rel=1e-5)
    images = read_images(ImageFile(str(shared_data / name)))
    assert images.shape == header.shape
    assert np.isfinite(images).all()
    assert images.std(dtype=np.float64) > 0


def test_gzipped_map_equals_the_plain_one(shared_data: Path) -> None:
    folder = shared_data / "io/mrcfile"
    np.testing.assert_array_equal(read_volume(folder / "EMD-3197.map")[0], read_volume(folder / "emd_3197.map.gz")[0])


# FSC


def curves(n: int = 33) -> dict[str, np.ndarray]:
    x = np.linspace(0, 1, n)
    return {"corrected": np.exp(-3 * x), "unmasked": np.exp(-4 * x), "masked": 1 - x, "randomised": 0.1 * x}


def test_fsc_star_comes_back(tmp_path: Path) -> None:
    write_fsc_star(tmp_path / "fsc.star", curves(), 64, 2.5, {"rlnFinalResolution": 7.25})
    table = read_fsc(tmp_path / "fsc.star")
    np.testing.assert_allclose(table["frequency"], np.arange(33) / 160)
    for name, values in curves().items():
        np.testing.assert_allclose(table[name], values, atol=1e-9)
    blocks = read_blocks(tmp_path / "fsc.star")
    assert blocks["general"]["rlnFinalResolution"].item() == 7.25
    assert blocks["fsc"]["rlnAngstromResolution"].iloc[0] == 999.0
    with pytest.raises(ValueError, match="corrected"):
        write_fsc_star(tmp_path / "fsc.star", {"other": np.ones(3)}, 64, 2.5)


def test_fsc_xml_comes_back(tmp_path: Path) -> None:
    write_fsc_xml(tmp_path / "fsc.xml", curves()["masked"], 64, 2.5, "a < b")
    table = read_fsc(tmp_path / "fsc.xml")
    np.testing.assert_allclose(table["corrected"], curves()["masked"], atol=1e-6)
    np.testing.assert_allclose(table["frequency"], np.arange(33) / 160, rtol=1e-5)


def test_real_fsc_files_agree(shared_data: Path) -> None:
    folder = shared_data / "bgal_empiar10204/relion31_reference"
    star, xml = read_fsc(folder / "postprocess.star"), read_fsc(folder / "postprocess_fsc.xml")
    np.testing.assert_allclose(star["corrected"], xml["corrected"], atol=1e-5)
    np.testing.assert_allclose(star["frequency"], xml["frequency"], atol=1e-6)
    assert list(star) == ["frequency", "corrected", "unmasked", "masked", "randomised"]


@pytest.mark.parametrize(
    "text", ["<fsc", "<fsc/>", '<!DOCTYPE x [<!ENTITY a "b">]><fsc>&a;</fsc>', "<fsc><coordinate/></fsc>"]
)
def test_bad_fsc_xml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(BadInputError, match=r"a\.xml"):
        read_fsc(tmp_path / "a.xml")


# cryoSPARC

FIELDS = [
    ("uid", "<u8"), ("blob/path", "S20"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
    ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4"),
    ("alignments3D/split", "<u4"), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/psize_A", "<f4"),
]  # fmt: skip


def table(n: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    out = np.zeros(n, dtype=FIELDS)
    out["uid"] = rng.permutation(n) + 100
    out["blob/path"] = b">J1/a.mrcs"
    out["blob/idx"] = np.arange(n)
    out["blob/shape"] = 64
    out["blob/psize_A"] = np.where(np.arange(n) < 4, 1.1, 2.2)
    out["ctf/accel_kv"], out["ctf/cs_mm"], out["ctf/amp_contrast"] = 300, 2.7, 0.1
    out["ctf/df1_A"], out["ctf/df2_A"], out["ctf/df_angle_rad"] = 15000, 14000, 0.5
    out["alignments3D/split"] = np.arange(n) % 2
    out["alignments3D/shift"] = rng.normal(size=(n, 2))
    out["alignments3D/pose"] = rng.normal(size=(n, 3))
    out["alignments3D/pose"][0] = 0
    out["alignments3D/psize_A"] = 1.1
    return out


def saved(path: Path, array: np.ndarray) -> Path:
    with path.open("wb") as stream:
        np.save(stream, array)
    return path


def test_cs_columns_take_our_conventions(tmp_path: Path) -> None:
    data = table()
    tables = read_cs(saved(tmp_path / "a.cs", data))
    rows = tables.rows
    assert rows["image_name"].iloc[1] == "000002@J1/a.mrcs"
    np.testing.assert_array_equal(rows["random_subset"], [1, 2, 1, 2, 1, 2])
    np.testing.assert_array_equal(rows["optics_group"], [1, 1, 1, 1, 2, 2])
    assert list(tables.optics["pixel_size"]) == [1.1, 2.2]
    assert list(tables.optics["amplitude_contrast"]) == [0.1, 0.1]
    np.testing.assert_allclose(rows["defocus_angle"], np.rad2deg(0.5), rtol=1e-6)
    np.testing.assert_allclose(rows["origin_x"], data["alignments3D/shift"][:, 0] * 1.1, rtol=1e-5)
    got = euler_to_matrix(*(torch.tensor(rows[n].to_numpy(copy=True)) for n in ("rot", "tilt", "psi"))).numpy()
    want = Rotation.from_rotvec(data["alignments3D/pose"].astype(float)).inv().as_matrix()
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_cs_scales_multiply(tmp_path: Path) -> None:
    data = np.zeros(6, dtype=[*FIELDS, ("ctf/scale", "<f4"), ("alignments3D/alpha", "<f4"), ("ctf/bfactor", "<f4")])
    for name in table().dtype.names or ():
        data[name] = table()[name]
    data["ctf/scale"], data["alignments3D/alpha"], data["ctf/bfactor"] = 0.5, np.arange(6), 40.0
    rows = read_cs(saved(tmp_path / "a.cs", data)).rows
    np.testing.assert_allclose(rows["ctf_scale"], 0.5 * np.arange(6))
    np.testing.assert_allclose(rows["ctf_b_factor"], 40.0)


def test_cs_passthrough_joins_by_uid_and_flips_y(tmp_path: Path) -> None:
    data = table()
    fields = [("uid", "<u8"), ("location/micrograph_path", "S10"), ("location/micrograph_shape", "<u4", (2,)),
              ("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4")]  # fmt: skip
    other = np.zeros(8, dtype=fields)
    other["uid"] = np.arange(8) + 100
    other["location/micrograph_path"] = [f"m{i}".encode() for i in range(8)]
    other["location/micrograph_shape"] = (1000, 2000)
    other["location/center_x_frac"] = np.arange(8) / 10
    other["location/center_y_frac"] = 0.25
    paths = saved(tmp_path / "a.cs", data), saved(tmp_path / "b.cs", other)
    rows = read_cs(paths[0], [paths[1]]).rows
    assert list(rows["micrograph_name"]) == [f"m{u - 100}" for u in data["uid"]]
    np.testing.assert_allclose(rows["coordinate_x"], (data["uid"] - 100) * 200.0, rtol=1e-6)
    np.testing.assert_allclose(rows["coordinate_y"], 750.0)
    np.testing.assert_allclose(read_cs(paths[0], [paths[1]], flip_y=False).rows["coordinate_y"], 250.0)
    short = saved(tmp_path / "c.cs", other[:2])
    with pytest.raises(BadInputError, match="uid"):
        read_cs(paths[0], [short])


def test_real_cs_file(shared_data: Path) -> None:
    tables = read_cs(shared_data / "io/cryodrgn/cryosparc_P12_J24_001_particles.cs")
    assert len(tables.rows) == 2019
    assert tables.optics["pixel_size"].tolist() == [2.95]
    assert tables.optics["voltage"].tolist() == [200.0]
    raw = np.load(tables.path)
    # The scale of a slice that is nearest to its image.
    fits = raw["alignments3D/cross_cor"] / raw["alignments3D/slice_pow"] / 2.0
    np.testing.assert_allclose(tables.rows["ctf_scale"], fits, rtol=1e-5)
    row = tables.rows.iloc[0]
    assert row["defocus_u"] == pytest.approx(45591.37, abs=0.01)
    assert row["origin_x"] == pytest.approx(11.334375 * 2.95, rel=1e-5)
    assert set(tables.rows["random_subset"]) == {1, 2}
    assert tables.rows["tilt"].between(0, 180).all()


class Trap:
    """Would make a file if anyone unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_a_cs_file_is_never_opened(tmp_path: Path) -> None:
    mark = tmp_path / "opened"
    objects = np.array([Trap(mark)], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    for name, raw in (
        ("a.cs", buffer.getvalue()),
        ("b.cs", pickle.dumps(Trap(mark))),
        ("c.cs", b""),
        ("d.cs", b"\x93NUMPY"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(BadInputError, match=name):
            read_cs(tmp_path / name)
    assert not mark.exists()
    with pytest.raises(BadInputError, match="named columns"):
        read_cs(saved(tmp_path / "e.cs", np.zeros((3, 3))))


# Coordinates


def test_coordinates_of_three_formats_agree(tmp_path: Path) -> None:
    xy = np.array([[10.5, 20.0], [30.0, 41.25]])
    pd.DataFrame({"X-Coordinate": xy[:, 0], "Y-Coordinate": xy[:, 1], "Diameter": 9}).to_csv(
        tmp_path / "a.csv", index=False
    )
    (tmp_path / "a.box").write_text("".join(f"{x - 8}\t{y - 8}\t16\t16\n" for x, y in xy))
    (tmp_path / "a.star").write_text(
        "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n" + "".join(f"{x} {y}\n" for x, y in xy)
    )
    for name in ("a.csv", "a.box", "a.star"):
        np.testing.assert_allclose(read_coordinates(tmp_path / name), xy)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.csv", "a,b\n1,2\n", "x_px"),
        ("a.csv", "x_px,y_px\n1,two\n", "numbers"),
        ("a.csv", "", "a table of coordinates"),
        ("a.box", "1 2\n", "2 columns"),
        ("a.star", "data_\n\nloop_\n_rlnCoordinateX #1\n5\n", "_rlnCoordinateY"),
    ],
)
def test_bad_coordinates_are_told(tmp_path: Path, name: str, text: str, word: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInputError, match=word) as caught:
        read_coordinates(tmp_path / name)
    assert name in str(caught.value)


def test_real_coordinates(shared_data: Path) -> None:
    xy = read_coordinates(shared_data / "apoferritin_empiar10146/coords/May08_03.05.02.csv")
    assert xy.shape[1] == 2
    assert len(xy) > 100
    assert xy.min() > 0
    assert (xy < [1240, 1200]).all()
    masks = sorted((shared_data / "bgal_empiar10017/coords_from_masks").glob("*.csv"))
    assert all(read_coordinates(path).max() <= 4096 for path in masks)
    assert len(masks) == 10
    picks = next((shared_data / "bgal_empiar10204/AutoPick_sppractice").glob("*00021*.star"))
    np.testing.assert_allclose(read_coordinates(picks)[0], [1614.217657, 112.882354])
