"""``cryoseg clean``: room on the disk or in the bucket, without losing a result."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.errors import BadInputError
from cryoseg_dist.store.clean import CURRENT, Part, parts
from cryoseg_dist.store.lock import project_lock
from cryoseg_dist.store.project import Project


def size_text(n: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"


def describe(found: list[Part]) -> list[str]:
    """A line a part, and the sum."""
    lines = [f"{size_text(part.size):>12}  {part.name}: {part.why}" for part in found]
    return [*lines, f"{size_text(sum(part.size for part in found)):>12}  in all"]


def clean(
    project: Annotated[Path, typer.Argument(help="Project folder.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what may go and how much it takes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove superseded runs, steps that later ones replaced and what can be computed again; never a result."""

    def action() -> int:
        opened = Project(project)
        with project_lock(project):
            found = parts(opened)
            if not found:
                finished = opened.read_json(CURRENT) is not None
                why = "" if finished else ": superseded runs and steps are known once a run has finished"
                typer.echo(f"nothing that may go{why}")
                return DONE
            for line in describe(found):
                typer.echo(line)
            if dry_run:
                return DONE
            if not yes:
                if not sys.stdin.isatty():
                    raise BadInputError("cryoseg clean", "a yes", "nobody to ask", "Give --yes or --dry-run.")
                if not typer.confirm("Remove all of it?"):
                    return DONE
            freed = sum(part.size for part in found)
            for part in found:
                part.remove()
            typer.echo(f"{size_text(freed)} freed")
        return DONE

    guarded(action)
