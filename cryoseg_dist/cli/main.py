"""The ``cryoseg`` command."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoseg_dist.cli import options as opt
from cryoseg_dist.cli import star
from cryoseg_dist.cli.command_line import command_line
from cryoseg_dist.cli.guard import DONE, SET_ASIDE, guarded
from cryoseg_dist.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from cryoseg_dist.pipeline.watch import WatchOptions

app = typer.Typer(
    name="cryoseg",
    cls=LazyGroup,
    help="Single-particle cryo-EM: from micrographs to a 3D density map.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run_until(
    stage: str,
    project: Path,
    config: Path | None,
    flags: dict[str, Any],
    assignments: list[str] | None,
    output: Path | None,
    push: str | None = None,
    watched: "WatchOptions | None" = None,
) -> int:
    """Run every stage up to ``stage`` and return the exit code."""
    from cryoseg_dist.cli.session import gather_settings, open_session
    from cryoseg_dist.pipeline.run import run_pipeline

    if watched is not None:
        from cryoseg_dist.pipeline.watch_list import LIST_NAME

        flags = {**flags, "micrographs": str((project / LIST_NAME).resolve())}
    settings = gather_settings(project, config, flags, assignments)
    with open_session(settings, project, command_line(), push) as session:
        if watched is None:
            result = run_pipeline(session, until=stage)
        else:
            from cryoseg_dist.pipeline.watch import watch

            with stop_on_signals() as stop:
                result = watch(session, watched, stop, until=stage)
        if output is not None:
            result.write_star(output)
    typer.echo(result.summary())
    return SET_ASIDE if result.n_set_aside else DONE


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one acts as ever."""
    stop = Event()
    held: dict[signal.Signals, Any] = {}

    def take(number: int, frame: object) -> None:
        stop.set()
        for one, before in held.items():
            signal.signal(one, before)

    for one in (signal.SIGTERM, signal.SIGINT):
        held[one] = signal.signal(one, take)
    try:
        yield stop
    finally:
        for one, before in held.items():
            signal.signal(one, before)


def watch_options(folder: Path | None, timeout: float | None, settle: float) -> "WatchOptions | None":
    """What the flags say of watching, None where nothing is watched."""
    if folder is None:
        return None
    from cryoseg_dist.pipeline.watch import WatchOptions

    waits = float("inf") if timeout is None else timeout
    return WatchOptions(folder.resolve(), settle, waits, min(2.0, 0.5 * settle))


def stage_command(stage: str) -> Callable[..., None]:
    """A command that runs the pipeline up to one stage."""

    def command(
        project: opt.Project = Path("cryoseg_project"),
        config: opt.Config = None,
        micrographs: opt.Micrographs = None,
        pixel_size: opt.PixelSize = None,
        voltage: opt.Voltage = None,
        spherical_aberration: opt.SphericalAberration = None,
        amplitude_contrast: opt.AmplitudeContrast = None,
        diameter: opt.Diameter = None,
        symmetry: opt.Symmetry = None,
        engine: opt.Engine = None,
        ray_address: opt.RayAddress = None,
        workers: opt.Workers = None,
        metrics_port: opt.MetricsPort = None,
        metrics_push: opt.MetricsPush = None,
        watch: opt.Watch = None,
        watch_timeout: opt.WatchTimeout = None,
        watch_settle: opt.WatchSettle = 10.0,
        assignments: opt.Assignments = None,
        output: opt.Output = None,
    ) -> None:
        flags = {name: value for name, value in locals().items() if name in opt.PLACES}
        watched = watch_options(watch, watch_timeout, watch_settle)
        guarded(lambda: run_until(stage, project, config, flags, assignments, output, metrics_push, watched))

    return command


STAGES = {
    "ingest": "Check micrographs and bring them into the project.",
    "ctf": "Power spectra, CTF and a verdict for each micrograph.",
    "segment": "Class probabilities of each micrograph by the U-Net.",
    "pick": "Particle centres.",
    "extract": "Particle windows, normalised and sorted.",
    "classify": "2D class averages and the particles in good classes.",
    "abinitio": "A first map: stochastic EM, or a reference.",
    "postprocess": "Mask, FSC and sharpened map from the half maps.",
    "report": "The HTML report.",
}

app.command("run", help="Everything: from micrographs to a map and a report.")(stage_command("report"))
for _stage, _help in STAGES.items():
    app.command(_stage, help=_help + " Runs what it needs first; a second run computes nothing again.")(
        stage_command(_stage)
    )

app.command("reconstruct")(star.reconstruct)
app.command("refine")(star.refine_command(stage_command("refine")))


@app.command()
def init(path: Annotated[Path, typer.Argument(help="File to write.")] = Path("cryoseg.toml")) -> None:
    """Write a commented TOML file of all settings."""

    def action() -> int:
        from cryoseg_dist.errors import BadInputError
        from cryoseg_dist.pipeline.config import commented_toml

        if path.exists():
            raise BadInputError(str(path), "no file yet", "an existing file", "Name another or remove it.")
        path.write_text(commented_toml(), encoding="utf-8")
        typer.echo(f"wrote {path}: fill in [data] and [particle], then `cryoseg run --config {path}`")
        return DONE

    guarded(action)


if __name__ == "__main__":
    app()
