"""Exit codes, and errors as clear texts."""

from collections.abc import Callable

import typer

DONE, FAILED, BAD_INPUT, SET_ASIDE = 0, 1, 2, 3


def guarded(action: Callable[[], int]) -> None:
    """Run a command and end the process with its exit code; errors made on purpose become one clear text."""
    from cryoseg_dist.errors import BadInputError, CryosegError, SettingsError

    try:
        code = action()
    except (BadInputError, SettingsError) as fault:
        typer.echo(f"cryoseg: {fault}", err=True)
        code = BAD_INPUT
    except CryosegError as fault:
        typer.echo(f"cryoseg: {fault}", err=True)
        code = FAILED
    except OSError as fault:
        from cryoseg_dist.store.faults import unavailable

        error = unavailable(fault, fault.filename or "the project")
        if error is None:
            raise
        typer.echo(f"cryoseg: {error}", err=True)
        code = FAILED
    except KeyboardInterrupt:
        typer.echo("cryoseg: stopped; the same command goes on where this one ended", err=True)
        code = FAILED
    raise typer.Exit(code)
