import gzip
import tracemalloc
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.mrc import (
    HEADER_BYTES,
    create_stack,
    mrc_header,
    read_mrc,
    read_volume,
    write_stack,
    write_volume,
)

DTYPES = ["int8", "int16", "uint16", "float16", "float32"]


def stack(dtype: str, n: int = 5) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(n, 6, 9)) * 50 + 60).clip(0, 120).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_mode_comes_back(tmp_path: Path, dtype: str, compressed: bool) -> None:
    path, images = tmp_path / "a.mrcs", stack(dtype)
    write_stack(path, images, 1.5)
    if compressed:
        packed = tmp_path / "a.mrcs.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    header = mrc_header(path)
    assert header.shape == (5, 6, 9)
    assert header.pixel_size == pytest.approx(1.5)
    got = read_mrc(path)
    assert got.dtype == images.dtype
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(read_mrc(path, (4, 0, 1, 2, 4)), images[[4, 0, 1, 2, 4]])
    assert read_mrc(path, ()).shape == (0, 6, 9)


def test_a_peer_reads_what_is_written(tmp_path: Path) -> None:
    volume = np.random.default_rng(1).normal(size=(4, 5, 6))
    write_volume(tmp_path / "v.mrc", volume, 2.5)
    with mrcfile.open(tmp_path / "v.mrc") as handle:
        assert handle.is_volume()
        assert handle.header.ispg == 1
        assert handle.voxel_size.z == pytest.approx(2.5)
        assert tuple(handle.header.origin.item()) == (0.0, 0.0, 0.0)
        assert handle.header.label[0].startswith(b"cryoseg_dist")
        np.testing.assert_array_equal(handle.data, volume.astype(np.float32))
    assert mrcfile.validate(str(tmp_path / "v.mrc"))
    images = stack("float16", 60)
    write_stack(tmp_path / "s.mrcs", images, 1.1)
    with mrcfile.open(tmp_path / "s.mrcs") as handle:
        assert handle.is_image_stack()
        assert handle.header.mode == 12
        # mrcfile's own validation overflows on float16.
        assert handle.header.rms == pytest.approx(images.astype(float).std(), rel=1e-5)
        assert handle.header.dmean == pytest.approx(images.astype(float).mean(), rel=1e-5)


def test_a_stack_is_filled_piece_by_piece(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(5, 8, 8)).astype(np.float32)
    target = create_stack(tmp_path / "s.mrcs", 5, 8, 3.0)
    target[3:] = images[3:]
    target[:3] = images[:3]
    target.flush()
    np.testing.assert_array_equal(read_mrc(tmp_path / "s.mrcs"), images)
    assert mrc_header(tmp_path / "s.mrcs").pixel_size == pytest.approx(3.0)


def test_big_endian_files(tmp_path: Path) -> None:
    path, volume = tmp_path / "b.mrc", stack("float32")
    with mrcfile.new(path, data=volume.astype(">f4")) as handle:
        handle.voxel_size = 2.0
    assert path.read_bytes()[:4] == (9).to_bytes(4, "big")
    np.testing.assert_array_equal(read_mrc(path), volume)
    raw = bytearray(path.read_bytes())
    raw[212:216] = b"\0\0\0\0"  # no machine stamp: extents decide
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_mrc(path), volume)
    assert mrc_header(path).pixel_size == pytest.approx(2.0)


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (3, 1, 2)])
def test_maps_with_other_axis_orders_are_turned(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32)  # z, y, x
    # Sections, rows and columns run along axes[2], axes[1], axes[0].
    stored = volume.transpose([3 - axes[2], 3 - axes[1], 3 - axes[0]])
    with mrcfile.new(tmp_path / "v.mrc", data=np.ascontiguousarray(stored)) as handle:
        handle.header.mapc, handle.header.mapr, handle.header.maps = axes
    np.testing.assert_array_equal(read_volume(tmp_path / "v.mrc")[0], volume)


