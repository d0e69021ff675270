"""``cryoseg status``: where a run stands."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.cli.progress import duration


def events_of(project: Path) -> list[dict[str, Any]]:
    """The project's events, oldest first; a torn last line is left out.

    Raises
    ------
    BadInputError
        The folder holds none.
    """
    from cryoseg_dist.errors import BadInputError

    path = project / "events.jsonl"
    if not path.is_file():
        raise BadInputError(str(project), "a project that was run", "no events.jsonl in it")
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def describe(project: Path) -> list[str]:
    """Lines on each stage of the last runs."""
    lines = []
    stages: dict[str, dict[str, Any]] = {}
    for event in events_of(project):
        stage = event.get("stage")
        if not stage:
            continue
        held = stages.setdefault(stage, {"outcomes": Counter(), "iteration": None})
        kind = event["event"]
        if kind == "StageStarted":
            held.update(total=event["total"], done=event["done"], state="running", outcomes=Counter())
        elif kind == "UnitFinished":
            held["outcomes"][event["outcome"]] += 1
        elif kind == "IterationFinished":
            held.update(iteration=event["iteration"], resolution=event["figures"].get("resolution"))
        elif kind == "StageFinished":
            held.update(state="finished", seconds=event["seconds"], final=event["outcomes"])
        held["time"] = event["time"]
    for stage, held in stages.items():
        if held["iteration"] is not None:
            text = f"iteration {held['iteration']}, {held['resolution']:.2f} A"
        elif held.get("state") == "finished":
            counts = ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in sorted(held["final"].items()))
            text = f"finished: {counts}"
        else:
            text = f"{held.get('done', 0) + sum(held['outcomes'].values())} of {held.get('total', '?')} units"
        lines.append(f"{stage:12} {text}, {duration(time.time() - held['time'])} ago")
    result = project / "export" / "result.json"
    if result.is_file():
        figures = json.loads(result.read_text(encoding="utf-8"))
        if "resolution" in figures:
            lines.append(f"{'result':12} {figures['particles']} particles, {figures['resolution']:.2f} A")
    return lines


def status(project: Annotated[Path, typer.Argument(help="Project folder.")]) -> None:
    """Say where a run stands."""

    def action() -> int:
        for line in describe(project):
            typer.echo(line)
        return DONE

    guarded(action)
