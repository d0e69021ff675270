"""The Zarr project: arrays whose shard is the write unit."""

import importlib.util
import itertools
import json
import os
import threading
import time
from collections.abc import Mapping
from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync

from cryoseg_dist import __version__
from cryoseg_dist.errors import BadInputError, CryosegError, DamagedDataError
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store.faults import storage_faults
from cryoseg_dist.store.location import create_group, is_url, open_group

SCHEMA_VERSION = 1
# Says where the arrays are, when they are not in the folder.
POINTER = "store.json"
# What the codecs raise for bytes that are not what was encoded.
CODEC_FAULTS = (RuntimeError, ValueError)

# The Rust pipeline reads parts of shards about twice as fast as zarr's own; both read what the other wrote.
if importlib.util.find_spec("zarrs") is not None:
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


class StoreError(CryosegError):
    """The project on disk does not hold what was asked of it."""


def now() -> str:
    """Date and time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader or a crash sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp, whose files nobody else may read.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with storage_faults(path):
            with partial.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def shards_of(region: Region, shards: tuple[int, ...], shape: tuple[int, ...]) -> list[Region]:
    """The whole shards that a region touches, cut at the array's end."""
    starts = [range(a - a % s, b, s) for a, b, s in zip(region.start, region.stop, shards, strict=True)]
    return [
        Region(region.array, start, tuple(min(a + s, n) for a, s, n in zip(start, shards, shape, strict=True)))
        for start in itertools.product(*starts)
    ]


def _shard_extent(array: Any) -> tuple[int, ...]:
    """What is written at once: a shard, or a chunk where each is a file of its own."""
    return tuple(array.shards or array.chunks)


def nothing(dtype: str) -> float:
    """The value of samples that nobody wrote: one that no result holds, for a shard full of it gets no file."""
    found = np.dtype(dtype)
    return float(np.finfo(found).min) if found.kind == "f" else 0


def _selection(region: Region) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(region.start, region.stop, strict=True))


def _check_inside(region: Region, shape: tuple[int, ...]) -> None:
    inside = len(region.start) == len(region.stop) == len(shape) and all(
        0 <= a <= b <= n for a, b, n in zip(region.start, region.stop, shape, strict=True)
    )
    if not inside:
        raise StoreError(
            f"{region.array}: expected a region inside {tuple(shape)}, got {region.start} to {region.stop}."
        )


