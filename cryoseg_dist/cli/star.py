"""Commands that begin with a table of particles (STAR or cryoSPARC), made here or elsewhere."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoseg_dist.cli import options as opt
from cryoseg_dist.cli.command_line import command_line
from cryoseg_dist.cli.guard import DONE, SET_ASIDE, guarded

if TYPE_CHECKING:
    from cryoseg_dist.pipeline.config import RunSettings
    from cryoseg_dist.pipeline.particles import Particles

Passthrough = Annotated[
    list[Path] | None, typer.Option(help="Further cryoSPARC tables of the same particles; may be given again.")
]


def star_settings(particles: "Particles", output: Path, layers: Sequence[Mapping[str, Any]]) -> "RunSettings":
    """Settings of a run on particles: those given, and the optics of the particles' table.

    Raises
    ------
    BadInputError
        The folder holds a run on micrographs, whose settings would be lost.
    """
    from cryoseg_dist.errors import BadInputError
    from cryoseg_dist.pipeline.config import build_settings

    held = output / "settings.json"
    if held.exists() and json.loads(held.read_text(encoding="utf-8")).get("data", {}).get("micrographs"):
        raise BadInputError(str(output), "a folder of its own", "the project of a run on micrographs", "Name another.")
    optics = {
        "pixel_size": particles.optics.pixel_size,
        "voltage": particles.optics.voltage,
        "spherical_aberration": particles.optics.spherical_aberration,
        "amplitude_contrast": particles.optics.amplitude_contrast,
    }
    return build_settings(*layers, {"data": optics})


def given_settings(
    config: Path | None, flags: Mapping[str, Any], assignments: list[str] | None
) -> tuple[list[Mapping[str, Any]], list[Path]]:
    """Layers of settings from a file, the environment and flags, and where they let images lie."""
    from cryoseg_dist.cli.options import flag_layer
    from cryoseg_dist.pipeline.config import from_environment, from_toml, image_roots

    layers: list[Mapping[str, Any]] = [
        {} if config is None else from_toml(config),
        from_environment(),
        flag_layer(flags, assignments),
    ]
    return layers, image_roots(*layers)


def reconstruct(
    particles: Annotated[
        Path,
        typer.Argument(help="Particles with angles: RELION .star, cryoSPARC .cs, or a project of this program."),
    ],
    output: Annotated[Path, typer.Option(help="Folder (a project); the results come to lie in DIR/export.")],
    symmetry: opt.Symmetry = None,
    diameter: opt.Diameter = None,
    padding: opt.Padding = None,
    max_resolution: Annotated[float | None, typer.Option(help="Leave out what is finer [A].", min=0.1)] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes to take, as in 1,3 or all: each gets a map in DIR/class001 and so on.")
    ] = None,
    solver: opt.Solver = None,
    half_maps: Annotated[bool | None, typer.Option(help="Write the half maps too.", show_default="written")] = None,
    passthrough: Passthrough = None,
    result_as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    workers: opt.Workers = None,
    config: opt.Config = None,
    assignments: opt.Assignments = None,
) -> None:
    """Map and half maps from particles of known angles; the same command goes on after an interruption."""
    flags = {"symmetry": symmetry, "diameter": diameter, "padding": padding, "workers": workers}
    flags |= {"solver": solver, "half_maps": half_maps}

    def action() -> int:
        from cryoseg_dist.cli.session import open_session
        from cryoseg_dist.pipeline import from_star, particle_tables

        layers, roots = given_settings(config, flags, assignments)
        numbers: list[int] = []
        if classes:
            numbers = particle_tables.class_numbers(classes, particle_tables.read_table(particles, passthrough or ()))
        images = particle_tables.read_particles(
            particles, diameter, poses=True, passthrough=passthrough or (), classes=numbers, roots=roots
        )
        settings = star_settings(images, output, layers)
        with open_session(settings, output, command_line()) as session:
            results = from_star.reconstruct(session, images, max_resolution, numbers)
        if result_as_json:
            figures: dict[str, Any] = {str(r.session.project.export.parent): r.figures() for r in results.values()}
            typer.echo(json.dumps(figures if classes else figures[str(output)], default=str))
        else:
            for result in results.values():
                typer.echo(result.summary())
        return SET_ASIDE if any(r.n_set_aside for r in results.values()) else DONE

    guarded(action)


def run_refine(
    particles: Path,
    reference: Path | None,
    output: Path | None,
    config: Path | None,
    flags: dict[str, Any],
    assignments: list[str] | None,
    passthrough: list[Path] | None,
) -> int:
    """Refine the particles of a table and return the exit code."""
    from cryoseg_dist.cli.session import open_session
    from cryoseg_dist.errors import SettingsError
    from cryoseg_dist.pipeline import from_star, particle_tables

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
    layers, roots = given_settings(config, flags, assignments)
    images = particle_tables.read_particles(
        particles, flags["diameter"], poses=False, passthrough=passthrough or (), roots=roots
    )
    settings = star_settings(images, output, layers)
    with open_session(settings, output, command_line()) as session:
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
            Path | None, typer.Argument(help="Particles (.star or .cs); those of the project when not given.")
        ] = None,
        reference: Annotated[Path | None, typer.Option(help="Map to start from, with PARTICLES.")] = None,
        output: Annotated[
            Path | None,
            typer.Option(
                help="With PARTICLES: folder of the results (a project). Else: also write the STAR file here."
            ),
        ] = None,
        passthrough: Passthrough = None,
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
        """Maximum-likelihood refinement with gold-standard half sets, of a table of particles or of the project's."""
        options = dict(locals())
        given = {n: options.pop(n) for n in ("particles", "reference", "passthrough")}
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
        guarded(lambda: run_refine(given["particles"], reference, output, config, flags, assignments, passthrough))

    return refine
