"""Commands whose modules are loaded when they are called for: torch alone takes seconds."""

import gc
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from cryoseg_dist.runtime.allocator import keep_freed_memory

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

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command of the command line."""
        # Thousands of modules come and stay: looking for garbage among them took a seventh of the start.
        gc.set_threshold(100_000)
        keep_freed_memory()
        return super().main(*args, **options)

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
