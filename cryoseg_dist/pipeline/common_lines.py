"""A first map from class averages, by common lines."""

from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.pipeline.classes import Classified
from cryoseg_dist.pipeline.maps import read_map, write_maps
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.stages.common_lines import Confidence, first_map, orient


@dataclass(frozen=True)
class CommonLinesMap:
    """A first map and what speaks for it.

    Attributes
    ----------
    run : str
    volume : Tensor, float32, shape (n, n, n)
    confidence : Confidence
    """

    run: str
    volume: Tensor
    confidence: Confidence


def run_common_lines(session: Session, classified: Classified) -> CommonLinesMap:
    """Orientations of the chosen class averages and their map; a finished run is read from the store.

    Raises
    ------
    BadInputError
        Too few good class averages.
    """
    settings = session.settings.common_lines
    particles = classified.particles
    pixel, diameter = particles.optics.pixel_size, particles.diameter
    config = {"common_lines": settings.model_dump(), "diameter": diameter}
    run = session.run_id("common_lines", config, {"classes": particles.run})
    done = session.project.read_json(f"state/{run}/done.json")
    if done is None:
        counts = np.where(classified.selected, classified.counts, 0)
        found = orient(classified.averages, counts, pixel, diameter, settings)
        volume = first_map(classified.averages, counts, found, pixel, diameter, settings)
        write_maps(session, f"{run}/map", [volume], pixel)
        done = {
            "confidence": asdict(found.confidence),
            "classes": (found.index + 1).tolist(),
            "agreement": found.agreement.tolist(),
            "kept": found.kept.tolist(),
            "rotations": found.rotations.tolist(),
            "origins": found.origins.tolist(),
        }
        session.project.write_json(f"state/{run}/done.json", done)
    confidence = Confidence(**done["confidence"])
    session.say(describe(confidence, sum(done["kept"]), len(done["kept"])), "abinitio")
    return CommonLinesMap(run, read_map(session, f"{run}/map", 0), confidence)


def common_lines_map(session: Session, classified: Classified, *, always: bool) -> CommonLinesMap | None:
    """The map of :func:`run_common_lines`; unless ``always``, none where there are too few averages or it is not trusted.

    Raises
    ------
    BadInputError
        Too few good class averages, where ``always``.
    """
    try:
        found = run_common_lines(session, classified)
    except BadInputError as fault:
        if always:
            raise
        session.say(f"{fault.where}: expected {fault.expected}, got {fault.got}. Stochastic start instead.", "abinitio")
        return None
    if always or found.confidence.trusted:
        return found
    session.say("Stochastic start instead. More classes (classify.n_classes) may help common lines.", "abinitio")
    return None


def describe(confidence: Confidence, n_kept: int, n_used: int) -> str:
    """The outcome in a sentence."""
    rival = f"the best other solution {confidence.decoy:.2f}" if confidence.decoy else "no other solution"
    return (
        f"Common lines: {n_kept} of {n_used} class averages agree, consensus {confidence.consensus:.2f} ({rival}), "
        f"{100 * confidence.line_share:.0f} % of pairs' best lines fit, "
        f"reached by {confidence.reached} of {confidence.starts} starts: "
        + ("trusted." if confidence.trusted else "not trusted.")
    )
