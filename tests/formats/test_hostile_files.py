"""Files that lie: refused in words, at once, and before any memory is taken for what they promise."""

import gzip
import io
import lzma
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryoseg_dist.errors import BadInputError, CryosegError
from cryoseg_dist.formats import memory
from cryoseg_dist.formats.images import image_header, read_images
from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.formats.star import image_reads
from cryoseg_dist.schema.work import ImageFile
from tests.fuzz.readers import FORMATS, STAR, STAR_30, TOML, attempt, cs_table

MOST_BYTES = 16 << 20
# tifffile tells of every odd tag; the runs below make thousands.
pytestmark = pytest.mark.filterwarnings("ignore")
EDIT = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 4000), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), st.integers(0, 4000), st.binary(min_size=1, max_size=24)),
    st.tuples(st.just("insert"), st.integers(0, 4000), st.sampled_from([b"nan", b"-1e400", b"\xff\xfe", b"\n", b"loop_"])),
    st.tuples(st.just("cut"), st.integers(0, 4000), st.binary(min_size=1, max_size=64)),
)  # fmt: skip


def edited(raw: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, data in edits:
        at = place % (len(raw) + 1)
        end = at + len(data) if kind in ("set", "cut") else at
        raw = raw[:at] + (b"" if kind == "cut" else data) + raw[end:]
    return raw


@pytest.mark.parametrize("name", FORMATS)
@given(which=st.integers(0, 9), edits=st.lists(EDIT, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_read_or_refused_in_words(
    tmp_path: Path, name: str, which: int, edits: list[tuple[str, int, bytes]]
) -> None:
    form = FORMATS[name]
    seeds = form.seeds(tmp_path)
    path = tmp_path / f"input{form.suffix}"
    path.write_bytes(edited(seeds[which % len(seeds)], edits))
    attempt(form, path)


@pytest.mark.parametrize("name", FORMATS)
def test_what_it_is_made_of_reads(tmp_path: Path, name: str) -> None:
    form = FORMATS[name]
    for i, seed in enumerate(form.seeds(tmp_path)):
        path = tmp_path / f"input{i}{form.suffix}"
        path.write_bytes(seed)
        assert attempt(form, path)


def tiff(shape: tuple[int, int], compression: int, strip: bytes) -> bytes:
    """A TIFF of one strip whose tags say whatever they are told."""
    tags = [(256, 4, shape[1]), (257, 4, shape[0]), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 8),
            (277, 3, 1), (278, 4, shape[0]), (279, 4, len(strip))]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + body + struct.pack("<I", 0)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data


def table(**columns: object) -> bytes:
    held = cs_table()
    for name, value in columns.items():
        held[name.replace("__", "/")] = value
    buffer = io.BytesIO()
    np.save(buffer, held)
    return buffer.getvalue()


def mrc(folder: Path, *words: tuple[int, int]) -> bytes:
    write_stack(folder / "good.mrcs", np.zeros((2, 4, 5), np.float32), 1.0)
    raw = bytearray((folder / "good.mrcs").read_bytes())
    for word, value in words:
        raw[4 * word : 4 * word + 4] = value.to_bytes(4, "little", signed=True)
    return bytes(raw)


ZEROS = bytes(64 << 20)
ROW = "000001@a.mrcs 0007 1 3.5 -1 1\n"
HOSTILE: list[tuple[str, Callable[[Path], bytes], str]] = [
    ("mrc", lambda d: mrc(d, (0, 10**6), (1, 10**6), (2, 1)), "truncated"),
    ("mrc", lambda d: mrc(d, (0, -5)), "extents"),
    ("mrc", lambda d: mrc(d, (23, 2**31 - 1)), "truncated"),
    ("mrc.gz", lambda d: gzip.compress(mrc(d, (0, 10**6), (1, 10**6), (2, 10**6))), "truncated"),
    ("mrc.gz", lambda d: gzip.compress(b"\x1f\x8b" * 1000), "mode"),
    ("tiff", lambda d: tiff((10**6, 10**6), 1, bytes(100)), "truncated"),
    ("tiff", lambda d: tiff((2**31 - 1, 2**31 - 1), 8, zlib.compress(bytes(100))), "free memory|damaged|TIFF"),
    ("tiff", lambda d: tiff((8, 8), 8, zlib.compress(ZEROS)), "strips of 64 bytes"),
    ("tiff", lambda d: tiff((8, 8), 34925, lzma.compress(ZEROS)), "strips of 64 bytes"),
    ("tiff", lambda d: tiff((8, 8), 8, b"no deflate at all"), "TIFF"),
    ("tiff", lambda d: b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + bytes(5), "TIFF"),
    ("tiff", lambda d: b"MM\0*" + bytes(2), "TIFF"),
    ("spider", lambda d: FORMATS["spider"].seeds(d)[1][:-4], "truncated"),
    ("cs", lambda d: npy("{'descr': [('uid', '<u8')], 'fortran_order': False, 'shape': (10**12,), }\n"), "cryoSPARC"),
    ("cs", lambda d: npy(f"{{'descr': [('uid', '<u8')], 'fortran_order': False, 'shape': ({10**12},), }}\n"), "cryoSPARC"),
    ("cs", lambda d: npy(f"{{'descr': [('uid', 'V0')], 'fortran_order': False, 'shape': ({10**12},), }}\n"), "cryoSPARC"),
    ("cs", lambda d: npy("(" * 150_000), "cryoSPARC"),
    ("cs", lambda d: npy("-" * 150_000 + "1"), "cryoSPARC"),
    ("cs", lambda d: npy("{" * 10**6), "cryoSPARC"),
    ("cs", lambda d: npy("{'descr': [('uid', '|O')], 'fortran_order': False, 'shape': (1,), }\n", b"cos\nsystem\n"), "cryoSPARC"),
    ("cs", lambda d: table(alignments3D__pose=np.nan), "pose: expected finite"),
    ("cs", lambda d: table(alignments3D__shift=np.inf), "shift: expected finite"),
    ("star", lambda d: STAR.replace("3.5", "nan").encode(), "rlnAngleRot"),
    ("star", lambda d: STAR.replace("3.5", "-inf").encode(), "rlnAngleRot"),
    ("star", lambda d: STAR.replace("0007 1 ", "0007 1e30 ").encode(), "rlnOpticsGroup"),
    ("star", lambda d: STAR.replace("_rlnOriginXAngst", "_rlnAngleRot").encode(), "every column once"),
    ("star", lambda d: STAR_30.replace("_rlnMagnification", "_rlnVoltage").encode(), "every column once"),
    ("star", lambda d: STAR.replace("000001@", "²@").encode(), "section@stack"),
    ("star", lambda d: STAR.replace("000001@", "9" * 5000 + "@").encode(), "section@stack"),
    ("star", lambda d: STAR.replace("3.5", "x" * 10**6).encode(), "rlnAngleRot"),
    ("star", lambda d: STAR.encode("utf-16"), "expected"),
    ("star", lambda d: b"\0" * 10**6, "expected"),
    ("csv", lambda d: b"x_px,y_px\n1,2\nnan,3\n", "row 2"),
    ("csv", lambda d: b"x_px,y_px\n1,1e999\n", "row 1"),
    ("csv", lambda d: b"x_px,y_px\n" + b"9" * 10**6, "expected"),
    ("box", lambda d: b"1 2 inf 4\n", "row 1"),
    ("coordinates.star", lambda d: b"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\ninf 2\n", "rlnCoordinateX"),
    ("toml", lambda d: b"a = " + b"[" * 10**5, "TOML"),
    ("toml", lambda d: ("[data]\npixel_size = " + "9" * 10**5).encode(), "TOML"),
    ("toml", lambda d: TOML.replace("1.5", "nan").encode(), "pixel_size"),
    ("toml", lambda d: TOML.replace("130", "1e400").encode(), "diameter"),
    ("toml", lambda d: TOML.replace("diameter", '"dïameter\\u202e"').encode(), "unknown setting"),
    ("toml", lambda d: b"\xff\xfe[data]", "TOML"),
    ("fsc.xml", lambda d: b'<!DOCTYPE f [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><fsc>&b;</fsc>', "document type"),
    ("fsc.xml", lambda d: b"<a>" * 10**4, "XML"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "says"), HOSTILE, ids=[f"{i}-{h[0]}" for i, h in enumerate(HOSTILE)])
def test_a_lie_is_told_before_memory_is_taken(
    tmp_path: Path, name: str, make: Callable[[Path], bytes], says: str
) -> None:
    form = FORMATS[name]
    path = tmp_path / f"liar{form.suffix}"
    path.write_bytes(make(tmp_path))
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(CryosegError, match=says) as caught:
            form.read(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES + 8 * size
    finally:
        tracemalloc.stop()
    assert "allocate" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_what_the_memory_does_not_hold_is_refused_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A bomb that keeps its promise: a quarter of a megabyte of gzip that is 64 MB of zeros.
    monkeypatch.setattr(memory, "free_bytes", lambda: 32 << 20)
    bomb = bytearray(mrc(tmp_path, (0, 4096), (1, 4096), (2, 1))[:1024])
    path = tmp_path / "bomb.mrc.gz"
    path.write_bytes(gzip.compress(bytes(bomb) + ZEROS, 9))
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError, match="free memory"):
            read_images(ImageFile(str(path)))
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((8192, 8192), np.uint8), compression="zlib", rowsperstrip=8)
    with pytest.raises(BadInputError, match="free memory"):
        read_images(ImageFile(str(tmp_path / "bomb.tif")))


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mrc")
    (tmp_path / "loop.mrc").symlink_to(tmp_path / "loop.mrc")
    (tmp_path / "nowhere.mrc").symlink_to(tmp_path / "none")
    (tmp_path / "folder.mrc").mkdir()
    names = ["fifo.mrc", "loop.mrc", "nowhere.mrc", "folder.mrc", "nul\0.mrc", "x" * 5000 + ".mrc"]
    for path in (*(tmp_path / name for name in names), Path("/dev/zero"), Path("/proc/self/mem")):
        with pytest.raises(BadInputError, match=r"expected a (readable )?file|MRC"):
            image_header(path)
        with pytest.raises(BadInputError):
            read_images(ImageFile(str(path)))


@pytest.mark.parametrize("name", ["0@a", "-1@a", "1.5@a", "@a", "a", "1", "٣@a\u202e", "1e3@a"])
def test_images_of_no_number_are_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="section@stack"):
        image_reads([name], Path())
