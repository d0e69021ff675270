"""Commands that begin with the STAR file of particles, made here or elsewhere."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoseg_dist.cli import options as opt
from cryoseg_dist.cli.guard import DONE, guarded

if TYPE_CHECKING:
    from cryoseg_dist.pipeline.config import RunSettings
    from cryoseg_dist.pipeline.particles import Particles


def star_settings(
    particles: "Particles", output: Path, config: Path | None, flags: dict[str, Any], assignments: list[str] | None
) -> "RunSettings":
    """Settings of a run on particles: a file, the environment, flags; the optics are those of the STAR file.

    Raises
    ------
    BadInputError
        The folder holds a run on micrographs, whose settings would be lost.
    """
    import json

    from cryoseg_dist.cli.options import flag_layer
    from cryoseg_dist.errors import BadInputError
    from cryoseg_dist.pipeline.config import build_settings, from_environment, from_toml

    held = output / "settings.json"
    if held.exists() and json.loads(held.read_text(encoding="utf-8")).get("data", {}).get("micrographs"):
        raise BadInputError(str(output), "a folder of its own", "the project of a run on micrographs", "Name another.")
    optics = {
        "pixel_size": particles.optics.pixel_size,
        "voltage": particles.optics.voltage,
        "spherical_aberration": particles.optics.spherical_aberration,
        "amplitude_contrast": particles.optics.amplitude_contrast,
    }
    file = {} if config is None else from_toml(config)
    return build_settings(file, from_environment(), flag_layer(flags | optics, assignments))


def reconstruct(
    particles: Annotated[Path, typer.Argument(help="STAR file of particles with angles.")],
    output: Annotated[Path, typer.Option(help="Folder (a project); the results come to lie in DIR/export.")],
    symmetry: opt.Symmetry = None,
    diameter: opt.Diameter = None,
    padding: opt.Padding = None,
    max_resolution: Annotated[float | None, typer.Option(help="Leave out what is finer [A].", min=0.1)] = None,
    workers: opt.Workers = None,
    config: opt.Config = None,
    assignments: opt.Assignments = None,
) -> None:
    """Map and half maps from particles of known angles; the same command goes on after an interruption."""
    flags = {"symmetry": symmetry, "diameter": diameter, "padding": padding, "workers": workers}

    def action() -> int:
        from cryoseg_dist.cli.session import open_session
        from cryoseg_dist.pipeline import from_star

        images = from_star.read_particles(particles, diameter, poses=True)
        settings = star_settings(images, output, config, flags, assignments)
        with open_session(settings, output, sys.argv) as session:
            result = from_star.reconstruct(session, images, max_resolution)
        typer.echo(result.summary())
        return DONE

    guarded(action)


def run_refine(
    particles: Path,
    reference: Path | None,
    output: Path | None,
    config: Path | None,
    flags: dict[str, Any],
    assignments: list[str] | None,
) -> int:
    """Refine the particles of a STAR file and return the exit code."""
    from cryoseg_dist.cli.session import open_session
    from cryoseg_dist.errors import SettingsError
    from cryoseg_dist.pipeline import from_star

    faults = []
    if reference is None or not reference.is_file():
        faults.append(f"--reference: expected a map to start from, got {reference or 'none'}.")
    if output is None:
        faults.append("--output: expected a folder for the results, got none.")
    if flags["diameter"] is None:
        faults.append("--diameter: expected the particle's longest extent in A, got none.")
    of_star = ("micrographs", "pixel_size", "voltage", "spherical_aberration", "amplitude_contrast")
    faults += [
        f"--{name.replace('_', '-')}: expected none with a STAR file, which holds the optics, got {flags[name]}."
        for name in of_star
        if flags.get(name) is not None
    ]
    if reference is None or output is None or faults:
        raise SettingsError(faults)
    images = from_star.read_particles(particles, flags["diameter"], poses=False)
    settings = star_settings(images, output, config, flags, assignments)
    with open_session(settings, output, sys.argv) as session:
        result = from_star.refine(session, images, reference)
    typer.echo(result.summary())
    return DONE


def refine_command(stage: Callable[..., None]) -> Callable[..., None]:
    """The command ``refine``: of a STAR file where one is given, else the pipeline's stage.

    Parameters
    ----------
    stage : Callable
        Runs the pipeline up to refinement, with the options of a stage.
    """

    def refine(
        particles: Annotated[
            Path | None, typer.Argument(help="STAR file of particles; those of the project when not given.")
        ] = None,
        reference: Annotated[Path | None, typer.Option(help="Map to start from, with PARTICLES.")] = None,
        output: Annotated[
            Path | None,
            typer.Option(
                help="With PARTICLES: folder of the results (a project). Else: also write the STAR file here."
            ),
        ] = None,
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
        assignments: opt.Assignments = None,
    ) -> None:
        """Maximum-likelihood refinement with gold-standard half sets, of a STAR file or of the project's particles."""
        options = dict(locals())
        given = {n: options.pop(n) for n in ("particles", "reference")}
        options.pop("stage", None)
        if given["particles"] is None:
            if reference is not None:
                options["assignments"] = [
                    *(assignments or []),
                    f"start.reference={reference}",
                    "start.method=reference",
                ]
            stage(**options)
            return
        flags = {n: v for n, v in options.items() if n in opt.PLACES}
        guarded(lambda: run_refine(given["particles"], reference, output, config, flags, assignments))

    return refine
