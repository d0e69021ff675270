"""What of a project may go: superseded runs, steps that later ones replaced, and what a run computes again when it needs it."""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryoseg_dist.store.manifest import read_manifest
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.tree import Tree, disk_bytes, tree_of

CURRENT = "state/current.json"
ITERATION = re.compile(r"it\d{3}")
# Results of the last iteration that a finished run is read from.
KEPT = ("maps", "best", "averages")
# Stages whose arrays nothing reads once a later stage has finished, and that stage.
SERVED = {"segment": "pick"}


@dataclass(frozen=True)
class Part:
    """Something that may go.

    Attributes
    ----------
    name : str
    why : str
    paths : tuple of Path
        Files and folders of the project.
    tree : Tree
        Where its arrays are.
    arrays : tuple of str
        Folders of the tree.
    """

    name: str
    why: str
    paths: tuple[Path, ...]
    tree: Tree
    arrays: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.paths or self.arrays)

    @cached_property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(disk_bytes(path) for path in self.paths) + sum(self.tree.size(name) for name in self.arrays)

    def remove(self) -> None:
        """Remove it; a kill in between leaves a project that a run goes on from.

        What says that a result is there, in the order of ``paths``, goes before the result.
        """
        for path in self.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in self.arrays:
            self.tree.remove(name)


def write_current(project: Project, runs: Sequence[str], finished: float) -> None:
    """Note the runs that the results of a project were made by; all others before it are superseded."""
    project.write_json(CURRENT, {"runs": list(runs), "finished": finished})


def parts(project: Project) -> list[Part]:
    """All that may go, largest first.

    A project in which no run has finished has nothing that may go but left-overs.
    """
    tree = tree_of(project.location)
    held = set(tree.below(""))
    found = [Part("left over", "files that a killed process did not finish", _left_overs(project), tree)]
    current = project.read_json(CURRENT)
    if current is not None:
        runs, finished = set(current["runs"]), float(current["finished"])
        for path in sorted((project.root / "runs").glob("*.json")):
            run = path.stem
            arrays = tuple({run} & held)
            manifest = read_manifest(project, run) or {}
            stage = str(manifest.get("stage", ""))
            if run not in runs:
                if float(manifest.get("created_at", finished)) < finished:
                    # Everything but the manifest, which stays as a record.
                    told = _existing([project.root / "state" / run], _ledgers(project, run))
                    found.append(Part(run, "a run of older settings or inputs", told, tree, arrays))
                continue
            found.append(_iterations(project, run, tree))
            if stage in SERVED and any(other.startswith(f"{SERVED[stage]}-") for other in runs):
                why = f"computed again where {SERVED[stage]} needs it"
                found.append(Part(run, why, _existing(_ledgers(project, run)), tree, arrays))
    return sorted((part for part in found if part), key=lambda part: part.size, reverse=True)


def _existing(*groups: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(path for group in groups for path in group if path.exists())


def _ledgers(project: Project, run: str) -> list[Path]:
    return [project.ledger_path(run), project.root / "ledger" / run]


def _iterations(project: Project, run: str, tree: Tree) -> Part:
    """Iterations before the last, and what of the last was only needed to make its results."""
    states = sorted((project.root / "state" / run).glob("it[0-9][0-9][0-9].json"))
    last = states[-1].stem if states else ""
    ledger = project.root / "ledger" / run
    ledgers = sorted(path for path in ledger.glob("it[0-9][0-9][0-9].jsonl") if path.stem <= last)
    held = tree.below(run)
    done = [name for name in held if ITERATION.fullmatch(name.rpartition("/")[2]) and name < f"{run}/{last}"]
    served = [name for name in tree.below(f"{run}/{last}") if name.rpartition("/")[2] not in KEPT] if last else []
    # Sums and poses that the iterations of a classification share.
    shared = [f"{run}/{name}" for name in ("partials", "poses") if {f"{run}/{name}", f"{run}/assignment"} <= set(held)]
    return Part(run, f"steps that led to {last}", _existing(states[:-1], ledgers), tree, tuple(done + served + shared))


def _left_overs(project: Project) -> tuple[Path, ...]:
    """Files that a killed process did not finish."""
    folders = (project.root, project.export, project.root / "state", project.root / "runs")
    found = {path for folder in folders for path in folder.glob("**/.*.partial") if "store.zarr" not in path.parts}
    return tuple(sorted(found))
