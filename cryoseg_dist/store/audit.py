"""Whether a project holds what its ledgers say: journals, states, arrays, inputs and exported files."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryoseg_dist.errors import BadInputError, CryosegError, DamagedDataError
from cryoseg_dist.schema.work import Outcome, Region
from cryoseg_dist.store.checksums import FileDigest, digest_of, read_sums, sha256_of
from cryoseg_dist.store.ledger import Mark
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.take_back import ledgers

AGAIN = "Give the command of the run again: it writes the file anew."
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """Something damaged.

    Attributes
    ----------
    kind : str
        ``ledger``, ``state``, ``array``, ``input`` or ``export``.
    where, got, remedy : str
    region : Region, optional
        The shard of an array, which may be taken back and computed again.
    path : Path, optional
        A state that may be removed and made again.
    """

    kind: str
    where: str
    got: str
    remedy: str
    region: Region | None = None
    path: Path | None = None


@dataclass
class Audit:
    """What was looked at, and what was found.

    Attributes
    ----------
    findings : list of Finding
    shards, inputs, exports : int
        Checked.
    gone : int
        Inputs that are not there any more, which is no damage: their contents are in the project.
    """

    findings: list[Finding]
    shards: int = 0
    inputs: int = 0
    exports: int = 0
    gone: int = 0


def audit(project: Project, *, quick: bool = False, tell: Progress = lambda text: None) -> Audit:
    """Check a project that no driver works in.

    Parameters
    ----------
    project : Project
    quick : bool
        Look whether shards are there, without reading them, and at the size of inputs alone.
    tell : Callable
        Called with what is looked at next.
    """
    found = Audit([])
    marks: dict[str, dict[str, Mark]] = {}
    tell("ledgers")
    for run, ledger in ledgers(project):
        try:
            marks[run] = ledger.load()
        except BadInputError as fault:
            found.findings.append(Finding("ledger", fault.where, fault.got, fault.remedy))
    found.findings += _states(project)
    names = project.array_names()
    _units(project, marks, names, found, quick, tell)
    if not quick:
        _other_arrays(project, marks, names, found, tell)
    tell("inputs")
    _inputs(marks, found, quick)
    tell("exports")
    _exports(project, found)
    return found


def _states(project: Project) -> Iterator[Finding]:
    for folder in ("state", "runs"):
        for path in sorted((project.root / folder).rglob("*.json")):
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, OSError) as fault:
                where = path.relative_to(project.root).as_posix()
                yield Finding("state", where, str(fault), "Remove it: what it stands for is computed again.", path=path)


def _units(
    project: Project, marks: dict[str, dict[str, Mark]], names: list[str], found: Audit, quick: bool, tell: Progress
) -> None:
    """Shards that finished units wrote."""
    units: dict[Region, str] = {}
    for run, held in marks.items():
        for mark in held.values():
            if mark.outcome is Outcome.DONE:
                units |= dict.fromkeys((Region(*written) for written in mark.writes), f"{mark.key} of {run}")
    by_array: dict[str, list[Region]] = defaultdict(list)
    for region in units:
        by_array[region.array].append(region)
    for array, regions in by_array.items():
        tell(array)
        if array not in names:
            found.findings += [
                Finding("array", array, "no such array", _taken_back(units[region]), region) for region in regions
            ]
            continue
        for region in regions:
            for shard, path in project.shards(region):
                found.shards += 1
                _shard(project, shard, path, units[region], found, quick)


def _shard(project: Project, shard: Region, path: Path, made_by: str, found: Audit, quick: bool) -> None:
    try:
        if not project.holds(path):
            raise DamagedDataError(shard.array, shard.start, shard.stop, "no file")
        if not quick:
            project.read(shard)
    except CryosegError as fault:
        got = fault.got if isinstance(fault, DamagedDataError) else str(fault)
        where = f"{shard.array}, {list(shard.start)} to {list(shard.stop)}"
        found.findings.append(Finding("array", where, got, _taken_back(made_by), shard))


def _taken_back(unit: str) -> str:
    what = f"takes {unit} back" if unit else "goes back to the step before"
    return f"`cryoseg verify --mend` {what}; the command of the run then computes it again."


def _other_arrays(
    project: Project, marks: dict[str, dict[str, Mark]], names: list[str], found: Audit, tell: Progress
) -> None:
    """What the driver wrote, such as maps: the shards that are there can be read."""
    written = {written[0] for held in marks.values() for mark in held.values() for written in mark.writes}
    for name in names:
        if name in written:
            continue
        tell(name)
        for shard, path in project.shards(project.whole(name)):
            if project.holds(path):
                found.shards += 1
                _shard(project, shard, path, "", found, False)


def _inputs(marks: dict[str, dict[str, Mark]], found: Audit, quick: bool) -> None:
    """Foreign files as the newest unit that read them found them."""
    newest: dict[str, tuple[float, FileDigest]] = {}
    for held in marks.values():
        for mark in held.values():
            for name, digest in mark.inputs.items():
                if name not in newest or newest[name][0] < mark.finished_at:
                    newest[name] = mark.finished_at, digest
    for name, (_, digest) in newest.items():
        path = Path(name)
        if not path.exists():
            found.gone += 1
            continue
        found.inputs += 1
        same = path.stat().st_size == digest.size if quick else digest_of(path).sha256 == digest.sha256
        if not same:
            remedy = "Put the file back as it was; or give the command of the run again, which takes it as a new input."
            found.findings.append(Finding("input", name, "other bytes than were read", remedy))


def _exports(project: Project, found: Audit) -> None:
    for name, digest in read_sums(project.export).items():
        path = project.export / name
        found.exports += 1
        where = f"export/{name}"
        if not path.is_file():
            found.findings.append(Finding("export", where, "no file", AGAIN))
        elif sha256_of(path) != digest:
            found.findings.append(Finding("export", where, "other bytes than were written", AGAIN))
