"""``cryoseg mask``: a soft mask around the density of a map."""

from pathlib import Path
from typing import Annotated

import typer

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.errors import BadInputError
from cryoseg_dist.formats.mrc import write_volume
from cryoseg_dist.pipeline.validation import read_cube
from cryoseg_dist.stages.postprocess import PostprocessSettings, automatic_mask

_DEFAULTS = PostprocessSettings()


def mask(
    volume: Annotated[Path, typer.Argument(help="Map (MRC), a cube.")],
    output: Annotated[Path, typer.Option(help="Mask to write.")],
    threshold: Annotated[
        float | None, typer.Option(help="Grey value of the density's surface; from the solvent's noise when not given.")
    ] = None,
    low_pass: Annotated[
        float, typer.Option(min=0.01, help="Low pass before the threshold [A].")
    ] = _DEFAULTS.mask_low_pass,
    extend: Annotated[float, typer.Option(min=0, help="Grow by so many pixels.")] = _DEFAULTS.mask_extend,
    edge: Annotated[
        float, typer.Option(min=0, help="Width of the soft edge outside that [pixels].")
    ] = _DEFAULTS.mask_edge,
    diameter: Annotated[
        float | None, typer.Option(help="Particle diameter [A]: nothing beyond it belongs to the density.")
    ] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Solvent instead of density.")] = False,
    pixel_size: Annotated[float | None, typer.Option(help="Pixel size [A]; the header's when not given.")] = None,
) -> None:
    """Make a soft mask: low pass, threshold, without specks and holes, grown, with a raised-cosine edge."""

    def action() -> int:
        data, pixel = read_cube(volume, pixel_size)
        settings = PostprocessSettings(
            mask_low_pass=low_pass, mask_threshold=threshold, mask_extend=extend, mask_edge=edge
        )
        made = automatic_mask(data, pixel, settings, diameter)
        if float(made.max()) == 0.0:
            where = f"above {threshold:g}" if threshold is not None else "above the solvent's noise"
            raise BadInputError(str(volume), f"density {where}", f"{float(data.max()):g} at most", "Lower --threshold.")
        write_volume(output, (1.0 - made if invert else made).numpy(), pixel)
        typer.echo(f"wrote {output}: {100 * float(made.mean()):.1f} % of the box is density")
        return DONE

    guarded(action)
