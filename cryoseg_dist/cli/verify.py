"""``cryoseg verify``: whether a project is whole."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cryoseg_dist.cli.guard import BAD_INPUT, DONE, FAILED, guarded
from cryoseg_dist.store.audit import Audit, Finding, audit
from cryoseg_dist.store.lock import project_lock
from cryoseg_dist.store.project import Project
from cryoseg_dist.store.take_back import take_back_region


def mend(project: Project, findings: list[Finding]) -> list[str]:
    """Take back what can be computed again; a line on each."""
    lines = []
    for finding in findings:
        if finding.path is not None:
            finding.path.unlink(missing_ok=True)
            lines.append(f"removed {finding.where}")
        elif finding.region is not None:
            taken = take_back_region(project, finding.region)
            what = ", ".join([*(mark.key for mark in taken.marks), *taken.states])
            lines.append(f"taken back {what}" if taken else f"nobody is known to have written {finding.where}")
    return list(dict.fromkeys(lines))


def describe(found: Audit) -> list[str]:
    """Lines on what was checked and found."""
    lines = [f"{f.kind:8} {f.where}: {f.got}. {f.remedy}" for f in found.findings]
    gone = f" ({found.gone} more are gone, their contents are in the project)" if found.gone else ""
    checked = f"{found.shards} shards, {found.inputs} inputs{gone}, {found.exports} exported files"
    return [*lines, f"{checked}: " + (f"{len(found.findings)} damaged" if found.findings else "whole")]


def verify(
    project: Annotated[Path, typer.Argument(help="Project folder.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Look for files and sizes only, without reading them.")
    ] = False,
    mend_it: Annotated[
        bool, typer.Option("--mend", help="Take back what is damaged, so that the next run computes it again.")
    ] = False,
) -> None:
    """Check inputs, ledgers, arrays and results. Exit code 0: whole, 1: damaged, 2: only inputs have changed."""

    def action() -> int:
        opened = Project(project)
        with project_lock(project):
            with Console(stderr=True).status("verify") as shown:
                found = audit(opened, quick=quick, tell=lambda text: shown.update(f"verify {text}"))
            for line in describe(found):
                typer.echo(line)
            if mend_it:
                for line in mend(opened, found.findings):
                    typer.echo(line)
        kinds = {finding.kind for finding in found.findings}
        return FAILED if kinds - {"input"} else BAD_INPUT if kinds else DONE

    guarded(action)
