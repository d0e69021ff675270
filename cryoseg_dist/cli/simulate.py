"""``cryoseg simulate``: micrographs with known truth."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from pydantic import ValidationError

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.cli.options import from_pairs
from cryoseg_dist.errors import BadInputError, SettingsError
from cryoseg_dist.formats.mrc import read_volume, write_stack, write_volume
from cryoseg_dist.formats.star import write_star
from cryoseg_dist.pipeline.config import describe_fault
from cryoseg_dist.pipeline.export import optics_table
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import SimulateSettings, simulate_micrograph
from cryoseg_dist.simulate.specimen import Specimen, from_map, from_model, made_up

Assignments = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as in --set snr=0.05.")]


def choose_specimen(
    model: Path | None,
    density: Path | None,
    symmetry: str,
    diameter: float,
    pixel_size: float,
    box: int | None,
    assembly: str | None = None,
) -> Specimen:
    """The specimen that the options name: an atomic model, a map, or one made up.

    Raises
    ------
    BadInputError
        Both a model and a map, or one that cannot be used.
    """
    size = box or 2 * round(0.7 * diameter / pixel_size)
    if model is not None and density is not None:
        raise BadInputError("simulate", "--model or --map", "both")
    if model is not None:
        return from_model(
            model, pixel_size=pixel_size, resolution=2.0 * pixel_size, size=box, symmetry=symmetry, assembly=assembly
        )
    if density is not None:
        values, pixel = read_volume(density)
        if abs(pixel / pixel_size - 1.0) > 0.01:
            raise BadInputError(
                str(density), f"{pixel_size:g} A per pixel", f"{pixel:g}", "Set --pixel-size to the map's."
            )
        return from_map(values, pixel_size, symmetry, diameter)
    return made_up(symmetry=symmetry, diameter=diameter, size=size, pixel_size=pixel_size)


def write_micrographs(specimen: Specimen, optics: Optics, settings: SimulateSettings, output: Path) -> None:
    """Write micrographs, masks, truth and map; micrographs that exist are kept."""
    write_volume(output / "truth_map.mrc", specimen.volume.numpy(), specimen.pixel_size)
    tables = []
    for i in range(settings.n_micrographs):
        name = f"micrograph_{i:04d}.mrc"
        made = simulate_micrograph(specimen, optics, settings, i)
        if not (output / "micrographs" / name).exists():
            write_stack(output / "masks" / name, made.mask.astype("int8"), optics.pixel_size)
            write_stack(output / "micrographs" / name, made.image, optics.pixel_size)
        tables.append(made.particles.assign(micrograph_name=name))
    write_star(output / "truth.star", {"optics": optics_table(optics), "particles": pd.concat(tables)})


def simulate(
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    model: Annotated[Path | None, typer.Option(help="Atomic model (mmCIF or PDB, gzip too).")] = None,
    assembly: Annotated[
        str | None, typer.Option(help="Biological assembly of the model to make; as it is when not given.")
    ] = None,
    density: Annotated[Path | None, typer.Option("--map", help="Map (MRC) at the micrographs' pixel size.")] = None,
    symmetry: Annotated[str, typer.Option(help="Point group of the specimen.")] = "C1",
    diameter: Annotated[float, typer.Option(help="Diameter of the specimen [A]; a model has its own.")] = 150.0,
    pixel_size: Annotated[float, typer.Option(help="Pixel size [A].")] = 3.0,
    voltage: Annotated[float, typer.Option(help="Acceleration voltage [kV].")] = 300.0,
    spherical_aberration: Annotated[float, typer.Option(help="Spherical aberration [mm].")] = 2.7,
    amplitude_contrast: Annotated[float, typer.Option(help="Amplitude contrast (fraction).")] = 0.1,
    box: Annotated[int | None, typer.Option(help="Box of the specimen [px].")] = None,
    assignments: Assignments = None,
) -> None:
    """Make realistic micrographs with their truth (STAR, masks, map)."""

    def action() -> int:
        try:
            settings = SimulateSettings.model_validate(from_pairs(assignments))
        except ValidationError as faults:
            raise SettingsError(describe_fault(f) for f in faults.errors()) from None
        specimen = choose_specimen(model, density, symmetry, diameter, pixel_size, box, assembly)
        optics = Optics(pixel_size, voltage, spherical_aberration, amplitude_contrast)
        write_micrographs(specimen, optics, settings, output)
        typer.echo(f"wrote {settings.n_micrographs} micrographs, masks, truth.star and truth_map.mrc to {output}")
        return DONE

    guarded(action)
