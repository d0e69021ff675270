"""Events as Prometheus metrics, served to a scraper or pushed at the end of a short job."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, push_to_gateway, start_http_server

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.runtime.events import (
    Event,
    Figures,
    IterationFinished,
    StageFinished,
    StageStarted,
    UnitFinished,
    UnitRetried,
    UnitsFound,
)
from cryoseg_dist.schema.work import Outcome

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
RESOLUTIONS = (2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 15, 20, 30)
DEFOCI = tuple(float(d) for d in range(2500, 50001, 2500))
PICKS = (0, 10, 20, 50, 100, 150, 200, 300, 500, 1000, 2000)
# How an engine begins the reason of a retry when the process that held the unit is gone.
WORKER_LOST = "worker lost"


class Metrics:
    """A listener that counts, in a registry of its own.

    Counters hold what this process did. Units that the ledger held before are counted as ``skipped`` once, and never as
    done again; units that this process ended and meets again later are not counted a second time.

    Parameters
    ----------
    registry : CollectorRegistry, optional
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = r = registry or CollectorRegistry()
        stage = ["stage"]
        self._units = Counter(
            "cryoseg_units", "Units of work by how they ended; skipped: done before", ["stage", "outcome"], registry=r
        )
        self._retries = Counter("cryoseg_unit_retries", "Failed attempts that were tried again", stage, registry=r)
        self._lost = Counter("cryoseg_worker_losses", "Units whose worker died", stage, registry=r)
        self._seconds = Histogram(
            "cryoseg_unit_duration_seconds",
            "Time to read, compute and write a unit",
            stage,
            buckets=SECONDS,
            registry=r,
        )
        self._read = Counter("cryoseg_read_bytes", "Bytes that units read", stage, registry=r)
        self._written = Counter("cryoseg_written_bytes", "Bytes that units wrote", stage, registry=r)
        self._in_flight = Gauge("cryoseg_units_in_flight", "Units that workers have now", registry=r)
        self._total = Gauge("cryoseg_stage_units", "Units of the stage, those done before included", stage, registry=r)
        self._done = Gauge("cryoseg_stage_units_done", "Units of the stage that have ended", stage, registry=r)
        self._running = Gauge("cryoseg_stage_running", "1 while the stage runs", stage, registry=r)
        self._iteration = Gauge("cryoseg_iteration", "Last finished iteration", stage, registry=r)
        self._resolution = Gauge("cryoseg_resolution_angstrom", "Resolution of the last iteration", stage, registry=r)
        self._map = Gauge("cryoseg_map_resolution_angstrom", "Resolution of the map, corrected FSC 0.143", registry=r)
        self._micrographs = Gauge("cryoseg_micrographs", "Micrographs of the run", registry=r)
        self._accepted = Gauge("cryoseg_micrographs_accepted", "Micrographs whose verdict is good", registry=r)
        self._picks = Gauge("cryoseg_picks", "Particles picked", registry=r)
        self._particles = Gauge("cryoseg_particles", "Particles in use", registry=r)
        self._verdicts = Counter(
            "cryoseg_micrograph_verdicts", "Micrographs judged after the CTF fit", ["accepted"], registry=r
        )
        self._ctf = Histogram(
            "cryoseg_micrograph_resolution_angstrom", "Where the CTF fit ends", buckets=RESOLUTIONS, registry=r
        )
        self._defocus = Histogram("cryoseg_micrograph_defocus_angstrom", "Mean defocus", buckets=DEFOCI, registry=r)
        self._candidates = Histogram(
            "cryoseg_micrograph_picks", "Candidates of a micrograph", buckets=PICKS, registry=r
        )
        self._waiting = Gauge("cryoseg_waiting", "1 while a watched folder brings nothing new", registry=r)
        self._free = Gauge("cryoseg_disk_free_bytes", "Room left where the project lies", registry=r)
        self._size = Gauge("cryoseg_disk_size_bytes", "Room in all where the project lies", registry=r)
        self._progress = Gauge("cryoseg_last_progress_timestamp_seconds", "When a unit last ended", registry=r)
        self._started = Gauge("cryoseg_run_start_timestamp_seconds", "When the driver began", registry=r)
        self._finished = Gauge(
            "cryoseg_run_end_timestamp_seconds", "When the driver ended; 0 while it runs", registry=r
        )
        self._started.set(time.time())
        # A run that has not ended its first unit yet has made progress until it began.
        self._progress.set(time.time())
        # By run: units that this process counted, as ended here or as skipped.
        self._counted: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case StageStarted():
                self._total.labels(event.stage).set(event.total)
                self._done.labels(event.stage).set(event.done)
                self._running.labels(event.stage).set(1)
            case UnitsFound():
                self._skipped(event)
            case UnitFinished():
                self._unit(event)
            case UnitRetried():
                self._retries.labels(event.stage).inc()
                if event.reason.startswith(WORKER_LOST):
                    self._lost.labels(event.stage).inc()
            case IterationFinished():
                self._iteration.labels(event.stage).set(event.iteration)
                if "resolution" in event.figures:
                    self._resolution.labels(event.stage).set(event.figures["resolution"])
            case StageFinished():
                self._running.labels(event.stage).set(0)
            case Figures():
                self._figures(event)

    def _skipped(self, event: UnitsFound) -> None:
        found = sum(event.outcomes.values())
        new = found - self._counted.get(event.run_id, 0)
        if new > 0:
            self._units.labels(event.stage, "skipped").inc(new)
            self._counted[event.run_id] = found

    def _unit(self, event: UnitFinished) -> None:
        self._counted[event.run_id] = self._counted.get(event.run_id, 0) + 1
        # From zero on: a scraper sees no rise in a series that begins at one.
        self._retries.labels(event.stage)
        self._lost.labels(event.stage)
        self._units.labels(event.stage, str(event.outcome)).inc()
        self._seconds.labels(event.stage).observe(event.seconds)
        self._read.labels(event.stage).inc(event.bytes_read)
        self._written.labels(event.stage).inc(event.bytes_written)
        self._done.labels(event.stage).inc()
        self._progress.set(time.time())
        if event.outcome is not Outcome.DONE:
            return
        record = event.record
        if event.stage == "ctf" and "accepted" in record:
            self._verdicts.labels("true" if record["accepted"] else "false").inc()
            self._defocus.observe(0.5 * (record["defocus_u"] + record["defocus_v"]))
            limit = record.get("ctf_max_resolution")
            # Without a limit no ring was fitted at all.
            self._ctf.observe(math.inf if limit is None else limit)
        elif event.stage == "pick" and "n_candidates" in record:
            self._candidates.observe(record["n_candidates"])

    def _figures(self, event: Figures) -> None:
        gauges = {
            "micrographs": self._micrographs,
            "micrographs_accepted": self._accepted,
            "picks": self._picks,
            "particles": self._particles,
            "resolution": self._map,
            "waiting": self._waiting,
        }
        for name, gauge in gauges.items():
            if name in event.values:
                gauge.set(event.values[name])

    def watch(self, project: Path, in_flight: Callable[[], int]) -> None:
        """Also measure, at every scrape, the room left on the project's disk and the units that workers have."""
        self._free.set_function(lambda: float(shutil.disk_usage(project).free))
        self._size.set_function(lambda: float(shutil.disk_usage(project).total))
        self._in_flight.set_function(lambda: float(in_flight()))

    def end(self) -> None:
        """Note that the driver ends; no stage runs any more."""
        self._finished.set(time.time())
        for family in self._running.collect():
            for sample in family.samples:
                self._running.labels(sample.labels["stage"]).set(0)
        self._in_flight.set_function(lambda: 0.0)

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve the metrics over HTTP from a daemon thread; the port in use (0 takes any free one).

        Raises
        ------
        BadInputError
            The port is taken.
        """
        try:
            server, _ = start_http_server(port, address, self.registry)
        except OSError as fault:
            raise BadInputError(f"{address}:{port}", "a free port for metrics", str(fault), "Choose another.") from None
        return int(server.server_port)

    def push(self, url: str, job: str, timeout: float = 10.0) -> None:
        """Give the metrics to a Pushgateway, for jobs that end before they are scraped.

        Parameters
        ----------
        url : str
            Address of the gateway, ``http://host:9091``.
        job : str
            Name that groups the metrics; earlier ones of the same name are replaced.
        timeout : float
            Seconds.

        Raises
        ------
        BadInputError
            The gateway cannot be reached or refuses.
        """
        try:
            push_to_gateway(url, job=job, registry=self.registry, timeout=timeout)
        except (OSError, ValueError) as fault:
            raise BadInputError(
                "--metrics-push", "a Pushgateway that takes the metrics", str(fault), "Check the address."
            ) from None


def metric_names() -> set[str]:
    """Names of all samples that a scrape can hold."""
    metrics = Metrics()
    names = set()
    for family in metrics.registry.collect():
        if family.type == "counter":
            names.add(f"{family.name}_total")
        elif family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(family.name)
    return names
