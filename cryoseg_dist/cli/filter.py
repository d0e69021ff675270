"""``cryoseg filter``: low, high and band pass, B-factor, and a filter that follows the local resolution."""

from pathlib import Path
from typing import Annotated

import typer

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.errors import SettingsError
from cryoseg_dist.formats.mrc import write_volume
from cryoseg_dist.kernels.filters import filtered
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.local_resolution import filter_locally
from cryoseg_dist.kernels.sharpen import apply_b_factor
from cryoseg_dist.pipeline.validation import read_cube, read_mask, read_on_grid


def filter(
    volume: Annotated[Path, typer.Argument(help="Map (MRC), a cube.")],
    output: Annotated[Path, typer.Option(help="Map to write.")],
    low_pass: Annotated[float | None, typer.Option(help="Remove what is finer [A].")] = None,
    high_pass: Annotated[float | None, typer.Option(help="Remove what is coarser [A].")] = None,
    edge_width: Annotated[
        float, typer.Option(min=0, help="Width of the raised-cosine edges about the cut-offs [Fourier shells].")
    ] = 2.0,
    b_factor: Annotated[float | None, typer.Option(help="Apply a B-factor [A^2]; a negative one sharpens.")] = None,
    local_resolution: Annotated[
        Path | None, typer.Option(help="Low-pass each voxel at its value in this map of resolutions (A).")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Multiply with this mask at last.")] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Pixel size [A]; the header's when not given.")] = None,
) -> None:
    """Filter a map: B-factor, then low and high pass, then local resolution, then mask."""

    def action() -> int:
        if all(x is None for x in (low_pass, high_pass, b_factor, local_resolution, mask)):
            raise SettingsError(
                [
                    "cryoseg filter: expected one of --low-pass, --high-pass, --b-factor, --local-resolution, --mask, got none."
                ]
            )
        data, pixel = read_cube(volume, pixel_size)
        n = data.shape[-1]
        local = None if local_resolution is None else read_on_grid(local_resolution, n, pixel)
        if local is not None and float(local.min()) <= 0:
            raise SettingsError(
                [
                    f"--local-resolution: expected resolutions above 0 A, got {float(local.min()):g} in {local_resolution}."
                ]
            )
        held = None if mask is None else read_mask(mask, n, pixel)
        if b_factor is not None:
            data = to_real(apply_b_factor(to_fourier(data, 3), pixel, b_factor), n, 3)
        if low_pass is not None or high_pass is not None:
            width = edge_width / (n * pixel)
            data = filtered(data, pixel, low_pass=low_pass, high_pass=high_pass, width=width, ndim=3, pad=False)
        if local is not None:
            data = filter_locally(data, local, pixel)
        if held is not None:
            data = data * held
        write_volume(output, data.numpy(), pixel)
        typer.echo(f"wrote {output}")
        return DONE

    guarded(action)
