"""What faults cost, told from the events of a run."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cryoseg_dist.formats.mrc import read_volume
from tests.integration.chaos_faults import Injected, work_of

# How a run tells of a failure that is no fault of a unit's own code.
LOST = ("worker lost", "no result within")
# A call of several units that was lost with its worker.
TOGETHER = re.compile(r", with (\d+) units$")
# What is finished for good when it is told.
PROGRESS = ("UnitFinished", "IterationFinished")


@dataclass(frozen=True)
class Start:
    """A command that was given: seconds since 1970 of its begin and end, its exit code, what it printed."""

    at: float
    ended: float
    code: int
    said: str


@dataclass(frozen=True)
class Told:
    """A disturbed run.

    Attributes
    ----------
    kind : str
    injected : list of Injected
        Their times are seconds since 1970.
    starts : list of Start
    events : list of dict
    difference : float
        Of its maps from those of the undisturbed run.
    """

    kind: str
    injected: list[Injected]
    starts: list[Start]
    events: list[dict]
    difference: float = float("nan")

    def keep(self, folder: Path) -> None:
        """Write it to a folder."""
        (folder / f"{self.kind}.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def kept(cls, path: Path) -> "Told":
        """As :meth:`keep` wrote it."""
        held = json.loads(path.read_text())
        return cls(
            **{
                **held,
                "injected": [Injected(**f) for f in held["injected"]],
                "starts": [Start(**s) for s in held["starts"]],
            }
        )


def lost_seconds(told: Told, fault: Injected, hits: int, workers: int = 2) -> float:
    """Seconds of workers that a fault cost at most: since the last unit that each finished, or the last step of the run.

    Parameters
    ----------
    told : Told
    fault : Injected
    hits : int
        Workers that lost what they were at: the one that was hit, where its name says so, else those that lost most.
    workers : int
        Of the run.
    """
    began = max(start.at for start in told.starts if start.at <= fault.at)
    since: dict[str, float] = {}
    step = began
    for event in told.events:
        if not began <= event["time"] <= fault.at:
            continue
        if event["event"] == "UnitFinished":
            since[event["worker"]] = event["time"]
        else:
            step = event["time"]
    process = fault.what.rpartition(" ")[2]
    hit = [max(step, at) for name, at in since.items() if name.endswith(f":{process}")]
    # Those that were replaced before finished nothing for longest.
    alive = [max(step, at) for at in sorted(since.values())[-workers:]]
    lasts = hit or [step] * (workers - len(alive)) + alive
    return sum(fault.at - last for last in lasts[:hits])


def first_seconds(events: Sequence[dict], after: float, workers: int = 2) -> list[float]:
    """Seconds of the first unit that each worker finished after a time."""
    first: dict[str, float] = {}
    for event in events:
        if event["event"] == "UnitFinished" and event["time"] > after and len(first) < workers:
            first.setdefault(event["worker"], event["seconds"])
    return list(first.values())


def difference(a: Path, b: Path) -> float:
    """Largest difference of the exported maps over their standard deviation."""
    worst = 0.0
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        first, second = (read_volume(folder / "export" / name)[0] for folder in (a, b))
        worst = max(worst, float(np.abs(first - second).max() / first.std()))
    return worst


def refusal(said: str) -> str:
    """The text with which a command ended: one that was meant for the user, else what a fault left behind."""
    if "Traceback (most recent call last)" in said:
        return "TRACEBACK: " + said.strip().splitlines()[-1]
    told = re.findall(r"^cryoseg: (.*)$", said, re.MULTILINE)
    return told[-1] if told else "nothing said: " + said.strip()[-200:]


def measured(told: Told, hits: int, calm: Sequence[dict]) -> dict[str, Any]:
    """A row of the table.

    Parameters
    ----------
    told : Told
    hits : int
        Workers whose unit under way each fault costs.
    calm : sequence of dict
        Events of the undisturbed run.
    """
    work, again = work_of(calm), work_of(told.events)
    if set(work) != set(again):
        raise RuntimeError(f"{told.kind}: other units than in the undisturbed run: {set(work) ^ set(again)}")
    twice = [s for seconds in again.values() for s in seconds[1:]]
    retried = [e for e in told.events if e["event"] == "UnitRetried"]
    # Computed in vain, for the storage refused the result; a unit that lost its worker counts with the fault.
    vain = [again[(e["run"], e["unit"])][-1] for e in retried if not e["message"].startswith(LOST)]
    lost = [lost_seconds(told, fault, hits) for fault in told.injected]
    # What was under way when the storage stopped the run: the first unit of each worker after that, at most.
    stopped = [s for s in told.starts[:-1] if s.code != -9]
    again_first = [first_seconds(told.events, s.ended) for s in stopped]
    # Until what was lost is done again, else until anything is.
    resumed = []
    again_from = [fault.at for fault in told.injected] if len(told.starts) == 1 else [s.at for s in told.starts[1:]]
    for at, until in pairwise([*again_from, math.inf]):
        later = [e for e in told.events if e["time"] > at]
        lost_one = next((e for e in retried if at < e["time"] < until), None) if len(told.starts) == 1 else None
        if lost_one is not None:
            later = [e for e in later if e["time"] >= lost_one["time"] and e.get("unit") == lost_one["unit"]]
        resumed += [e["time"] - at for e in later if e["event"] in PROGRESS][:1]
    return {
        "kind": told.kind,
        "times": len(told.injected),
        "redone": len(twice)
        + sum(int(found[1]) if (found := TOGETHER.search(e["message"])) else 1 for e in retried)
        + sum(map(len, again_first))
        + (hits * len(told.injected) if told.kind == "driver killed" else 0),
        "units": len(work),
        "seconds": sum(map(sum, [twice, vain, lost, *again_first])),
        # Of this run, for others may have used the machine beside it.
        "work": sum(seconds[0] for seconds in again.values()),
        "difference": told.difference,
        "resumed": resumed,
        "codes": [s.code for s in told.starts],
        "refusals": [refusal(s.said) for s in told.starts if s.code not in (0, 3, -9)],
    }


def extra_work(row: dict[str, Any]) -> str:
    """Seconds and percent; nothing for sums, whose folds a run does not log (``killed_workers.py`` tells what they cost)."""
    if row["kind"] == "dask worker killed":
        return "-"
    return f"{row['seconds']:.1f} s, {100 * row['seconds'] / row['work']:4.1f} %"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows, and what stopped commands said."""
    lines = [
        f"{'fault':24}{'times':>6}{'redone':>8}{'of':>5}{'extra work':>18}{'difference':>12}{'resumed in s':>22}  exit codes"
    ]
    for row in rows:
        resumed = ", ".join(f"{s:.1f}" for s in row["resumed"])
        lines.append(
            f"{row['kind']:24}{row['times']:>6}{row['redone']:>8}{row['units']:>5}"
            f"{extra_work(row):>18}"
            f"{row['difference']:>12.2g}{resumed:>22}  {row['codes']}"
        )
    said = [f"{row['kind']}: {text}" for row in rows for text in row["refusals"]]
    return "\n".join([*lines, *said])
