"""``cryoseg validate``: what two half maps are worth."""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import ValidationError

from cryoseg_dist.cli import options as opt
from cryoseg_dist.cli.command_line import command_line
from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.errors import SettingsError
from cryoseg_dist.formats.fsc_files import write_fsc_xml
from cryoseg_dist.formats.mrc import write_volume
from cryoseg_dist.kernels.coverage import coverage_verdict, empty_cells, view_coverage
from cryoseg_dist.kernels.map_comparison import MapComparison
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.kernels.views import view_axes
from cryoseg_dist.pipeline import validation
from cryoseg_dist.pipeline.config import describe_fault
from cryoseg_dist.pipeline.maps import half_sets_of
from cryoseg_dist.pipeline.particle_curve import run_particle_curve
from cryoseg_dist.pipeline.particle_tables import read_particles
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.provenance import by_command
from cryoseg_dist.report.data import MapView
from cryoseg_dist.report.validation_page import build_validation
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.simulate.specimen import from_model
from cryoseg_dist.stages.particle_curve import ParticleCurve
from cryoseg_dist.stages.postprocess import PostprocessResult, PostprocessSettings, postprocess
from cryoseg_dist.stages.validate import ValidateSettings, ValidationResult
from cryoseg_dist.stages.validate import validate as validate_maps
from cryoseg_dist.store.project import Project, write_atomically


def settings_of(assignments: list[str] | None) -> tuple[PostprocessSettings, ValidateSettings]:
    """Settings of both sections from ``--set`` pairs.

    Raises
    ------
    SettingsError
        Lists every unknown or impossible one.
    """
    given: dict[str, dict[str, Any]] = {"postprocess": {}, "validation": {}}
    faults = []
    for key, value in opt.from_pairs(assignments).items():
        section, dot, name = key.partition(".")
        if not dot or section not in given:
            faults.append(f"--set {key}: expected postprocess.NAME or validation.NAME.")
        else:
            given[section][name] = value
    models: dict[str, Any] = {"postprocess": PostprocessSettings, "validation": ValidateSettings}
    made: dict[str, Any] = {}
    for section, model in models.items():
        try:
            made[section] = model.model_validate(given[section])
        except ValidationError as found:
            faults += [f"{section}.{describe_fault(f)}" for f in found.errors()]
    if faults:
        raise SettingsError(faults)
    return made["postprocess"], made["validation"]


def compare(
    halves: validation.Halves, maps: PostprocessResult, other: Path | None, model: Path | None
) -> dict[str, MapComparison]:
    """The map beside what the options name, by file name."""
    found = {}
    pixel, n = halves.pixel_size, halves.half1.shape[-1]
    if other is not None:
        density, its_pixel = validation.read_cube(other)
        found[other.name] = validation.compared(maps.unsharpened, density, its_pixel, maps, pixel)
    if model is not None:
        specimen = from_model(model, pixel_size=pixel, resolution=max(2.0 * pixel, 0.8 * maps.resolution), size=n)
        found[model.name] = validation.compared(maps.unsharpened, specimen.volume, pixel, maps, pixel)
    return found


def of_particles(
    particles: Particles, halves: validation.Halves, maps: PostprocessResult, symmetry: str, workers: int | None
) -> tuple[dict[str, Any], ParticleCurve | None]:
    """Coverage of the views and, where the images are those of the map, resolution against their number."""
    views = view_axes(particles.table[["rot", "tilt"]].to_numpy(float), symmetry)
    coverage = view_coverage(views)
    verdict = coverage_verdict(coverage)
    shell = halves.half1.shape[-1] * halves.pixel_size / maps.resolution
    figures = {
        "particles": len(particles),
        "sampling_factor": coverage.sampling_factor,
        "efficiency": coverage.efficiency,
        "empty_directions": coverage.empty_fraction,
        "empty_cells_at_resolution": empty_cells(views, shell),
        "poorest_sampling": coverage.worst_sampling,
        "missing": coverage.empty_shape,
        "missing_half_angle": coverage.empty_half_angle,
        "missing_axis": list(coverage.empty_axis),
        "elongation": coverage.elongation if np.isfinite(coverage.elongation) else None,
        "verdict": verdict.kind,
        "words": verdict.words,
    }
    same = particles.size == halves.half1.shape[-1]
    if not same or abs(particles.optics.pixel_size / halves.pixel_size - 1.0) > 0.01:
        typer.echo("the particles' box or pixel size is not that of the half maps: no curve over their number")
        return figures, None
    with tempfile.TemporaryDirectory() as folder:
        Project(Path(folder), create=True)
        curve = run_particle_curve(
            Accumulation(Path(folder), workers or 1),
            particles,
            half_sets_of(particles, 0),
            maps.mask,
            symmetry=symmetry,
            tell=lambda text: typer.echo(f"reconstructing {text}"),
        )
    return figures, curve


def key_figures(maps: PostprocessResult, found: ValidationResult) -> list[tuple[str, str, str]]:
    """What heads the page."""
    low, middle, high = found.local_range
    return [
        ("Resolution", f"{maps.resolution:.2f} Å", f"FSC 0.143 (0.5: {maps.resolution_half:.2f} Å)"),
        ("Without a mask", f"{maps.resolution_unmasked:.2f} Å", "FSC 0.143"),
        ("Local resolution", f"{middle:.1f} Å", f"median; {low:.1f} to {high:.1f} Å"),
        ("cFAR", f"{found.conical.ratio:.2f}", "1 is even, below 0.5 is directional"),
        ("B-factor", "none" if maps.b_factor is None else f"{maps.b_factor:.0f} Å²", "of the sharpened map"),
        ("Mask", f"{100 * maps.mask_fraction:.1f} %", "of the box"),
    ]


