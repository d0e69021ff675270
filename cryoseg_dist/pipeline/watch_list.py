"""Micrographs in the order in which they came: a list that only grows, and the folder that feeds it."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.images import image_header, read_images
from cryoseg_dist.schema.work import ImageFile

LIST_NAME = "watch.jsonl"
# Rows of the arrays that a growing list fills; a row that was never written takes no room.
CAPACITY = 100_000
SUFFIXES = (".mrc", ".mrcs", ".tif", ".tiff", ".mrc.gz")
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Arrival:
    """A micrograph that has arrived: its path, size, digest of its bytes, and what its header says (or why it says nothing)."""

    path: str
    size: int
    digest: str
    shape: tuple[int, int, int] | None = None
    pixel_size: float | None = None
    fault: str = ""


class WatchList:
    """The journal of arrivals: a micrograph keeps its number for ever, so nothing that is finished is computed again.

    Parameters
    ----------
    path : Path
        It is begun where there is none.

    Raises
    ------
    BadInputError
        The journal is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrivals: list[Arrival] = []
        self._digests: set[str] = set()
        self._paths: set[str] = set()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"list": secrets.token_hex(8)})
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            # Cut by a killed driver: that micrograph arrives anew.
            os.truncate(path, whole)
        lines = data[:whole].splitlines()
        try:
            self.name = str(json.loads(lines[0])["list"])
            for line in lines[1:]:
                values = json.loads(line)
                values["shape"] = None if values["shape"] is None else tuple(values["shape"])
                self._take(Arrival(**values))
        except (ValueError, KeyError, TypeError, IndexError) as fault:
            raise BadInputError(str(path), "a list of arrivals", str(fault), "Start a new project.") from None

    def __len__(self) -> int:
        return len(self.arrivals)

    def __contains__(self, path: str) -> bool:
        return path in self._paths

    def _take(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        self._digests.add(arrival.digest)
        self._paths.add(arrival.path)

    def add(self, arrival: Arrival) -> bool:
        """Number a micrograph; False where the same bytes, or a file of that name, came before.

        Raises
        ------
        BadInputError
            The list is full.
        """
        if arrival.digest in self._digests or arrival.path in self._paths:
            return False
        if len(self) >= CAPACITY:
            raise BadInputError(str(self.path), f"at most {CAPACITY} micrographs", "more", "Start a new project.")
        self._append(asdict(arrival))
        self._take(arrival)
        return True

    def _append(self, values: object) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


@dataclass
class _Seen:
    """What was last known of a file, and since when it has stayed so."""

    size: int
    modified: int
    since: float
    checked: bool = False
    told: bool = False


@dataclass
class Arrivals:
    """Tells which files of a folder are complete.

    A file is complete when its size and time of change have stayed still for ``settle`` seconds and all the pixels
    that its header promises can be read. One that stays unreadable for ``patience`` seconds arrives as a broken one.

    Attributes
    ----------
    folder : Path
    settle, patience : float
        Seconds.
    """

    folder: Path
    settle: float
    patience: float
    _seen: dict[Path, _Seen] = field(default_factory=dict)

    def complete(self, known: WatchList, now: float) -> Iterator[Arrival]:
        """Files that are complete now and not in the list, by time of change."""
        try:
            present = {Path(name): stat for name, stat in self._files(known)}
        except OSError:
            # A mount that does not answer: the files are there again when it does.
            return
        for gone in self._seen.keys() - present.keys():
            del self._seen[gone]
        for path, stat in sorted(present.items(), key=lambda item: (item[1].st_mtime_ns, item[0])):
            seen = self._seen.get(path)
            if seen is None or (seen.size, seen.modified) != (stat.st_size, stat.st_mtime_ns):
                self._seen[path] = _Seen(stat.st_size, stat.st_mtime_ns, now)
                continue
            still = now - seen.since
            if seen.told or still < self.settle or (seen.checked and still < self.patience):
                continue
            seen.checked = True
            arrival = examine(path, tolerate=still >= self.patience)
            if arrival is not None:
                # A copy that the list refuses is not read again.
                seen.told = True
                yield arrival

    def _files(self, known: WatchList) -> Iterator[tuple[str, os.stat_result]]:
        """Images that are not in the list; plain names, for months of them are looked through every few seconds."""

        def unreadable(fault: OSError) -> None:
            if not isinstance(fault, PermissionError):
                raise fault

        for folder, _, names in os.walk(self.folder, onerror=unreadable):
            for name in names:
                path = f"{folder}/{name}"
                if name.startswith(".") or not name.lower().endswith(SUFFIXES) or path in known:
                    continue
                # Deleted or renamed since it was listed.
                with suppress(FileNotFoundError):
                    yield path, os.stat(path)


def examine(path: Path, *, tolerate: bool) -> Arrival | None:
    """Read a whole file once; None where it is not whole, or gone, unless a broken one is to be tolerated."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError:
        return None
    try:
        header = image_header(path)
        read_images(ImageFile(str(path)))
    except BadInputError as fault:
        return Arrival(str(path), size, digest.hexdigest(), fault=fault.found) if tolerate and path.exists() else None
    return Arrival(str(path), size, digest.hexdigest(), header.shape, header.pixel_size)
