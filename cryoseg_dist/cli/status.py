"""``cryoseg status``: where a run stands."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.cli.progress import duration
from cryoseg_dist.errors import BadInputError
from cryoseg_dist.monitor.progress import RunProgress

# Failures that are told of.
MOST_FAILURES = 5


def describe(project: Path) -> list[str]:
    """Lines on each stage of the last runs, on time left, and on the last failures.

    Raises
    ------
    BadInputError
        The folder holds no run.
    """
    log = project / "events.jsonl"
    if not log.is_file():
        raise BadInputError(str(project), "a project that was run", "no events.jsonl in it")
    progress = RunProgress(log)
    progress.update()
    now = time.time()
    lines = []
    for name, stage in progress.stages.items():
        if stage.iteration is not None:
            reached = f", {stage.figures['resolution']:.2f} A" if "resolution" in stage.figures else ""
            text = f"iteration {stage.iteration}{reached}"
        elif stage.outcomes is not None:
            text = "finished: " + ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in sorted(stage.outcomes.items()))
        else:
            text = f"{stage.done} of {stage.total or '?'} units"
            left = stage.seconds_left(stage.seen)
            text += "" if left is None else f", {duration(left)} left"
        lines.append(f"{name:12} {text}, {duration(now - stage.seen)} ago")
    for failure in list(progress.failures)[-MOST_FAILURES:]:
        lines.append(f"{failure.outcome.replace('_', ' '):12} {failure.unit}: {failure.message}")
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
