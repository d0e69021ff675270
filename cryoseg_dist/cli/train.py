"""``cryoseg train``: fit the segmentation network."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cryoseg_dist.cli.command_line import command_line
from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.cli.options import from_pairs
from cryoseg_dist.cli.progress import duration
from cryoseg_dist.errors import SettingsError
from cryoseg_dist.pipeline.config import describe_fault
from cryoseg_dist.pipeline.micrographs import find_micrographs, model_path
from cryoseg_dist.stages.segment import SegmentSettings
from cryoseg_dist.training.sources import LabelledSet, training_source
from cryoseg_dist.training.train import TrainSettings, load_model
from cryoseg_dist.training.train import train as fit


def train(
    output: Annotated[Path, typer.Option(help="Folder of the model, its checkpoint and its log.")],
    simulated: Annotated[bool, typer.Option(help="Train on synthetic patches, from scratch.")] = False,
    micrographs: Annotated[str | None, typer.Option(help="Glob pattern of micrographs to learn from.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of coordinates (CSV, box, STAR) or masks named like them, or a STAR file."),
    ] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Pixel size of the micrographs [A].")] = None,
    diameter: Annotated[float | None, typer.Option(help="Particle diameter [A].")] = None,
    protein_dark: Annotated[bool, typer.Option(help="Protein darker than the ice.")] = True,
    start_from: Annotated[
        Path | None, typer.Option(help="Model to start from; the shipped one for micrographs.")
    ] = None,
    synthetic_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of synthetic patches beside real ones.")
    ] = 0.25,
    iterations: Annotated[int | None, typer.Option(help="Number of batches.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="Any setting, as in --set batch=4.")] = None,
) -> None:
    """Fit the network to micrographs with coordinates or masks, or to synthetic patches; a second run goes on."""

    def action() -> int:
        real = micrographs is not None
        faults = []
        if real == simulated:
            faults.append("train: expected either --simulated or --micrographs.")
        if real and (labels is None or pixel_size is None or diameter is None):
            faults.append("train: expected --labels, --pixel-size and --diameter with --micrographs.")
        given = from_pairs(assignments)
        if real:
            # A few batches at a small rate teach a specimen without forgetting the rest.
            given = {"iterations": 150, "batch": 4, "learning_rate": 5e-4, "average_decay": 0.98, **given}
        if iterations is not None:
            given["iterations"] = iterations
        try:
            settings = TrainSettings.model_validate(given)
        except ValidationError as error:
            faults += [describe_fault(f) for f in error.errors()]
        if faults:
            raise SettingsError(faults)
        start = start_from
        sets = []
        network = None
        if micrographs is not None and labels is not None and pixel_size is not None and diameter is not None:
            start = start_from or model_path(SegmentSettings())
            network, _ = load_model(start)
            files = tuple(find_micrographs(micrographs))
            sets = [LabelledSet(files, labels, pixel_size, diameter, protein_dark)]
        source, data = training_source(sets, synthetic_share=synthetic_share if sets else 1.0, start=network)
        result = fit(
            settings,
            source,
            output,
            start_from=start,
            data=data,
            device=device,
            on_progress=Teller(),
            metadata={"command": " ".join(command_line())},
        )
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
        typer.echo(f"wrote {result.model}: loss {result.loss:.3f}, {metrics}")
        return DONE

    guarded(action)


class Teller:
    """Prints a line every ten seconds, with the time left."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, iteration: int, total: int, figures: Mapping[str, float]) -> None:
        """Take a batch's figures."""
        if self._first is None:
            self._first = iteration - 1
        now = time.monotonic()
        if now - self._told < 10.0 and iteration < total:
            return
        self._told = now
        rate = (iteration - self._first) / (now - self._started)
        left = duration((total - iteration) / rate)
        typer.echo(f"batch {iteration} of {total}, loss {figures['loss']:.3f}, {left} left", err=True)