class Project:
    """A project folder: ``ledger/``, ``runs/``, ``export/``, and all arrays in ``store.zarr`` or at a URL.

    Cheap to open, so that every worker opens its own; safe to use from several threads.

    Parameters
    ----------
    root : Path
        The folder; it is created when ``create`` is true.
    create : bool
    store : str, optional
        URL of the arrays, kept in the project when it is created. Who knows it needs not see the folder.

    Attributes
    ----------
    location : str
        Folder or URL of the arrays.
    export : Path
        Folder of the files that others script against.
    command : tuple of str
        Command line that arrays say they were made by.

    Raises
    ------
    BadInputError
        The folder is not a project, was written by a newer version, or its arrays are elsewhere.
    StoreUnavailableError
        The storage refuses.
    """

    def __init__(self, root: Path, *, create: bool = False, store: str | None = None) -> None:
        self.root = Path(root)
        self.export = self.root / "export"
        self.location = self._find(create, store)
        if create:
            self._ensure_group()
        try:
            self._group = open_group(self.location)
        except FileNotFoundError:
            raise BadInputError(
                str(self.root),
                "a project folder",
                f"no arrays at {self.location}",
                "`cryoseg run --project` makes one.",
            ) from None
        version = self._group.attrs.get("cryoseg_schema")
        if version != SCHEMA_VERSION:
            raise BadInputError(
                str(self.root), f"schema version {SCHEMA_VERSION}", str(version), "Use the version that wrote it."
            )
        self._arrays: dict[str, Any] = {}
        self.command: tuple[str, ...] = ()

    def _find(self, create: bool, store: str | None) -> str:
        """Where the arrays are; a new project keeps a URL before anything is written there."""
        folder = self.root / "store.zarr"
        held = self.read_json(POINTER)
        if create and held is None and store is not None and not (folder / "zarr.json").exists():
            try:
                open_group(store)
            except FileNotFoundError:
                held = {"url": store}
                self.write_json(POINTER, held)
            else:
                raise BadInputError("engine.store", "a prefix without arrays", f"those of another project at {store}")
        at = str(folder) if held is None else str(held["url"])
        # A worker elsewhere knows the URL and sees no folder.
        if store is not None and at != store and (held is not None or folder.exists()):
            raise BadInputError("engine.store", f"{at}, where the arrays are", store, "Name another project.")
        return at if store is None else store

    def _ensure_group(self) -> None:
        if not is_url(self.location):
            if (Path(self.location) / "zarr.json").exists():
                return
            Path(self.location).mkdir(parents=True, exist_ok=True)
        try:
            open_group(self.location)
        except FileNotFoundError:
            create_group(self.location, {"cryoseg_schema": SCHEMA_VERSION})

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker that receives a project opens it anew.
        return _opened, (self.root, self.location if is_url(self.location) else None)

    def exporting(self, folder: Path) -> "Project":
        """The same project, whose results go to another folder."""
        other = copy(self)
        other.export, other.command = folder, self.command
        return other

    def ledger_path(self, run_id: str) -> Path:
        """Journal of a stage run."""
        return self.root / "ledger" / f"{run_id}.jsonl"

    def _made_by(self) -> dict[str, str]:
        """What makes arrays now; the run that an array is named after has its manifest in ``runs``."""
        return {"cryoseg_dist": __version__, "command": " ".join(self.command), "time": now()}

    def create(self, spec: ArraySpec) -> None:
        """Create an array; an equal one that exists is kept with its contents.

        Raises
        ------
        StoreError
            An array of that name but of another shape, dtype, chunk or shard extent exists, or the shards do
            not consist of whole chunks.
        """
        ranks = {len(spec.shape), len(spec.dims), len(spec.chunks), len(spec.shards)}
        if len(ranks) != 1 or any(c < 1 or s % c for c, s in zip(spec.chunks, spec.shards, strict=True)):
            raise StoreError(
                f"{spec.name}: expected shards of whole chunks along {spec.dims}, got shards {spec.shards} "
                f"of chunks {spec.chunks} for shape {spec.shape}."
            )
        if self.exists(spec.name):
            held = self._array(spec.name)
            found = (held.shape, str(held.dtype), held.chunks, _shard_extent(held))
            wanted = (spec.shape, str(np.dtype(spec.dtype)), spec.chunks, spec.shards)
            if found != wanted:
                raise StoreError(
                    f"{spec.name}: expected {wanted}, got {found}. Remove the run's folder to compute it anew."
                )
            return
        # Noise does not compress; labels and masks do.
        compressed = np.dtype(spec.dtype).kind in "iub"
        with storage_faults(self.location):
            array = self._group.create_array(
                spec.name,
                shape=spec.shape,
                dtype=spec.dtype,
                chunks=spec.chunks,
                # A shard of one chunk is written as a chunk: the index takes a third of the time.
                shards=None if spec.shards == spec.chunks else spec.shards,
                fill_value=nothing(spec.dtype),
                # The checksum tells of bytes that changed on the disk.
                compressors=[ZstdCodec(level=3), Crc32cCodec()] if compressed else [Crc32cCodec()],
                dimension_names=spec.dims,
                attributes={**spec.attributes, "unit": spec.unit, "doc": spec.doc, "provenance": self._made_by()},
            )
        self._arrays[spec.name] = array

    def remove(self, name: str) -> None:
        """Remove an array and what it holds, if it exists."""
        self._arrays.pop(name, None)
        if self.exists(name):
            with storage_faults(self.location):
                del self._group[name]

    def array_names(self) -> list[str]:
        """Names of all arrays."""
        if is_url(self.location):
            with storage_faults(self.location):
                held = self._group.members(max_depth=None)
                return sorted(name for name, member in held if isinstance(member, zarr.Array))
        top = self.root / "store.zarr"
        found = []
        for folder, below, files in os.walk(top):
            if "zarr.json" in files:
                metadata = json.loads(Path(folder, "zarr.json").read_text(encoding="utf-8"))
                if metadata.get("node_type") == "array":
                    found.append(Path(folder).relative_to(top).as_posix())
                    below.clear()
        return sorted(found)

    def exists(self, name: str) -> bool:
        """Whether an array of that name was created."""
        if name in self._arrays:
            return True
        with storage_faults(self.location):
            return name in self._group

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            try:
                with storage_faults(self.location):
                    self._arrays[name] = self._group[name]
            except KeyError:
                raise StoreError(
                    f"{name}: expected an array in {self.location}, got none. Run its stage first."
                ) from None
        return self._arrays[name]

    def spec(self, name: str) -> ArraySpec:
        """What :meth:`create` was given for an array."""
        array = self._array(name)
        attributes = dict(array.attrs)
        attributes.pop("provenance", None)
        return ArraySpec(
            name,
            tuple(array.shape),
            tuple(array.metadata.dimension_names),
            str(array.dtype),
            tuple(array.chunks),
            _shard_extent(array),
            attributes.pop("unit", ""),
            attributes.pop("doc", ""),
            attributes,
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Extent of an array."""
        return tuple(self._array(name).shape)

    def attributes(self, name: str) -> dict[str, Any]:
        """Attributes of an array."""
        return dict(self._array(name).attrs)

    def whole(self, name: str) -> Region:
        """The region that covers an array."""
        shape = self.shape(name)
        return Region(name, (0,) * len(shape), shape)

    def read(self, region: Region) -> np.ndarray:
        """Read a region.

        Raises
        ------
        StoreError
            The array is missing or smaller than the region.
        DamagedDataError
            A shard is lost, or is not what was written.
        StoreUnavailableError
            The storage refuses.
        """
        array = self._array(region.array)
        _check_inside(region, array.shape)
        try:
            with storage_faults(self.location):
                self._check_written(region)
                return np.asarray(array[_selection(region)])
        except CODEC_FAULTS as fault:
            raise self._damaged(region, array, fault) from None

    def shards(self, region: Region) -> list[tuple[Region, Path]]:
        """The shards that a region touches, each with its file (at a URL: its key), which need not exist."""
        array = self._array(region.array)
        extent = _shard_extent(array)
        top = Path() if is_url(self.location) else Path(self.location)
        folder = top / region.array / "c"
        return [
            (shard, folder.joinpath(*(str(a // s) for a, s in zip(shard.start, extent, strict=True))))
            for shard in shards_of(region, extent, array.shape)
        ]

    def holds(self, shard: Path) -> bool:
        """Whether the file (or key) of a shard exists."""
        if not is_url(self.location):
            return shard.exists()
        with storage_faults(self.location):
            return bool(sync(self._group.store.exists(str(PurePosixPath(shard)))))

    def _drop(self, shard: Path) -> None:
        """Remove the file (or key) of a shard, if it exists."""
        if not is_url(self.location):
            shard.unlink(missing_ok=True)
        elif self.holds(shard):
            sync(self._group.store.delete(str(PurePosixPath(shard))))

    def _check_written(self, region: Region) -> None:
        """A shard of floats without its file was never written, or is lost; one of integers may hold nothing but zeros."""
        if self._array(region.array).fill_value == 0:
            return
        for shard, path in self.shards(region):
            if not self.holds(path):
                raise DamagedDataError(region.array, shard.start, shard.stop, "no file")

    def _damaged(self, region: Region, array: Any, fault: Exception) -> DamagedDataError:
        """Which shard of a region cannot be decoded."""
        shards = shards_of(region, _shard_extent(array), array.shape)
        for shard in shards:
            try:
                array[_selection(shard)]
            except CODEC_FAULTS as found:
                return DamagedDataError(region.array, shard.start, shard.stop, str(found))
        return DamagedDataError(region.array, region.start, region.stop, str(fault))

    def write(self, region: Region, values: np.ndarray) -> None:
        """Write whole shards.

        Raises
        ------
        StoreError
            The values have another shape than the region, or the region cuts a shard: two writers in one
            shard would lose data silently.
        StoreUnavailableError
            The storage is full or refuses.
        """
        array = self._array(region.array)
        if values.shape != region.shape:
            raise StoreError(f"{region.array}: expected values of shape {region.shape}, got {values.shape}.")
        _check_inside(region, array.shape)
        shards = _shard_extent(array)
        for axis, (a, b, s, n) in enumerate(zip(region.start, region.stop, shards, array.shape, strict=True)):
            if a % s or (b % s and b != n):
                raise StoreError(
                    f"{region.array}: expected whole shards of {s} along axis {axis}, got {a}:{b} of {n}. "
                    "Plan units that own their shards."
                )
        with storage_faults(self.location):
            for shard, path in self.shards(region):
                if any(b - a != s for a, b, s in zip(shard.start, shard.stop, shards, strict=True)):
                    # One that the array's end cuts would be read first, and it may be damaged.
                    self._drop(path)
            array[_selection(region)] = values

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON file below the project, atomically."""
        write_atomically(self.root / name, json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a small JSON file below the project; None where there is none."""
        path = self.root / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _opened(root: Path, store: str | None) -> Project:
    return Project(root, store=store)
