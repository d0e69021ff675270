"""What lies below the arrays' place, as folders of files or as prefixes of objects: how large it is, and its removal."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cryoseg_dist.store.faults import storage_faults
from cryoseg_dist.store.location import is_url, object_store

# Keys that one answer of an object store lists, and one request removes.
KEYS_AT_ONCE = 1000

Answer = TypeVar("Answer")


class Tree(Protocol):
    """Names are relative to the arrays' place, with slashes between."""

    def below(self, name: str) -> list[str]:
        """Names of the folders in a folder, in order; empty where there is none."""

    def size(self, name: str) -> int:
        """Bytes of all that lies in a folder."""

    def remove(self, name: str) -> None:
        """Remove a folder and all in it, if it exists."""


def tree_of(location: str) -> Tree:
    """The tree at a folder or a URL."""
    return Objects(location) if is_url(location) else Files(Path(location))


def disk_bytes(path: Path) -> int:
    """Bytes that a file or folder takes on the disk."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(512 * p.stat().st_blocks for p in files)


class Files:
    """Folders on a disk.

    Parameters
    ----------
    root : Path
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def below(self, name: str) -> list[str]:
        """Names of the folders in a folder."""
        return sorted(
            path.relative_to(self._root).as_posix() for path in (self._root / name).glob("*") if path.is_dir()
        )

    def size(self, name: str) -> int:
        """Bytes on the disk."""
        return disk_bytes(self._root / name)

    def remove(self, name: str) -> None:
        """Remove a folder and all in it."""
        if (self._root / name).exists():
            shutil.rmtree(self._root / name)


class Objects:
    """Prefixes of an object store.

    Parameters
    ----------
    location : str
        URL.
    """

    def __init__(self, location: str) -> None:
        self._location, self._store = location, object_store(location)

    def below(self, name: str) -> list[str]:
        """Names of the prefixes in a prefix."""
        import obstore

        return sorted(self._asked(lambda: obstore.list_with_delimiter(self._store, name or None)["common_prefixes"]))

    def size(self, name: str) -> int:
        """Bytes of the objects."""
        return sum(size for batch in self._objects(name) for _, size in batch)

    def remove(self, name: str) -> None:
        """Remove all objects of a prefix."""
        import obstore

        for batch in self._objects(name):
            self._asked(lambda keys=[key for key, _ in batch]: obstore.delete(self._store, keys))  # type: ignore[misc]

    def _objects(self, name: str) -> list[list[tuple[str, int]]]:
        """Key and bytes of each object, in batches."""
        import obstore

        def listed() -> list[list[tuple[str, int]]]:
            batches: Any = obstore.list(self._store, name, chunk_size=KEYS_AT_ONCE)
            return [[(found["path"], found["size"]) for found in batch] for batch in batches]

        return self._asked(listed)

    def _asked(self, request: Callable[[], Answer]) -> Answer:
        with storage_faults(self._location):
            return request()