@pytest.mark.parametrize("columns", [6, 7])
def test_four_bit_rows_begin_on_bytes(tmp_path: Path, columns: int) -> None:
    values = np.random.default_rng(0).integers(0, 16, (2, 3, columns)).astype(np.uint8)
    padded = np.concatenate([values, np.zeros((2, 3, columns % 2), np.uint8)], axis=-1)
    write_stack(tmp_path / "a.mrcs", np.zeros((2, 3, columns), np.int8), 1.0)
    raw = bytearray((tmp_path / "a.mrcs").read_bytes()[:HEADER_BYTES])
    raw[12:16] = (101).to_bytes(4, "little")
    (tmp_path / "a.mrcs").write_bytes(bytes(raw) + (padded[..., 0::2] | padded[..., 1::2] << 4).tobytes())
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrcs"), values)
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrcs", (1,)), values[1:])


def test_old_imod_bytes_are_unsigned(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", np.full((1, 2, 2), -1, np.int8), 1.0)
    raw = bytearray((tmp_path / "a.mrcs").read_bytes())
    assert read_mrc(tmp_path / "a.mrcs").max() == -1
    raw[152:156] = (1146047817).to_bytes(4, "little")
    (tmp_path / "a.mrcs").write_bytes(raw)
    assert read_mrc(tmp_path / "a.mrcs").max() == 255


def damaged(tmp_path: Path, change) -> Path:
    path = tmp_path / "bad.mrc"
    write_stack(path, stack("float32"), 1.0)
    raw = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(raw)))
    return path


def patched(raw: bytearray, at: int, value: int) -> bytearray:
    raw[at : at + 4] = value.to_bytes(4, "little", signed=True)
    return raw


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw[:500], "cut short"),
        (lambda raw: raw[:0], "0 bytes"),
        (lambda raw: patched(raw, 12, 4), "mode 4"),
        (lambda raw: patched(raw, 0, -9), "extents"),
        (lambda raw: patched(raw, 8, 1_000_000), "truncated"),
        (lambda raw: patched(raw, 92, -1), "extended header"),
        (lambda raw: patched(raw, 92, 1 << 30), "truncated"),
        (lambda raw: gzip.compress(raw)[:-40], "damaged|truncated"),
        (lambda raw: b"\x1f\x8b" + bytes(raw), "readable"),
        (lambda raw: b"<!DOCTYPE html>" + b" " * 2000, "mode"),
    ],
)
def test_damage_is_told_with_the_file_name(tmp_path: Path, change, word: str) -> None:
    with pytest.raises(BadInputError, match=word) as caught:
        read_mrc(damaged(tmp_path, change))
    assert "bad.mrc" in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_that_lies_takes_no_memory(tmp_path: Path, compressed: bool) -> None:
    def lie(raw: bytearray) -> bytes:
        for at in (0, 4, 8):
            raw = patched(raw, at, 1_000_000)
        return gzip.compress(raw) if compressed else bytes(raw)

    path = damaged(tmp_path, lie)
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError):
            read_mrc(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@given(
    start=st.binary(max_size=300),
    at=st.integers(0, HEADER_BYTES),
    words=st.lists(st.tuples(st.integers(0, 255), st.integers(-(2**31), 2**31 - 1)), max_size=6),
    cut=st.integers(0, 2200),
    compressed=st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_reads_or_is_bad_input(
    tmp_path: Path, start: bytes, at: int, words: list[tuple[int, int]], cut: int, compressed: bool
) -> None:
    def scramble(raw: bytearray) -> bytes:
        raw[at : at + len(start)] = start
        for word, value in words:
            raw = patched(raw, 4 * word, value)
        out = bytes(raw)[: len(raw) - cut]
        return gzip.compress(out, 1) if compressed else out

    path = damaged(tmp_path, scramble)
    try:
        got = read_mrc(path)
    except BadInputError:
        return
    assert got.ndim == 3
    assert got.nbytes <= 2 * (path.stat().st_size * (1032 if compressed else 1))


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", stack("float32"), 1.0)
    with pytest.raises(BadInputError, match="section 6"):
        read_mrc(tmp_path / "a.mrcs", (0, 5))


def test_a_missing_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_volume(tmp_path / "none.mrc")
