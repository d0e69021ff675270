"""Network weights on disk: safetensors, which hold numbers and no code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cryoseg_dist.errors import BadInputError


def write_weights(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write named arrays and JSON metadata, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(arrays, str(partial), {"cryoseg": json.dumps(dict(metadata), sort_keys=True)})
    partial.replace(path)


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read named arrays and metadata.

    Raises
    ------
    BadInputError
        Missing file, not safetensors, or not written by this package.
    """
    if not path.is_file():
        raise BadInputError(str(path), "a safetensors file", "no such file", "`cryoseg train` writes one.")
    try:
        with safe_open(str(path), framework="numpy") as handle:
            text = (handle.metadata() or {}).get("cryoseg")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        if text is None:
            raise BadInputError(str(path), "weights written by this package", "a file without its metadata")
        metadata = json.loads(text)
    except (SafetensorError, json.JSONDecodeError, OSError) as fault:
        raise BadInputError(str(path), "a safetensors file", str(fault)) from None
    return tensors, metadata
