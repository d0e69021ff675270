"""What of a project may go: superseded runs, steps that later ones replaced, and what a run computes again when it needs it."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoseg_dist.store.manifest import read_manifest
from cryoseg_dist.store.project import Project

CURRENT = "state/current.json"
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
        In the order in which they go: what says that a result is there goes before the result.
    """

    name: str
    why: str
    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(disk_bytes(path) for path in self.paths)

    def remove(self) -> None:
        """Remove it; a kill in between leaves a project that a run goes on from."""
        for path in self.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def disk_bytes(path: Path) -> int:
    """Bytes that a file or folder takes on the disk."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(512 * p.stat().st_blocks for p in files)


def write_current(project: Project, runs: Sequence[str], finished: float) -> None:
    """Note the runs that the results of a project were made by; all others before it are superseded."""
    project.write_json(CURRENT, {"runs": list(runs), "finished": finished})


def parts(project: Project) -> list[Part]:
    """All that may go, largest first.

    A project in which no run has finished has nothing that may go but left-overs.
    """
    found = [_left_overs(project)]
    current = project.read_json(CURRENT)
    if current is not None:
        runs, finished = set(current["runs"]), float(current["finished"])
        for path in sorted((project.root / "runs").glob("*.json")):
            run = path.stem
            manifest = read_manifest(project, run) or {}
            stage = str(manifest.get("stage", ""))
            if run not in runs:
                if float(manifest.get("created_at", finished)) < finished:
                    found.append(Part(run, "a run of older settings or inputs", _of_run(project, run)))
                continue
            found.append(_iterations(project, run))
            if stage in SERVED and any(other.startswith(f"{SERVED[stage]}-") for other in runs):
                why = f"computed again where {SERVED[stage]} needs it"
                found.append(Part(run, why, _existing(_ledgers(project, run), _arrays(project, run))))
    return sorted((part for part in found if part.paths), key=lambda part: part.size, reverse=True)


def _existing(*groups: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(path for group in groups for path in group if path.exists())


def _ledgers(project: Project, run: str) -> list[Path]:
    return [project.ledger_path(run), project.root / "ledger" / run]


def _arrays(project: Project, run: str) -> list[Path]:
    return [project.root / "store.zarr" / run]


def _of_run(project: Project, run: str) -> tuple[Path, ...]:
    """Everything but the manifest, which stays as a record."""
    return _existing([project.root / "state" / run], _ledgers(project, run), _arrays(project, run))


def _iterations(project: Project, run: str) -> Part:
    """Iterations before the last, and what of the last was only needed to make its results."""
    states = sorted((project.root / "state" / run).glob("it[0-9][0-9][0-9].json"))
    last = states[-1].stem if states else ""
    array, ledger = project.root / "store.zarr" / run, project.root / "ledger" / run
    done = sorted(path for path in array.glob("it[0-9][0-9][0-9]") if path.name < last)
    served = [path for path in (array / last).glob("*") if path.is_dir() and path.name not in KEPT] if last else []
    # Sums and poses that the iterations of a classification share.
    shared = [array / name for name in ("partials", "poses")] if (array / "assignment").exists() else []
    ledgers = sorted(path for path in ledger.glob("it[0-9][0-9][0-9].jsonl") if path.stem <= last)
    return Part(run, f"steps that led to {last}", _existing(states[:-1], ledgers, done, served, shared))


def _left_overs(project: Project) -> Part:
    """Files that a killed process did not finish."""
    folders = (project.root, project.export, project.root / "state", project.root / "runs")
    found = {path for folder in folders for path in folder.glob("**/.*.partial") if "store.zarr" not in path.parts}
    return Part("left over", "files that a killed process did not finish", tuple(sorted(found)))
