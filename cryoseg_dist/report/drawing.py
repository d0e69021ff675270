"""How figures get into a page: inline SVG in the page's colours, grey images as PNG."""

import base64
import functools
import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that stand for style variables of the page, so that a figure follows its light or dark scheme.
INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050505", "#060606", "#070707", "#080808")
P = ParamSpec("P")
R = TypeVar("R")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
    **{colour: f"var(--series-{i + 1})" for i, colour in enumerate(SERIES)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw a figure in the style of the page."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inner


def figure(width: float, height: float, projection: str | None = None) -> tuple[Figure, Axes]:
    """A figure of one panel; sizes in inches, of which 96 CSS pixels make one."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.add_subplot(projection=projection)


def svg(drawing: Figure, label: str, key: str = "") -> Markup:
    """Inline SVG of a figure, as wide as drawn or as the page allows.

    Parameters
    ----------
    drawing : Figure
    label : str
        Text for readers that cannot see it.
    key : str
        Tells figures of one label apart: names of clip paths and markers follow from both.
    """
    buffer = io.BytesIO()
    # The salt names clip paths: it must differ between the figures of a page and be the same in every run.
    with mpl.rc_context({"svg.hashsalt": f"{key} {label}"}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    # Element names that matplotlib numbers from one in every figure.
    text = re.sub(
        r' id="(figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|legend|LineCollection|PathCollection)_\d+"',
        "",
        text,
    )
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    width = 96.0 * drawing.get_figwidth()
    head = f'<svg role="img" aria-label="{Markup.escape(label)}" style="max-width: {width:.0f}px"'
    return Markup(text.replace("<svg", head, 1))


def grey_png(values: np.ndarray) -> str:
    """Data address of a grey PNG of 8-bit values, shape (y, x)."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(values, dtype=np.uint8))

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    data += part(b"IDAT", zlib.compress(rows, 9)) + part(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def stretched(image: np.ndarray, low: float = 0.5, high: float = 99.5) -> np.ndarray:
    """Grey values between two percentiles spread over 0 to 255; not-a-number becomes mid-grey."""
    values = np.asarray(image, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return np.full(values.shape, 128, dtype=np.uint8)
    bottom, top = np.percentile(values[finite], [low, high])
    if top <= bottom:
        return np.full(values.shape, 128, dtype=np.uint8)
    scaled = (np.where(finite, values, 0.5 * (bottom + top)) - bottom) / float(top - bottom)
    return np.rint(255.0 * np.clip(scaled, 0.0, 1.0)).astype(np.uint8)


def shrunk(image: np.ndarray, largest: int) -> np.ndarray:
    """Average blocks of pixels until no side exceeds ``largest``."""
    factor = -(-max(image.shape[-2:]) // largest)
    if factor <= 1:
        return image
    height, width = (n // factor * factor for n in image.shape[-2:])
    cut = np.asarray(image[..., :height, :width], dtype=np.float32)
    shape = (*cut.shape[:-2], height // factor, factor, width // factor, factor)
    return cut.reshape(shape).mean(axis=(-3, -1))
