"""Commands whose modules are loaded when they are called for: torch alone takes seconds."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

MODULES = {
    name: f"cryoseg_dist.cli.{name}"
    for name in (
        "dashboard",
        "demo",
        "simulate",
        "train",
        "status",
        "validate",
        "filter",
        "mask",
        "retry",
        "verify",
        "clean",
    )
}


class LazyGroup(TyperGroup):
    """A group that also finds the commands of ``MODULES``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        return [*super().list_commands(ctx), *MODULES]

    def get_command(self, ctx: Any, name: str) -> Any:
        """A command by its name."""
        if name not in MODULES:
            return super().get_command(ctx, name)
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        single.command(name)(getattr(import_module(MODULES[name]), name))
        return typer.main.get_command(single)
