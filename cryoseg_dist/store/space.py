"""Room on the disk for what is about to be written."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.schema.work import Region

GIB = 1 << 30


def bytes_of(regions: Iterable[Region], dtypes: Mapping[str, str]) -> int:
    """Bytes that regions of arrays take, uncompressed.

    Parameters
    ----------
    regions : iterable of Region
    dtypes : Mapping of str to str
        NumPy dtype name of each array.
    """
    sizes = {name: np.dtype(dtype).itemsize for name, dtype in dtypes.items()}
    total = 0
    for region in regions:
        n = sizes[region.array]
        for a, b in zip(region.start, region.stop, strict=True):
            n *= b - a
        total += n
    return total


def require_room(root: Path, needed: int, what: str) -> None:
    """Refuse what does not fit the disk.

    Raises
    ------
    StageFailedError
        Fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StageFailedError(
            f"{what}: expected {needed / GIB:.3g} GiB of room in {root}, got {free / GIB:.3g}. Make room "
            "(`cryoseg clean` tells what may go), then give the same command again; --set engine.check_space=false "
            "starts regardless."
        )
