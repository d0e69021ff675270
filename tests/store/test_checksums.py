"""Checksums: of files, and of what sha256sum makes of ours."""

import hashlib
import subprocess
from pathlib import Path

from cryoseg_dist.store.checksums import digest_of, read_sums, sha256_of, write_sums


def test_sums_are_those_of_the_system_tool(tmp_path: Path) -> None:
    (tmp_path / "map.mrc").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "ünïcode name.star").write_text("data_\n")
    (tmp_path / ".half.partial").write_text("no result")
    (tmp_path / "folder").mkdir()
    write_sums(tmp_path)
    assert set(read_sums(tmp_path)) == {"map.mrc", "ünïcode name.star"}
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count(": OK") == 2
    (tmp_path / "map.mrc").write_bytes(b"x")
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True).returncode == 1
    # Written again, they do not sum themselves.
    write_sums(tmp_path)
    assert set(read_sums(tmp_path)) == {"map.mrc", "ünïcode name.star"}
    assert read_sums(tmp_path / "folder") == {}


def test_a_digest_tells_size_time_and_contents(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    found = digest_of(path)
    assert (found.size, found.modified) == (3, path.stat().st_mtime_ns)
    assert found.sha256 == sha256_of(path) == hashlib.sha256(b"abc").hexdigest()
