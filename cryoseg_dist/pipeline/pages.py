"""What the report shows of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc, resolution
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.pipeline.provenance import provenance_of
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.report import data as report
from cryoseg_dist.report.page import build
from cryoseg_dist.schema.work import Region
from cryoseg_dist.store.manifest import package_versions
from cryoseg_dist.store.project import write_atomically

if TYPE_CHECKING:
    from cryoseg_dist.pipeline.run import RunResult

MOST_MICROGRAPHS = 24


def write_report(session: Session, result: RunResult, truth: Tensor | None = None) -> None:
    """Write ``export/report.html``."""
    write_atomically(session.project.export / "report.html", build(report_data(session, result, truth)))


def report_data(session: Session, result: RunResult, truth: Tensor | None) -> report.ReportData:
    """Gather what the page shows from the stages that ran."""
    s = session.settings
    f = result.figures()
    refined, maps = result.refined, result.maps
    summary = report.RunSummary(
        project=session.project.root.name,
        command=" ".join(session.command),
        ended=time.strftime("%Y-%m-%d %H:%M"),
        wall_seconds=sum(result.seconds.values()),
        micrographs=f.get("micrographs"),
        micrographs_used=f.get("micrographs_accepted"),
        particles_picked=f.get("picks"),
        particles_used=f.get("particles"),
        resolution=f.get("resolution"),
        resolution_half=f.get("resolution_half"),
        pixel_size=f.get("pixel_size"),
        box=f.get("box"),
        symmetry=s.particle.symmetry,
        diameter=s.particle.diameter,
        b_factor=f.get("b_factor"),
        versions=package_versions(),
        # The command stands above.
        provenance=() if refined is None else provenance_of(session, refined.run).lines()[:-1],
    )
    return report.ReportData(
        summary=summary,
        micrographs=gallery(session, result),
        ctf=fits(session, result),
        classes=None
        if result.classified is None
        else report.ClassView(
            result.classified.averages,
            result.classified.counts,
            result.classified.selected,
            result.classified.particles.optics.pixel_size,
        ),
        orientations=None if refined is None else refined.particles.table[["rot", "tilt"]].to_numpy(float),
        fsc=None
        if maps is None or refined is None
        else report.FscView(
            {name: curve.numpy() for name, curve in maps.curves.items()},
            refined.particles.size,
            refined.particles.optics.pixel_size,
            maps.resolution,
            maps.resolution_half,
        ),
        truth_fsc=None
        if truth is None or maps is None or refined is None
        else against_truth(maps.unsharpened, truth, refined),
        map=None
        if maps is None or refined is None
        else report.MapView(maps.sharpened.numpy(), refined.particles.optics.pixel_size, s.particle.diameter),
        set_aside=[report.SetAside(item.stage, item.item, item.reason) for item in result.set_aside],
        stage_seconds=result.seconds,
        iterations=[]
        if refined is None
        else [
            report.IterationView(int(i["iteration"]), i["resolution"], i["angular_step"]) for i in refined.iterations
        ],
        settings=s.model_dump(),
    )


def gallery(session: Session, result: RunResult) -> list[report.MicrographView]:
    """Micrographs at the coarse level with their picks."""
    m, picks = result.micrographs, result.picks
    if m is None:
        return []
    accepted = set(result.fits.accepted) if result.fits is not None else set(m.usable)
    scale = session.settings.data.pixel_size / m.level_pixel_size
    views = []
    for i in m.usable[:MOST_MICROGRAPHS]:
        level = session.project.read(Region(f"{m.run}/level8", (i, 0, 0), (i + 1, *m.level_shape)))[0]
        here = np.empty((0, 2))
        if picks is not None:
            mine = picks.index == i
            here = np.column_stack((picks.x[mine], picks.y[mine])) * scale
        views.append(
            report.MicrographView(
                Path(m.paths[i]).name,
                level.astype(np.float32),
                m.level_pixel_size,
                here,
                session.settings.particle.diameter,
                i in accepted,
            )
        )
    return views


def fits(session: Session, result: RunResult) -> list[report.CtfView]:
    """CTF fits with their pictures."""
    m, held = result.micrographs, result.fits
    if m is None or held is None:
        return []
    views = []
    for n, (i, record) in enumerate(held.records.items()):
        picture: Any = None
        if n < MOST_MICROGRAPHS:
            shape = session.project.shape(f"{held.run}/spectra")[1:]
            picture = session.project.read(Region(f"{held.run}/spectra", (i, 0, 0), (i + 1, *shape)))[0].astype(
                np.float32
            )
        views.append(report.CtfView(Path(m.paths[i]).name, record, picture))
    return views


def against_truth(volume: Tensor, truth: Tensor, refined: Any) -> report.FscView:
    """FSC of a map with a known truth on the same grid, inside a soft sphere."""
    n, pixel = volume.shape[-1], refined.particles.optics.pixel_size
    sphere = soft_sphere(n, min(0.5 * refined.particles.diameter / pixel, 0.5 * n - 4), 4.0)
    curve = fsc(to_fourier(volume * sphere, 3), to_fourier(torch.as_tensor(truth) * sphere, 3))
    return report.FscView(
        {"masked": curve.numpy()}, n, pixel, resolution(curve, n, pixel), resolution(curve, n, pixel, 0.5)
    )