def write_results(
    output: Path,
    halves: validation.Halves,
    maps: PostprocessResult,
    found: ValidationResult,
    comparisons: Mapping[str, MapComparison],
    extra: Mapping[str, Any],
) -> None:
    """Maps, curves and ``validation.json``."""
    pixel, n = halves.pixel_size, halves.half1.shape[-1]
    output.mkdir(parents=True, exist_ok=True)
    made = by_command(command_line())
    for name, volume in (("map.mrc", maps.sharpened), ("mask.mrc", maps.mask)):
        write_volume(output / name, volume.numpy(), pixel, made.lines())
    validation.write_validation_maps(output, found, pixel, made)
    validation.write_fsc(output, maps, found, pixel, made)
    rows = []
    for i, (name, other) in enumerate(comparisons.items(), start=1):
        rows.append(validation.comparison_figures(other, name, n, pixel))
        write_volume(output / f"compared_{i}.mrc", other.moved.numpy(), pixel, made.lines())
        title = f"FSC with {name}"
        write_fsc_xml(output / f"fsc_compared_{i}.xml", other.curve.numpy(), n, pixel, title, made.lines())
    figures = {
        "box": n,
        "pixel_size": pixel,
        **validation.map_figures(maps),
        **validation.validation_figures(found),
        "comparisons": rows,
        **extra,
        "provenance": made.to_json(),
    }
    write_atomically(output / "validation.json", json.dumps(figures, indent=1) + "\n")


def validate(
    half1: Annotated[Path, typer.Argument(help="First half map (MRC).")],
    half2: Annotated[Path, typer.Argument(help="Second half map (MRC).")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("validation"),
    mask: Annotated[Path | None, typer.Option(help="Mask (MRC); made from the map when not given.")] = None,
    density: Annotated[Path | None, typer.Option("--map", help="Another map (MRC) to compare with.")] = None,
    model: Annotated[Path | None, typer.Option(help="Atomic model (mmCIF or PDB, gzip too) to compare with.")] = None,
    particles: Annotated[
        Path | None, typer.Option(help="STAR file of particles with angles: views, and resolution by their number.")
    ] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Pixel size [A]; the headers' when not given.")] = None,
    diameter: opt.Diameter = None,
    symmetry: Annotated[str, typer.Option(help="Point group of the particles.")] = "C1",
    workers: opt.Workers = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, as in --set postprocess.mask_extend=5.")
    ] = None,
) -> None:
    """Resolution, its direction and place, sharpening, and agreement with another map or a model."""

    def action() -> int:
        started = time.monotonic()
        post, valid = settings_of(assignments)
        operators(symmetry)
        halves = validation.read_halves(half1, half2, pixel_size)
        given = None if mask is None else validation.read_mask(mask, halves.half1.shape[-1], halves.pixel_size)
        images = None if particles is None else read_particles(particles, diameter, poses=True)
        pixel = halves.pixel_size
        maps = postprocess(halves.half1, halves.half2, pixel, post, diameter=diameter, mask=given)
        found = validate_maps(halves.half1, halves.half2, maps, pixel, valid)
        comparisons = compare(halves, maps, density, model)
        views, curve = (None, None) if images is None else of_particles(images, halves, maps, symmetry, workers)
        extra: dict[str, Any] = {
            "half1": str(half1),
            "half2": str(half2),
            "command": command_line(),
            "orientations": views,
            "resolution_by_particles": None if curve is None else validation.curve_figures(curve),
        }
        write_results(output, halves, maps, found, comparisons, extra)
        page = build_validation(
            f"{half1.name} and {half2.name}",
            time.strftime("%Y-%m-%d %H:%M"),
            key_figures(maps, found),
            validation.fsc_view(maps, pixel),
            MapView(maps.sharpened.numpy(), pixel, diameter),
            validation.validation_view(maps, found, post, pixel, curve=curve, comparisons=comparisons),
            [
                ("half maps", f"{half1}, {half2}"),
                ("grid", f"{halves.half1.shape[-1]} pixels of {pixel:g} Å"),
                ("mask", "made from the map" if mask is None else str(mask)),
                *((("other map", str(density)),) if density is not None else ()),
                *((("model", str(model)),) if model is not None else ()),
                *((("particles", str(particles)),) if particles is not None else ()),
                ("command", " ".join(command_line())),
            ],
            orientations=None if images is None else images.table[["rot", "tilt"]].to_numpy(float),
            symmetry=symmetry,
        )
        write_atomically(output / "validation.html", page)
        for text in (
            *found.words,
            *(row["words"] for row in validation_words(comparisons, halves)),
            *((views["words"],) if views is not None else ()),
            *((curve.words,) if curve is not None else ()),
        ):
            typer.echo(text)
        typer.echo(f"wrote {output / 'validation.html'} in {time.monotonic() - started:.1f} s")
        return DONE

    guarded(action)


def validation_words(comparisons: Mapping[str, MapComparison], halves: validation.Halves) -> list[dict[str, Any]]:
    """Figures of each comparison."""
    n = halves.half1.shape[-1]
    return [validation.comparison_figures(c, name, n, halves.pixel_size) for name, c in comparisons.items()]
