"""Events as Prometheus metrics."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from cryoseg_dist.runtime.events import (
    Event,
    IterationFinished,
    StageFinished,
    StageStarted,
    UnitFinished,
    UnitRetried,
)

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """A listener that counts, in a registry of its own.

    Parameters
    ----------
    registry : CollectorRegistry, optional
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = r = registry or CollectorRegistry()
        self._units = Counter("cryoseg_units", "Units of work that ended in this run", ["stage", "outcome"], registry=r)
        self._retries = Counter("cryoseg_unit_retries", "Units that were tried again", ["stage"], registry=r)
        self._seconds = Histogram(
            "cryoseg_unit_seconds", "Time to read, compute and write a unit", ["stage"], buckets=BUCKETS, registry=r
        )
        self._bytes = Counter("cryoseg_bytes", "Bytes moved by units", ["stage", "direction"], registry=r)
        self._total = Gauge(
            "cryoseg_stage_units", "Units of the stage, those done before included", ["stage"], registry=r
        )
        self._done = Gauge("cryoseg_stage_units_done", "Units of the stage that are finished", ["stage"], registry=r)
        self._running = Gauge("cryoseg_stage_running", "1 while the stage runs", ["stage"], registry=r)
        self._iteration = Gauge("cryoseg_iteration", "Last finished iteration", ["stage"], registry=r)
        self._resolution = Gauge(
            "cryoseg_resolution_angstrom", "Resolution of the last iteration", ["stage"], registry=r
        )
        self._progress = Gauge("cryoseg_last_progress_timestamp_seconds", "When a unit last ended", registry=r)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case StageStarted():
                self._total.labels(event.stage).set(event.total)
                self._done.labels(event.stage).set(event.done)
                self._running.labels(event.stage).set(1)
            case UnitFinished():
                self._units.labels(event.stage, str(event.outcome)).inc()
                self._seconds.labels(event.stage).observe(event.seconds)
                self._bytes.labels(event.stage, "read").inc(event.bytes_read)
                self._bytes.labels(event.stage, "written").inc(event.bytes_written)
                self._done.labels(event.stage).inc()
                self._progress.set(time.time())
            case UnitRetried():
                self._retries.labels(event.stage).inc()
            case IterationFinished():
                self._iteration.labels(event.stage).set(event.iteration)
                if "resolution" in event.figures:
                    self._resolution.labels(event.stage).set(event.figures["resolution"])
            case StageFinished():
                self._running.labels(event.stage).set(0)

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve the metrics over HTTP from a daemon thread; the port in use (0 takes any free one)."""
        server, _ = start_http_server(port, address, self.registry)
        return int(server.server_port)
