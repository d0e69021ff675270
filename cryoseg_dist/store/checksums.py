"""Checksums of files: of inputs as they were read, and of results as they were written."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryoseg_dist.store.project import write_atomically

SUMS_NAME = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file as it was read.

    Attributes
    ----------
    size : int
        Bytes.
    modified : int
        Nanoseconds since 1970.
    sha256 : str
        Hexadecimal.
    """

    size: int
    modified: int
    sha256: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(path: Path) -> FileDigest:
    """Size, time of change and checksum of a file."""
    stat = path.stat()
    return FileDigest(stat.st_size, stat.st_mtime_ns, sha256_of(path))


def write_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write ``SHA256SUMS`` of the files in a folder, which ``sha256sum -c`` reads too.

    Parameters
    ----------
    folder : Path
    names : iterable of str, optional
        Every file but hidden ones when not given.
    """
    chosen = sorted(p.name for p in folder.iterdir() if p.is_file()) if names is None else sorted(names)
    lines = [
        f"{sha256_of(folder / name)}  {name}\n" for name in chosen if name != SUMS_NAME and not name.startswith(".")
    ]
    write_atomically(folder / SUMS_NAME, "".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums by file name, as :func:`write_sums` wrote them; empty where there are none."""
    path = folder / SUMS_NAME
    if not path.is_file():
        return {}
    pairs = (line.partition("  ") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, _, name in pairs if name}
