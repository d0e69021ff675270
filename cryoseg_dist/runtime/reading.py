"""Resolving the reads of units, the same in every engine."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from cryoseg_dist.errors import BadInputError, DamagedDataError
from cryoseg_dist.formats.images import read_images
from cryoseg_dist.schema.work import ImageFile, Read
from cryoseg_dist.store.project import Project


def read(project: Project, source: Read) -> np.ndarray:
    """Read a region of the store, images of a foreign file, or several of them joined along the first axis.

    Raises
    ------
    BadInputError
        A foreign file cannot be read, or a shard of another project, which cannot be computed again here.
    StoreError
        The store does not hold the region.
    """
    if isinstance(source, tuple):
        return np.concatenate([read(project, part) for part in source])
    if isinstance(source, ImageFile):
        return read_images(source)
    if source.project is None:
        return project.read(source)
    try:
        return _other(source.project).read(source)
    except DamagedDataError as fault:
        where = f"{source.project}: {fault.array}, {list(fault.start)} to {list(fault.stop)}"
        raise BadInputError(where, "a whole shard", fault.got, "Run that project again, or verify it.") from None


@lru_cache(maxsize=8)
def _other(root: str) -> Project:
    return Project(Path(root))


def read_all(project: Project, sources: Mapping[str, Read]) -> dict[str, np.ndarray]:
    """Read named inputs."""
    return {name: read(project, source) for name, source in sources.items()}


class LazyInputs(Mapping[str, np.ndarray]):
    """Named inputs, each read when it is asked for and not kept: for units that take more than fits the memory."""

    def __init__(self, project: Project, sources: Mapping[str, Read]) -> None:
        self._project, self._sources = project, sources

    def __getitem__(self, name: str) -> np.ndarray:
        return read(self._project, self._sources[name])

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
