"""Micrographs as the microscope writes them: each is taken in once, and what follows from all is renewed as they grow."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from cryoseg_dist.errors import BadInputError, CryosegError, StageFailedError
from cryoseg_dist.pipeline.run import STAGES, RunResult, run_pipeline
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.watch_list import Arrivals, WatchList
from cryoseg_dist.runtime.events import Figures

# Class averages are renewed when there are this many times more micrographs: all renewals together cost at most
# 1 / (1 - 1 / GROWTH) = 3 times the last one.
GROWTH, FIRST_CLASSES = 1.5, 10


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How a folder is watched.

    Attributes
    ----------
    folder : Path
    settle : float
        Seconds that a file must have stayed still.
    timeout : float
        Seconds without a new micrograph after which the run ends; infinite to wait for the signal.
    poll : float
        Seconds between two looks at the folder.
    """

    folder: Path
    settle: float = 10.0
    timeout: float = math.inf
    poll: float = 2.0


def watch(session: Session, options: WatchOptions, stop: Event, until: str = "report") -> RunResult:
    """Process what arrives until ``stop`` is set or nothing has come for long, then run every stage up to ``until``.

    The settings' ``data.micrographs`` must name the list of arrivals.

    Raises
    ------
    CryosegError
        No such folder, nothing that could be used has come, or a stage that cannot go on.
    """
    if not options.folder.is_dir():
        raise BadInputError(str(options.folder), "a folder to watch", "none", "Create it, or mount it, first.")
    last = STAGES.index(until)
    every = STAGES[min(last, STAGES.index("pick"))]
    listed = WatchList(Path(session.settings.data.micrographs))
    arrivals = Arrivals(options.folder, options.settle, 10.0 * options.settle)
    session.say(f"watching {options.folder}; {len(listed)} micrographs so far", "watch")
    renew = FIRST_CLASSES
    behind = len(listed) > 0
    quiet_since = time.monotonic()
    waiting, there = False, True
    while not stop.is_set() and time.monotonic() - quiet_since < options.timeout:
        if options.folder.is_dir() != there:
            there = not there
            session.say(f"{options.folder} is {'there again' if there else 'gone; waiting for it'}", "watch")
        for arrival in arrivals.complete(listed, time.monotonic()):
            quiet_since = time.monotonic()
            if listed.add(arrival):
                behind = True
            else:
                session.say(f"{arrival.path} holds the bytes of an earlier micrograph and is left out", "watch")
            if stop.is_set():
                break
        if behind:
            behind = False
            session.emit(Figures({"waiting": 0.0}))
            goal = every
            if len(listed) >= renew and last >= STAGES.index("classify") and session.settings.classify.enabled:
                goal, renew = "classify", math.ceil(GROWTH * len(listed))
            try:
                run_pipeline(session, goal)
            except (StageFailedError, BadInputError) as fault:
                if isinstance(fault, BadInputError) and any(a.shape for a in listed.arrivals):
                    raise
                # Too few, none good, or only broken ones yet: more may come.
                session.say(f"not yet: {fault}", "watch")
            quiet_since = time.monotonic()
            waiting = False
        if not waiting:
            session.emit(Figures({"waiting": 1.0}))
            waiting = True
        stop.wait(options.poll)
    session.emit(Figures({"waiting": 0.0}))
    if not len(listed):
        raise CryosegError(f"{options.folder}: expected micrographs while it was watched, got none.")
    session.say(f"watching ends with {len(listed)} micrographs; the run goes on to the end", "watch")
    return run_pipeline(session, until)
