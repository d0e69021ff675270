"""Command-line options that several commands share, and how they become settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Project = Annotated[Path, typer.Option("--project", "-P", help="Project folder; a second run goes on in it.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="TOML settings (see `cryoseg init`).")]
Micrographs = Annotated[str | None, typer.Option(help="Glob pattern of micrographs, or a STAR file that lists them.")]
PixelSize = Annotated[float | None, typer.Option(help="Pixel size of the micrographs [A].")]
Voltage = Annotated[float | None, typer.Option(help="Acceleration voltage [kV].")]
SphericalAberration = Annotated[float | None, typer.Option(help="Spherical aberration [mm].")]
AmplitudeContrast = Annotated[float | None, typer.Option(help="Amplitude contrast (fraction).")]
Diameter = Annotated[float | None, typer.Option(help="Particle diameter [A].")]
Symmetry = Annotated[str | None, typer.Option(help="Point group: C<n>, D<n>, T, O or I.")]
Engine = Annotated[str | None, typer.Option(help="ray (a pool of actors) or inline (this process alone).")]
RayAddress = Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")]
Workers = Annotated[int | None, typer.Option(help="Number of workers.")]
MetricsPort = Annotated[int | None, typer.Option(help="Serve Prometheus metrics on this port.")]
MetricsPush = Annotated[str | None, typer.Option(help="Pushgateway that gets the metrics when the command ends.")]
Watch = Annotated[
    Path | None,
    typer.Option(
        help="Take micrographs from this folder as they are written, in place of --micrographs. Stop with SIGTERM."
    ),
]
WatchTimeout = Annotated[
    float | None, typer.Option(min=0, help="End watching after so many seconds without a new micrograph.")
]
WatchSettle = Annotated[float, typer.Option(min=0.1, help="Seconds that a file must have stayed still to be complete.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting, as in --set ctf.tile_size=512.")
]
Padding = Annotated[int | None, typer.Option(help="Oversampling of Fourier space.")]
Solver = Annotated[
    str | None, typer.Option(help="direct (voxel by voxel) or cg (conjugate gradients within the particle's sphere).")
]
Output = Annotated[Path | None, typer.Option(help="Also write this stage's STAR file here.")]

PLACES = {
    "micrographs": "data.micrographs",
    "pixel_size": "data.pixel_size",
    "voltage": "data.voltage",
    "spherical_aberration": "data.spherical_aberration",
    "amplitude_contrast": "data.amplitude_contrast",
    "diameter": "particle.diameter",
    "symmetry": "particle.symmetry",
    "padding": "reconstruct.padding",
    "solver": "reconstruct.solver",
    "half_maps": "reconstruct.half_maps",
    "engine": "engine.engine",
    "ray_address": "engine.ray_address",
    "workers": "engine.workers",
    "metrics_port": "engine.metrics_port",
}


def from_pairs(assignments: list[str] | None) -> dict[str, Any]:
    """Settings from ``NAME=VALUE`` texts; values read as TOML.

    Raises
    ------
    SettingsError
        A text without an equals sign.
    """
    from cryoseg_dist.errors import SettingsError
    from cryoseg_dist.pipeline.config import parse_value

    out = {}
    for text in assignments or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingsError([f"--set {text}: expected NAME=VALUE."])
        out[key.strip()] = parse_value(value)
    return out


def flag_layer(flags: Mapping[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Nested settings from the flags that were given and from ``--set`` pairs."""
    from cryoseg_dist.errors import SettingsError
    from cryoseg_dist.pipeline.config import from_assignments, parse_value

    pairs = [(PLACES[name], value) for name, value in flags.items() if value is not None]
    for text in assignments or []:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise SettingsError([f"--set {text}: expected SECTION.NAME=VALUE. `cryoseg init` lists them."])
        pairs.append((key, parse_value(value)))
    return from_assignments(pairs)
