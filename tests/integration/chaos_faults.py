"""Faults that a chaos run injects: into processes of Ray by signals, into the store by damage."""

import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cryoseg_dist.schema.work import Region
from cryoseg_dist.store.project import Project


@dataclass
class Injected:
    """A fault that was injected: when (seconds since 1970), its kind, and what it hit."""

    at: float
    kind: str
    what: str


def workers(name: str, below: int | None = None) -> list[psutil.Process]:
    """Processes of Ray actors of a class (``UnitActor``, ``_WorkerActor``) below a process, or all."""
    every = psutil.Process(below).children(recursive=True) if below else list(psutil.process_iter())
    found = []
    for process in every:
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{name}"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def signal_one(rng: random.Random, name: str, number: signal.Signals, below: int) -> str | None:
    """Send a signal to the process of one actor; None where there is none."""
    found = [process for process in workers(name, below) if process.status() != psutil.STATUS_STOPPED]
    if not found:
        return None
    victim = rng.choice(sorted(found, key=lambda process: process.pid))
    try:
        os.kill(victim.pid, number)
    except ProcessLookupError:
        return None
    return f"process {victim.pid}"


def damage_one(rng: random.Random, root: Path, stages: tuple[str, ...]) -> str | None:
    """Turn a byte of a shard that a finished unit of one of the stages wrote; None where none has finished."""
    project = Project(root)
    written: list[tuple[str, Region]] = []
    for path in sorted((root / "ledger").glob("*.jsonl")):
        if path.stem.rpartition("-")[0] in stages:
            # Read beside the driver, whose ledger must not be cut.
            data = path.read_bytes()
            for line in data[: data.rfind(b"\n") + 1].splitlines():
                mark = json.loads(line)
                if mark.get("outcome") == "done":
                    written += [(mark["key"], Region(a, tuple(b), tuple(c))) for a, b, c in mark["writes"]]
    if not written:
        return None
    key, region = rng.choice(written)
    _, path = rng.choice(project.shards(region))
    # The last bytes are the shard's index: damage there is always met, whatever part of the shard is read.
    with path.open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        held = stream.read(1)
        stream.seek(-8, os.SEEK_END)
        stream.write(bytes([held[0] ^ 255]))
    return f"{region.array} of {key}"


@dataclass
class Follow:
    """Reads the events of a project as they come."""

    log: Path
    offset: int = 0
    events: list[dict] = field(default_factory=list)

    def update(self) -> list[dict]:
        """New events."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        new = [json.loads(line) for line in whole.splitlines()]
        self.events += new
        return new


def finished(events: list[dict]) -> Iterator[tuple[str, str, float, float]]:
    """Run, unit, seconds and time of each unit that ended as done."""
    for event in events:
        if event["event"] == "UnitFinished" and event["outcome"] == "done":
            yield event["run"], event["unit"], event["seconds"], event["time"]


def work_of(events: list[dict]) -> dict[tuple[str, str], list[float]]:
    """Seconds of each time that a unit was finished, by run and key."""
    found: dict[tuple[str, str], list[float]] = {}
    for run, key, seconds, _ in finished(events):
        found.setdefault((run, key), []).append(seconds)
    return found
