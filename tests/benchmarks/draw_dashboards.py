"""Draw the panels of the Grafana dashboards from a running Prometheus, to see what they show where there is no Grafana.

``python tests/benchmarks/draw_dashboards.py --prometheus http://localhost:9090 --minutes 20 --output DIR`` writes one
picture a dashboard and tells how many of the questions had an answer.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

BOARDS = sorted((Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "dashboards").glob("*.json"))
POINTS = 240
CELL = 0.62  # inches of a unit of Grafana's grid
UNITS = {"bytes": 2.0**30, "percentunit": 0.01}


def ask(server: str, path: str, **query: Any) -> list[dict[str, Any]]:
    """Series that answer a question."""
    with urlopen(f"{server}/api/v1/{path}?{urlencode(query)}", timeout=30) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def series_of(
    server: str, panel: dict[str, Any], start: float, end: float
) -> list[tuple[str, list[float], list[float]]]:
    """Name, times in minutes and values of every series of a panel; last values alone where it shows no course."""
    step = max(1.0, (end - start) / POINTS)
    found = []
    for target in panel["targets"]:
        query = re.sub(r"\$(job|instance)", ".+", target["expr"]).replace("$__interval", f"{math.ceil(step)}s")
        for one in ask(server, "query_range", query=query, start=start, end=end, step=step):
            labels = {k: v for k, v in one["metric"].items() if k not in ("__name__", "instance", "job")}
            legend = target.get("legendFormat") or "{{" + "}} {{".join(labels or {"": ""}) + "}}"
            name = re.sub(r"\{\{\s*(\w*)\s*\}\}", lambda m, held=one["metric"]: held.get(m.group(1), ""), legend)
            pairs = [(float(t), float(v)) for t, v in one["values"] if math.isfinite(float(v))]
            if pairs:
                found.append((name or panel["title"], [(t - start) / 60 for t, _ in pairs], [v for _, v in pairs]))
    return found


def draw(axes: Any, panel: dict[str, Any], series: list[tuple[str, list[float], list[float]]]) -> None:
    """One panel."""
    scale = UNITS.get(panel.get("fieldConfig", {}).get("defaults", {}).get("unit", ""), 1.0)
    axes.set_title(panel["title"], fontsize=8, loc="left")
    axes.tick_params(labelsize=6)
    if not series:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", fontsize=8, color="#888")
        axes.set_axis_off()
    elif panel["type"] in ("stat", "table", "bargauge"):
        axes.set_axis_off()
        for i, (name, _, values) in enumerate(series[:12]):
            height = 0.9 - i / max(len(series[:12]), 3)
            axes.text(0.02, height, name[:40], fontsize=6, transform=axes.transAxes, va="top")
            axes.text(
                0.98, height, f"{values[-1] / scale:,.4g}", fontsize=7, transform=axes.transAxes, va="top", ha="right"
            )
    else:
        for name, times, values in series[:12]:
            axes.plot(times, [v / scale for v in values], label=name[:40], linewidth=1)
        axes.set_xlabel("minutes", fontsize=6)
        axes.legend(fontsize=5, frameon=False)


def main() -> None:
    """Draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://localhost:9090")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--output", type=Path, required=True)
    choice = parser.parse_args()
    choice.output.mkdir(parents=True, exist_ok=True)
    end = time.time()
    for path in BOARDS:
        panels = [p for p in json.loads(path.read_text(encoding="utf-8"))["panels"] if p.get("targets")]
        rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
        figure = plt.figure(figsize=(24 * CELL, rows * CELL), dpi=100)
        answered = 0
        for panel in panels:
            g = panel["gridPos"]
            place = (g["x"] / 24 + 0.03, 1 - (g["y"] + g["h"]) / rows + 0.6 / rows)
            axes = figure.add_axes((*place, g["w"] / 24 - 0.05, (g["h"] - 1.6) / rows))
            found = series_of(choice.prometheus, panel, end - 60 * choice.minutes, end)
            answered += bool(found)
            draw(axes, panel, found)
        figure.savefig(choice.output / f"{path.stem}.png")
        plt.close(figure)
        print(f"{path.stem}: {answered} of {len(panels)} panels have data")


if __name__ == "__main__":
    main()
