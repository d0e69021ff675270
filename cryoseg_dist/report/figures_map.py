"""Slices and projections of the map."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from cryoseg_dist.report.data import MapView
from cryoseg_dist.report.drawing import grey_png, shrunk, stretched
from cryoseg_dist.report.figures_micrographs import scale_bar


@dataclass(frozen=True, slots=True)
class MapPicture:
    """One view of the map: ``along`` names the axis that was cut or summed."""

    kind: str
    along: str
    picture: Markup


def cropped(view: MapView) -> np.ndarray:
    """The middle of the map, a fifth wider than the particle where its diameter is known."""
    volume = np.asarray(view.volume, dtype=np.float32)
    n = volume.shape[-1]
    if not view.diameter:
        return volume
    half = min(n // 2, int(np.ceil(0.6 * view.diameter / view.pixel_size)) + 1)
    middle = slice(n // 2 - half, n // 2 + half)
    return volume[middle, middle, middle]


def _picture(image: np.ndarray, pixel_size: float, label: str) -> Markup:
    small = shrunk(image, 400)
    scale = pixel_size * (image.shape[-1] // small.shape[-1])
    height, width = small.shape
    bar = scale_bar(width * scale)
    return Markup(
        f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<image href="{grey_png(stretched(small, 0.1, 99.9))}" width="{width}" height="{height}"/>'
        f'<g class="bar"><rect x="{0.05 * width:.2f}" y="{0.93 * height:.2f}" width="{bar / scale:.2f}" '
        f'height="{0.014 * height:.2f}"/><text x="{0.05 * width:.2f}" y="{0.91 * height:.2f}" '
        f'font-size="{0.055 * width:.2f}">{bar / 10:g} nm</text></g></svg>'
    )


def map_pictures(view: MapView) -> list[MapPicture]:
    """Central slices, then projections, along z, y and x."""
    volume = cropped(view)
    out = []
    for kind in ("Slice", "Projection"):
        for axis, name in enumerate("zyx"):
            image = volume.take(volume.shape[axis] // 2, axis) if kind == "Slice" else volume.sum(axis=axis)
            label = f"{kind} of the map along {name}"
            out.append(MapPicture(kind, name, _picture(image, view.pixel_size, label)))
    return out
