from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.store.checksums import sha256_of
from cryoseg_dist.store.weights import read_weights, write_weights

TENSORS = {"down.0.weight": np.arange(12, dtype=np.float16).reshape(3, 4).T, "bias": np.float32([1.5])}


def test_weights_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "models" / "m.safetensors"
    write_weights(path, TENSORS, {"architecture": {"depth": 4}, "seed": 7})
    tensors, metadata = read_weights(path)
    assert metadata == {"architecture": {"depth": 4}, "seed": 7}
    assert set(tensors) == set(TENSORS)
    for name, values in TENSORS.items():
        assert tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(tensors[name], values)
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def test_digest_tells_weights_apart(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_weights(tmp_path / name, TENSORS, {"seed": seed})
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b") != sha256_of(tmp_path / "c")


@pytest.mark.parametrize("raw", [b"", b"\x80\x04N.", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}"])
def test_other_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(BadInputError, match=r"m\.safetensors"):
        read_weights(tmp_path / "m.safetensors")


def test_weights_without_our_metadata_or_file_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, str(tmp_path / "foreign.safetensors"))
    with pytest.raises(BadInputError, match="without its metadata"):
        read_weights(tmp_path / "foreign.safetensors")
    with pytest.raises(BadInputError, match="no such file"):
        read_weights(tmp_path / "none.safetensors")
