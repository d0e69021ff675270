"""``cryoseg demo``: the main job on simulated micrographs, compared with the truth."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from cryoseg_dist.cli.command_line import command_line
from cryoseg_dist.cli.guard import DONE, FAILED, guarded
from cryoseg_dist.cli.options import Engine
from cryoseg_dist.cli.session import open_session
from cryoseg_dist.cli.simulate import write_micrographs
from cryoseg_dist.formats.star import read_star
from cryoseg_dist.kernels.alignment import Alignment, align
from cryoseg_dist.kernels.evaluation import PickingScore, match_centres
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc, resolution
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.pipeline.config import build_settings
from cryoseg_dist.pipeline.export import export_result
from cryoseg_dist.pipeline.maps import reference_map
from cryoseg_dist.pipeline.pages import write_report
from cryoseg_dist.pipeline.run import RunResult, run_pipeline
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import SimulateSettings
from cryoseg_dist.simulate.specimen import made_up

OPTICS = Optics(pixel_size=3.0, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)
DIAMETER = 150.0
MICROGRAPHS = SimulateSettings(n_micrographs=8, width=1024, height=1024, particles=110, snr=0.15, ice_noise=0.6, seed=1)


def demo(
    project: Annotated[Path, typer.Option("--project", "-P", help="Folder of the demo.")] = Path("demo"),
    engine: Engine = None,
    symmetry: Annotated[str, typer.Option(help="Point group of the specimen; C1 takes longer.")] = "D2",
) -> None:
    """Simulate micrographs, process them to a map and a report, and compare the map with the truth."""
    guarded(lambda: run_demo(project, engine, symmetry))


def run_demo(project: Path, engine: str | None, symmetry: str) -> int:
    """The demo; its exit code."""
    typer.echo(f"simulating {MICROGRAPHS.n_micrographs} micrographs of a {symmetry} specimen")
    specimen = made_up(symmetry=symmetry, diameter=DIAMETER, size=72, pixel_size=OPTICS.pixel_size, seed=1)
    simulated = project / "simulated" / symmetry
    write_micrographs(specimen, OPTICS, MICROGRAPHS, simulated)
    settings = build_settings(
        {
            "data": {
                "micrographs": str(simulated / "micrographs" / "*.mrc"),
                "pixel_size": OPTICS.pixel_size,
                "voltage": OPTICS.voltage,
                "spherical_aberration": OPTICS.spherical_aberration,
                "amplitude_contrast": OPTICS.amplitude_contrast,
            },
            "particle": {"diameter": DIAMETER, "symmetry": symmetry},
            "engine": {"engine": engine or "ray"},
        }
    )
    with open_session(settings, project, command_line()) as session:
        result = run_pipeline(session, until="postprocess")
        found = compare(result, simulated / "truth_map.mrc")
        score = picking_score(result, simulated / "truth.star")
        write_report(session, result, found.volume)
        figures = truth_figures(result, found, score)
        export_result(session.project.export, {**result.figures(), "truth": figures})
    typer.echo(result.summary())
    typer.echo(
        f"truth        picks: recall {score.recall:.2f}, precision {score.precision:.2f}; map: FSC with the truth "
        f"falls to 0.5 at {figures['resolution_half']:.1f} A, hand {'other' if found.mirrored else 'same'} "
        "(images alone cannot tell the hand)"
    )
    return DONE if figures["resolution_half"] < 20.0 else FAILED


def compare(result: RunResult, truth: Path) -> Alignment:
    """The truth turned onto the map: its frame, and its hand, are free."""
    if result.maps is None or result.particles is None:
        raise ValueError("compare a finished run")
    size, pixel = result.particles.size, result.particles.optics.pixel_size
    return align(reference_map(truth, size, pixel), result.maps.unsharpened, size * pixel / 12.0)


def picking_score(result: RunResult, truth: Path) -> PickingScore:
    """Picks of all micrographs against the truth, within half a diameter."""
    picks, micrographs = result.picks, result.micrographs
    if picks is None or micrographs is None:
        raise ValueError("compare a run that picked")
    rows = read_star(truth).rows
    offsets = {Path(p).name: i * 1e7 for i, p in enumerate(micrographs.paths)}
    known = rows[["coordinate_x", "coordinate_y"]].to_numpy(float).copy()
    known[:, 0] += rows["micrograph_name"].map(offsets).to_numpy(float)
    found = torch.tensor([[x + m * 1e7, y] for m, x, y in zip(picks.index, picks.x, picks.y, strict=True)])
    radius = 0.5 * DIAMETER / OPTICS.pixel_size
    return match_centres(found.double().numpy().reshape(-1, 2), known, radius)


def truth_figures(result: RunResult, found: Alignment, score: PickingScore) -> dict[str, float | bool]:
    """Figures of the comparison, as JSON values."""
    if result.maps is None or result.particles is None:
        raise ValueError("compare a finished run")
    size, pixel = result.particles.size, result.particles.optics.pixel_size
    sphere = soft_sphere(size, min(0.5 * DIAMETER / pixel, 0.5 * size - 4), 4.0)
    curve = fsc(to_fourier(result.maps.unsharpened * sphere, 3), to_fourier(found.volume * sphere, 3))
    return {
        "recall": score.recall,
        "precision": score.precision,
        "centre_error_px": score.rms_error,
        "resolution_half": resolution(curve, size, pixel, 0.5),
        "correlation": found.correlation,
        "mirrored": found.mirrored,
    }
