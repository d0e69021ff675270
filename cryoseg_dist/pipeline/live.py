"""What a live page shows of a project, read beside a driver that may be at work: nothing is written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoseg_dist.errors import CryosegError
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc, resolution
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.report.data import MicrographView
from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.schema.work import Region
from cryoseg_dist.stages.pick import PickSettings, choose_threshold
from cryoseg_dist.store.project import Project


def marks_of(project: Project, run: str) -> dict[int, dict[str, Any]]:
    """Marks of a stage's units by micrograph, oldest first; a last line that is not whole is left alone."""
    try:
        lines = project.ledger_path(run).read_bytes()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines[: lines.rfind(b"\n") + 1].splitlines():
        mark = json.loads(line)
        found[int(mark["key"].rpartition("/")[2])] = mark
    return found


class LiveProject:
    """Reads the newest results of a project.

    Parameters
    ----------
    root : Path
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._project: Project | None = None
        self._fsc: tuple[str, FscView] | None = None

    @property
    def project(self) -> Project:
        """The project.

        Raises
        ------
        BadInputError
            There is none yet.
        """
        if self._project is None:
            self._project = Project(self._root)
        return self._project

    def settings(self) -> Mapping[str, Any]:
        """Settings that were given."""
        return self.project.read_json("settings.json") or {}

    def micrographs(self, runs: Mapping[str, str], most: int = 6) -> list[MicrographView]:
        """The micrographs that were worked on last, newest first, with their picks so far."""
        taken = marks_of(self.project, runs.get("ingest", ""))
        judged = marks_of(self.project, runs.get("ctf", ""))
        picked = {i: m for i, m in marks_of(self.project, runs.get("pick", "")).items() if m["outcome"] == "done"}
        settings = self.settings()
        threshold = 0.0
        if picked:
            section = PickSettings.model_validate(settings.get("pick", {}))
            threshold = choose_threshold([m["record"] for m in picked.values()], section)
        latest = list(picked or judged or {i: m for i, m in taken.items() if m["outcome"] == "done"})[-most:]
        views = []
        for i in reversed(latest):
            record = taken[i]["record"]
            level = self._row(f"{runs['ingest']}/level8", i)
            pixel = float(record["level_pixel_size"])
            picks = None
            if i in picked:
                found = self._row(f"{runs['pick']}/picks", i)[: int(picked[i]["record"]["n_candidates"])]
                scale = float(settings["data"]["pixel_size"]) / pixel
                picks = found[found[:, 2] >= threshold, :2] * scale
            accepted = bool(judged.get(i, {}).get("record", {}).get("accepted", True))
            diameter = settings.get("particle", {}).get("diameter")
            views.append(
                MicrographView(Path(record["path"]).name, level.astype(np.float32), pixel, picks, diameter, accepted)
            )
        return views

    def _row(self, array: str, i: int) -> np.ndarray:
        rest = self.project.shape(array)[1:]
        return self.project.read(Region(array, (i, 0, 0), (i + 1, *rest)))[0]

    def classes(self, run: str, iteration: int | None) -> np.ndarray | None:
        """The newest class averages."""
        for name in (f"{run}/averages", f"{run}/it{iteration or 0:03d}/averages"):
            if run and self.project.exists(name):
                return self.project.read(self.project.whole(name))
        return None

    def correlation(self, run: str, iteration: int | None) -> FscView | None:
        """FSC of the half maps of the last iteration, inside a soft sphere; the report holds the final, corrected one."""
        name = f"{run}/it{iteration or 0:03d}/maps"
        if self._fsc is not None and self._fsc[0] == name:
            return self._fsc[1]
        try:
            pixel = float(self.project.attributes(name)["pixel_size"])
            n = self.project.shape(name)[-1]
            halves = self.project.read(Region(name, (2, 0, 0, 0), (4, n, n, n)))
        except (CryosegError, KeyError):
            return None
        sphere = soft_sphere(n, 0.5 * n - 6, 4.0)
        spectra = [to_fourier(torch.from_numpy(half.astype(np.float32)) * sphere, 3) for half in halves]
        curve = fsc(*spectra)
        view = FscView({"masked": curve.numpy()}, n, pixel, resolution(curve, n, pixel), None)
        self._fsc = (name, view)
        return view
