"""Stages that misbehave on purpose, importable by workers."""

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.schema.work import ArraySpec, Read, Region, Unit, UnitResult


class Plain:
    """What all these stages have in common."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @property
    def shared_reads(self) -> Mapping[str, Read]:
        return {}

    def setup(self, shared: Mapping[str, np.ndarray], device: str) -> None:
        return None


@dataclass(frozen=True)
class Squares(Plain):
    """Writes the square of each unit's number; some numbers misbehave.

    Attributes
    ----------
    folder : str
        A file is left here for each attempt.
    faults : Mapping of int to str
        ``bad``, ``poison``, ``once``, ``deadly`` (its process ends, once).
    seconds : float
        Of each unit.
    """

    folder: str
    faults: Mapping[int, str]
    seconds: float = 0.0

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        i = int(unit.parameters["i"])
        attempt = len(list(Path(self.folder).glob(f"{i}-*")))
        (Path(self.folder) / f"{i}-{attempt}-{os.getpid()}").touch()
        time.sleep(self.seconds)
        fault = self.faults.get(i, "")
        if fault == "deadly" and attempt == 0:
            os._exit(1)
        if fault == "bad":
            raise BadInputError(f"unit {i}", "something good", "something bad")
        if fault == "poison" or (fault == "once" and attempt == 0):
            raise ValueError(f"unit {i} failed")
        return UnitResult({"square": np.full((1, 3), i * i, dtype=np.float32)}, {"i": i})


def spec(n: int) -> ArraySpec:
    return ArraySpec("run/squares", (n, 3), ("unit", "value"), "float32", (1, 3), (1, 3))


def units(n: int) -> list[Unit]:
    return [
        Unit(f"squares/{i:04d}", {}, {"square": Region("run/squares", (i, 0), (i + 1, 3))}, {"i": i}) for i in range(n)
    ]


@dataclass(frozen=True)
class Noise:
    """A fold is a volume of noise of its own; a file is left for each that is made."""

    folder: str
    broken: int = -1
    seconds: float = 0.0
    unreadable: int = -1
    deadly: bool = False

    @property
    def partial_shape(self) -> tuple[int, ...]:
        return (6, 6, 4, 3)

    def without(self, unit: Unit, reads: Collection[str]) -> Unit | None:
        return None

    def partial(self, unit: Unit, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        i = int(unit.parameters["i"])
        if self.deadly:
            os._exit(1)
        if i == self.unreadable:
            raise BadInputError(f"images of fold {i}", "whole images", "half of them")
        if i == self.broken:
            raise RuntimeError("broken fold")
        time.sleep(self.seconds)
        (Path(self.folder) / f"{len(list(Path(self.folder).iterdir())):04d}-{i}-{os.getpid()}").touch()
        return np.random.default_rng(i).normal(size=self.partial_shape).astype(np.float32)


def folds(n: int, first: int = 0) -> list[Unit]:
    return [Unit(f"fold/{i:04d}", {}, {}, {"i": i}) for i in range(first, first + n)]


@dataclass(frozen=True)
class Planes(Plain):
    """Writes a plane of a MiB that holds the unit's number."""

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        return UnitResult({"plane": np.full((1, 512, 512), unit.parameters["i"], dtype=np.float32)}, {})


def plane_spec(n: int) -> ArraySpec:
    return ArraySpec("run/planes", (n, 512, 512), ("unit", "y", "x"), "float32", (1, 256, 256), (1, 512, 512))


def plane_units(n: int) -> list[Unit]:
    return [
        Unit(f"planes/{i:04d}", {}, {"plane": Region("run/planes", (i, 0, 0), (i + 1, 512, 512))}, {"i": i})
        for i in range(n)
    ]


@dataclass(frozen=True)
class FailsOn(Plain):
    """Squares that fail in one process: the first that computes a unit, or all on one node."""

    folder: str
    node: str = ""

    def compute(self, unit: Unit, inputs: Mapping[str, np.ndarray], state: Any) -> UnitResult:
        import ray

        time.sleep(0.05)
        i, here = int(unit.parameters["i"]), ray.get_runtime_context().get_node_id()
        sick, me = Path(self.folder) / "sick", Path(self.folder) / f"me-{os.getpid()}"
        if not self.node and not sick.exists():
            # A link appears whole, so that nobody reads a name half written.
            me.write_text(str(os.getpid()))
            with contextlib.suppress(FileExistsError):
                os.link(me, sick)
        if here == self.node or (not self.node and sick.read_text() == str(os.getpid())):
            (Path(self.folder) / f"failed-{i}-{os.getpid()}").touch()
            raise OSError("no such device")
        return UnitResult({"square": np.full((1, 3), i * i, dtype=np.float32)}, {"i": i})
