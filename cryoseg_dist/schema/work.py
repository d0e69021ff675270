"""Units of work: what a stage reads, computes and writes, without saying where or how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array of the project store.

    Attributes
    ----------
    name : str
        Path inside the store, ``"<run>/<array>"``.
    shape, dims, dtype
        Extent, dimension names and NumPy dtype name.
    chunks, shards : tuple of int
        Inner chunk and shard extents. The shard is the write unit: no two units write into one shard.
    unit : str
        Physical unit of the values, empty for numbers.
    doc : str
        One line on what the array holds.
    attributes : Mapping
        JSON values kept beside the array (pixel size, provenance).
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    unit: str = ""
    doc: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangular part ``start <= index < stop`` of an array.

    Attributes
    ----------
    array : str
    start, stop : tuple of int
    project : str, optional
        Folder of another project that the array is in; this one when not given.
    """

    array: str
    start: tuple[int, ...]
    stop: tuple[int, ...]
    project: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent along each dimension."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Images in a foreign file (MRC, TIFF, SPIDER): the whole file, or the listed sections of a stack.

    Attributes
    ----------
    path : str
    sections : tuple of int, optional
        Zero-based sections to read, in this order; ``None`` reads all.
    """

    path: str
    sections: tuple[int, ...] | None = None


Read = Region | ImageFile | tuple["Region | ImageFile", ...]
"""One input of a unit. A tuple is read piece by piece and joined along the first axis."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One retryable piece of a stage.

    Attributes
    ----------
    key : str
        Name, stable across runs: ``"segment/000412"``.
    reads : Mapping of str to Read
        Named inputs; they may overlap those of other units.
    writes : Mapping of str to Region
        Named outputs: whole shards, disjoint between units.
    parameters : Mapping
        Small values (JSON or small NumPy arrays) that travel with the unit.
    """

    key: str
    reads: Mapping[str, Read] = field(default_factory=dict)
    writes: Mapping[str, Region] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a stage computed for a unit.

    Attributes
    ----------
    arrays : Mapping of str to ndarray
        One array for each name in ``Unit.writes``, of that region's shape.
    record : Mapping
        Small JSON values, kept in the ledger and given back to the driver. Never pixels.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


class Outcome(StrEnum):
    """How a unit ended."""

    DONE = "done"
    SET_ASIDE = "set_aside"  # bad input: not retried, the run goes on
    QUARANTINED = "quarantined"  # failed or hung again and again


class MapStage(Protocol):
    """A stage whose units do not depend on one another.

    Stages are immutable, picklable values (frozen dataclasses holding their settings); they never open a file.
    """

    @property
    def name(self) -> str:
        """Stage name, as in ``"ctf"``."""

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        """Inputs that all units need (a reference map, class averages): read once a worker."""

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> Any:
        """Build what a worker keeps between units (a network on ``device``), once a worker."""

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        """Compute one unit from its inputs; raise ``BadInputError`` to set it aside with a reason."""
