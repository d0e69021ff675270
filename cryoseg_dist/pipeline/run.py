"""The run: every stage in order, up to the one that is asked for."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryoseg_dist.errors import BadInputError, SettingsError
from cryoseg_dist.pipeline import export
from cryoseg_dist.pipeline.classes import Classified, run_classify
from cryoseg_dist.pipeline.common_lines import common_lines_map
from cryoseg_dist.pipeline.maps import Refined, reference_map, run_refine
from cryoseg_dist.pipeline.mend import mended
from cryoseg_dist.pipeline.micrographs import (
    CtfFits,
    Micrographs,
    Picks,
    SetAside,
    run_ctf,
    run_ingest,
    run_pick,
)
from cryoseg_dist.pipeline.pages import write_report
from cryoseg_dist.pipeline.particles import Particles, run_extract
from cryoseg_dist.pipeline.provenance import provenance_of
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.stochastic import run_stochastic
from cryoseg_dist.pipeline.stored_images import keep_places
from cryoseg_dist.runtime.events import Figures
from cryoseg_dist.stages.postprocess import PostprocessResult, postprocess

# Figures that listeners are told of as they come up.
TOLD = (
    "micrographs",
    "micrographs_accepted",
    "picks",
    "particles",
    "box",
    "pixel_size",
    "resolution",
    "resolution_half",
)
# A resolution within this factor of the limit of the pixels may be theirs rather than the data's.
NEAR_LIMIT = 1.15
STAGES = ("ingest", "ctf", "segment", "pick", "extract", "classify", "abinitio", "refine", "postprocess", "report")


@dataclass
class RunResult:
    """What a run gave, as far as it went.

    Attributes
    ----------
    session : Session
    micrographs, fits, picks, extracted, classified, particles, refined, maps
        Of each stage that ran; ``particles`` are those that were refined or are ready to be.
    start : str, optional
        What made the first map.
    seconds : dict of str to float
        Wall-clock time of each stage, earlier calls included.
    """

    session: Session
    micrographs: Micrographs | None = None
    fits: CtfFits | None = None
    picks: Picks | None = None
    extracted: Particles | None = None
    classified: Classified | None = None
    particles: Particles | None = None
    start: str | None = None
    refined: Refined | None = None
    maps: PostprocessResult | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def set_aside(self) -> list[SetAside]:
        """Everything that the run went on without."""
        parts = (self.micrographs, self.fits, self.picks, self.extracted, self.classified, self.refined)
        return [item for part in parts if part is not None for item in part.set_aside]

    @property
    def n_set_aside(self) -> int:
        """How many micrographs were set aside; sorting particles is no fault."""
        return sum(item.stage not in ("extract", "classify") for item in self.set_aside)

    def figures(self) -> dict[str, Any]:
        """Every figure, for ``result.json``."""
        s = self.session.settings
        out: dict[str, Any] = {
            "project": str(self.session.project.root),
            "command": list(self.session.command),
            "seconds": self.seconds,
            "symmetry": s.particle.symmetry,
            "diameter": s.particle.diameter,
            "set_aside": [vars(item) for item in self.set_aside],
        }
        if self.micrographs is not None:
            out |= {"micrographs": len(self.micrographs.paths), "micrographs_ingested": len(self.micrographs.usable)}
        if self.fits is not None:
            out["micrographs_accepted"] = len(self.fits.accepted)
        if self.picks is not None:
            out |= {"picks": len(self.picks.x), "pick_threshold": self.picks.threshold}
        if self.extracted is not None:
            out["particles_extracted"] = len(self.extracted)
        if self.classified is not None:
            out |= {
                "n_classes": len(self.classified.counts),
                "classes_selected": int(self.classified.selected.sum()),
            }
        if self.particles is not None:
            out |= {
                "particles": len(self.particles),
                "box": self.particles.size,
                "pixel_size": self.particles.optics.pixel_size,
            }
        if self.start is not None:
            out["start"] = self.start
            if self.start.startswith("common_lines"):
                done = self.session.project.read_json(f"state/{self.start}/done.json") or {}
                out["common_lines"] = done.get("confidence")
        if self.refined is not None:
            out["iterations"] = list(self.refined.iterations)
            out["provenance"] = provenance_of(self.session, self.refined.run).to_json()
            if self.refined.first_low_pass is not None:
                out["halves_share_to"] = round(self.refined.first_low_pass, 2)
            if self.refined.solver is not None:
                out["solver"] = dict(self.refined.solver)
        if self.maps is not None:
            out |= map_figures(self.maps)
        return out

    def write_star(self, path: Path) -> None:
        """Write the STAR file of the last stage that has one.

        Raises
        ------
        BadInputError
            No stage so far has one.
        """
        optics = self.session.settings.data.optics
        if self.particles is not None:
            export.export_particles(path, self.particles, provenance_of(self.session, self.particles.run))
        elif self.picks is not None and self.micrographs is not None:
            made = provenance_of(self.session, self.picks.run)
            export.export_picks(path, self.micrographs, self.picks, optics, made)
        elif self.fits is not None and self.micrographs is not None:
            made = provenance_of(self.session, self.fits.run)
            export.export_ctf(path, self.micrographs, self.fits, optics, made)
        else:
            raise BadInputError("--output", "a stage that makes a STAR file (ctf, pick or later)", "ingest")

    def summary(self) -> str:
        """The result in a few lines."""
        f = self.figures()
        lines = []
        if "micrographs" in f:
            lines.append(
                f"micrographs  {f.get('micrographs_accepted', f['micrographs_ingested'])} of {f['micrographs']}"
            )
        if "picks" in f:
            lines.append(f"picks        {f['picks']}")
        if "particles" in f:
            lines.append(f"particles    {f['particles']}")
        if "resolution" in f:
            lines.append(f"resolution   {f['resolution']:.2f} A (FSC 0.143), {f['resolution_half']:.2f} A (FSC 0.5)")
            raw, pixel = self.session.settings.data.pixel_size, f["pixel_size"]
            if self.extracted is not None and raw < 0.99 * pixel and f["resolution"] < NEAR_LIMIT * 2.0 * pixel:
                finer = max(raw, 0.5 * pixel)
                lines.append(
                    f"limit        pixels of {pixel:.3g} A end at {2.0 * pixel:.3g} A: --set extract.pixel_size={finer:.3g} may show more"
                )
            lines.append(f"map          {self.session.project.export / 'map.mrc'}")
            lines.append(f"report       {self.session.project.export / 'report.html'}")
        if "words" in f.get("solver", {}):
            lines.append(f"solver       {f['solver']['words']}")
        lines += [f"set aside    {item.item}: {item.reason}" for item in self.set_aside]
        return "\n".join(lines)


def map_figures(maps: PostprocessResult) -> dict[str, Any]:
    """Figures of the half maps, as JSON values."""
    return {
        "resolution": maps.resolution,
        "resolution_half": maps.resolution_half,
        "resolution_unmasked": maps.resolution_unmasked,
        "phases_randomised_from": maps.randomised_from,
        "b_factor": maps.b_factor,
        "mask_fraction": maps.mask_fraction,
        "fsc": {name: [round(float(v), 5) for v in curve] for name, curve in maps.curves.items()},
    }


def check(session: Session, until: str) -> None:
    """Find what is missing before anything starts.

    Raises
    ------
    SettingsError
        Lists all that is missing.
    """
    s = session.settings
    faults = []
    if not s.data.micrographs:
        faults.append("data.micrographs: expected a pattern or a STAR file, got none. Set --micrographs.")
    if STAGES.index(until) >= STAGES.index("segment") and s.particle.diameter is None:
        faults.append("particle.diameter: expected the particle's longest extent in A, got none. Set --diameter.")
    if s.start.method == "reference" and s.start.reference is None:
        faults.append("start.reference: expected a map for start.method = reference, got none.")
    if s.start.method == "common_lines" and s.particle.symmetry != "C1":
        faults.append(
            f"start.method: expected a particle without symmetry for common_lines, got {s.particle.symmetry}. "
            "Take start.method = stochastic."
        )
    if s.start.method == "common_lines" and not s.classify.enabled:
        faults.append("start.method: common_lines expects class averages, got classify.enabled = false. Enable it.")
    for name, path in (("start.reference", s.start.reference), ("segment.model", s.segment.model)):
        if path is not None and not Path(path).is_file():
            faults.append(f"{name}: expected a file, got {path!r}, which is none.")
    if faults:
        raise SettingsError(faults)


def first_map(session: Session, particles: Particles, classified: Classified | None) -> tuple[str, Any, bool]:
    """Name of what made it, the map, and whether its grey scale is foreign."""
    s = session.settings
    if s.start.reference is not None and s.start.method in ("auto", "reference"):
        path = Path(s.start.reference)
        stat = path.stat()
        name = f"reference:{path}:{stat.st_size}:{stat.st_mtime_ns}"
        return name, reference_map(path, particles.size, particles.optics.pixel_size), True
    if classified is not None and s.particle.symmetry == "C1" and s.start.method != "stochastic":
        lines = common_lines_map(session, classified, always=s.start.method == "common_lines")
        if lines is not None:
            return lines.run, lines.volume, True
    run, volume = run_stochastic(session, particles)
    return run, volume, False


def run_pipeline(session: Session, until: str = "report", truth: Any = None) -> RunResult:
    """Run every stage up to ``until``; what is finished is not computed again.

    Parameters
    ----------
    session : Session
    until : str
        One of ``STAGES``.
    truth : Tensor, optional
        The known map of simulated micrographs, for the report.

    Raises
    ------
    CryosegError
        Bad settings or input, or a stage that cannot go on.
    """
    check(session, until)
    result = RunResult(session)
    try:
        return mended(session, lambda: _run_stages(session, result, until, truth))
    finally:
        tell(result)


def tell(result: RunResult) -> None:
    """Tell listeners what the run has come to."""
    figures = result.figures()
    result.session.emit(Figures({name: float(figures[name]) for name in TOLD if figures.get(name) is not None}))


def _run_stages(session: Session, result: RunResult, until: str, truth: Any) -> RunResult:
    last = STAGES.index(until)
    out = session.project.export
    session.runs.clear()

    spent: dict[str, float] = session.project.read_json("state/seconds.json") or {}

    def wanted(stage: str) -> bool:
        return STAGES.index(stage) <= last

    def timed(stage: str, action: Callable[[], Any]) -> Any:
        tell(result)
        started = time.monotonic()
        value = action()
        # What earlier calls took counts too: a stage that is finished takes none now.
        spent[stage] = round(spent.get(stage, 0.0) + time.monotonic() - started, 2)
        result.seconds[stage] = spent[stage]
        session.project.write_json("state/seconds.json", spent)
        return value

    optics = session.settings.data.optics
    micrographs = result.micrographs = timed("ingest", lambda: run_ingest(session))
    if not wanted("ctf"):
        return result
    fits = result.fits = timed("ctf", lambda: run_ctf(session, micrographs))
    export.export_ctf(out / "micrographs_ctf.star", micrographs, fits, optics, provenance_of(session, fits.run))
    if not wanted("segment"):
        return result
    picks = result.picks = timed("pick", lambda: run_pick(session, micrographs, fits))
    export.export_picks(out / "picks.star", micrographs, picks, optics, provenance_of(session, picks.run))
    if not wanted("extract"):
        return result
    particles = timed("extract", lambda: run_extract(session, micrographs, fits, picks))
    result.extracted = result.particles = particles
    if not wanted("classify"):
        return result
    if session.settings.classify.enabled:
        classified = timed("classify", lambda: run_classify(session, particles))
        result.classified, particles = classified, classified.particles
        result.particles = particles
        made = provenance_of(session, classified.run)
        export.export_averages(out / "classes.mrcs", classified.averages, particles.optics.pixel_size, made)
    if not wanted("abinitio"):
        return result
    name, volume, foreign = timed("abinitio", lambda: first_map(session, particles, result.classified))
    result.start = name
    if not wanted("refine"):
        return result
    refined = result.refined = timed("refine", lambda: run_refine(session, particles, volume, name, any_scale=foreign))
    result.particles = refined.particles
    if not wanted("postprocess"):
        return result
    result.maps = timed("postprocess", lambda: finish_maps(session, refined))
    if wanted("report"):
        timed("report", lambda: write_report(session, result, truth))
    export.export_result(out, result.figures())
    session.finished()
    return result


def finish_maps(session: Session, refined: Refined) -> PostprocessResult:
    """Post-process half maps and export everything that belongs to them."""
    particles, out = refined.particles, session.project.export
    maps = postprocess(
        refined.half1,
        refined.half2,
        particles.optics.pixel_size,
        session.settings.postprocess,
        diameter=particles.diameter,
        full=refined.full,
    )
    out.mkdir(parents=True, exist_ok=True)
    made = provenance_of(session, refined.run)
    export.export_maps(out, refined, maps, made, half_maps=session.settings.reconstruct.half_maps)
    if particles.sources is not None or particles.project is not None:
        export.export_particles(out / "particles.star", particles, made)
        return maps
    export.export_stack(session, out / "particles.mrcs", particles, made)
    export.export_particles(out / "particles.star", particles, made, stack="particles.mrcs")
    keep_places(session.project, refined.run, particles)
    return maps


def load_result(project: Path) -> dict[str, Any]:
    """``result.json`` of a project, empty where there is none."""
    path = project / "export" / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
