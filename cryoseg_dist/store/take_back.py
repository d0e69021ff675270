"""Units, and steps of iterative stages, whose results shall count no more: a next run computes them again."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cryoseg_dist.schema.work import Outcome, Region
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project

_ITERATION = re.compile(r"it(\d{3})")


@dataclass(frozen=True)
class TakenBack:
    """What was taken back of a run: units by their marks, iterations and ends by their state."""

    run: str
    marks: tuple[Mark, ...] = ()
    states: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.marks or self.states)


def ledgers(project: Project, run: str = "") -> Iterator[tuple[str, Ledger]]:
    """Run id and ledger of every run, or of one and its iterations."""
    top = project.root / "ledger"
    for path in sorted(top.rglob("*.jsonl")):
        name = path.relative_to(top).with_suffix("").as_posix()
        if not run or name.partition("/")[0] == run:
            yield name, Ledger(path)


def take_back_failed(project: Project, outcomes: Collection[Outcome]) -> list[TakenBack]:
    """Take back all units that ended in one of the outcomes, and the end of what was summed without them."""
    found = []
    for run, ledger in ledgers(project):
        marks = tuple(mark for mark in ledger.load().values() if mark.outcome in outcomes)
        if not marks:
            continue
        with ledger:
            ledger.take_back(mark.key for mark in marks)
        found.append(TakenBack(run, marks, _forget(project, run, ["done.json"])))
    return found


def take_back_region(project: Project, region: Region) -> TakenBack:
    """Take back what wrote part of an array: its units, else the iteration of which it is a result.

    Nothing is taken back where nobody is known to have written it.
    """
    run = region.array.partition("/")[0]
    taken: list[Mark] = []
    for _, ledger in ledgers(project, run):
        marks = [mark for mark in ledger.load().values() if any(touches(written, region) for written in mark.writes)]
        with ledger:
            ledger.take_back(mark.key for mark in marks)
        taken += marks
    if taken:
        return TakenBack(run, tuple(taken), _forget(project, run, ["done.json"]))
    held = sorted(path.name for path in (project.root / "state" / run).glob("*.json"))
    steps = [name for name in held if _ITERATION.match(name)]
    number = _ITERATION.search(region.array)
    # The results of an iteration go with it and all after it; those of the end with the last one.
    later = [name for name in steps if number is None or name >= f"it{number[1]}"]
    return TakenBack(run, (), _forget(project, run, (later if number else steps[-1:]) + ["done.json"]))


def touches(written: tuple[str, tuple[int, ...], tuple[int, ...]], region: Region) -> bool:
    """Whether what a unit wrote and a region have samples in common."""
    array, start, stop = written
    return array == region.array and all(
        a < d and c < b for a, b, c, d in zip(start, stop, region.start, region.stop, strict=True)
    )


def _forget(project: Project, run: str, names: Collection[str]) -> tuple[str, ...]:
    """Remove states of a run, the last first: a kill in between leaves a state that a run goes on from."""
    gone = []
    for name in sorted(names, reverse=True):
        path = project.root / "state" / run.partition("/")[0] / name
        if path.exists():
            path.unlink()
            gone.append(name)
    return tuple(gone)
