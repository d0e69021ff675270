"""``cryoseg retry``: what was given up is tried again by the next run."""

from pathlib import Path
from typing import Annotated

import typer

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.schema.work import Outcome
from cryoseg_dist.store.lock import project_lock
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.take_back import TakenBack, take_back_failed

# Units of a run that are told of.
MOST_UNITS = 10


def describe(taken: list[TakenBack]) -> list[str]:
    """Lines on what was taken back."""
    lines = []
    for one in taken:
        lines += [f"{mark.outcome.replace('_', ' '):12} {mark.key}: {mark.reason}" for mark in one.marks[:MOST_UNITS]]
        if len(one.marks) > MOST_UNITS:
            lines.append(f"{'':12} and {len(one.marks) - MOST_UNITS} more of {one.run}")
    n = sum(len(one.marks) for one in taken)
    return [*lines, f"{n} units taken back: the next run computes them" if n else "nothing to try again"]


def retry(
    project: Annotated[Path, typer.Argument(help="Project folder.")],
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Also what was set aside for bad input that was mended since.")
    ] = False,
) -> None:
    """Take back quarantined units, so that the next run computes them."""

    def action() -> int:
        opened = Project(project)
        outcomes = [Outcome.QUARANTINED] + ([Outcome.SET_ASIDE] if set_aside else [])
        with project_lock(project):
            taken = take_back_failed(opened, outcomes)
        for line in describe(taken):
            typer.echo(line)
        return DONE

    guarded(action)
