"""``cryoseg dashboard``: one local server with a live page of a project."""

import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from cryoseg_dist.cli.guard import DONE, guarded
from cryoseg_dist.cli.progress import duration
from cryoseg_dist.errors import BadInputError, CryosegError
from cryoseg_dist.monitor.progress import RunProgress, StageProgress
from cryoseg_dist.pipeline.live import LiveProject
from cryoseg_dist.report.data import IterationView
from cryoseg_dist.report.live_page import FailureRow, LiveView, StageRow, contents, shell

REFRESH = 3.0
MOST_FAILURES = 30


def stage_row(stage: StageProgress, now: float) -> StageRow:
    """A stage as the page's table shows it."""
    if stage.iteration is not None:
        resolution = f", {stage.figures['resolution']:.2f} A" if "resolution" in stage.figures else ""
        of = stage.figures.get("of")
        of_text = f" of {of:.0f}" if of else ""
        share = min(stage.iteration / of, 1.0) if of else None
        return StageRow(stage.name, share, f"iteration {stage.iteration}{of_text}{resolution}", "", "")
    left = stage.seconds_left(now)
    if not stage.total:
        words = f"{stage.done} units of an iteration"
        return StageRow(stage.name, None, words, "", "running")
    others = ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in sorted((stage.outcomes or {}).items()) if k != "done")
    words = f"{stage.done} of {stage.total}" + (f" ({others})" if others else "")
    state = "running" if stage.outcomes is None else "finished"
    return StageRow(stage.name, stage.done / stage.total, words, "" if left is None else duration(left), state)


class Dashboard:
    """Gathers what the page shows; one request at a time reads the project.

    Parameters
    ----------
    root : Path
        Project folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._progress = RunProgress(root / "events.jsonl")
        self._live = LiveProject(root)
        self._lock = threading.Lock()

    def page(self, now: float | None = None) -> str:
        """The contents of the page now."""
        with self._lock:
            return contents(self._view(time.time() if now is None else now))

    def _view(self, now: float) -> LiveView:
        progress = self._progress
        progress.update()
        stages = progress.stages
        runs = {name: stage.run for name, stage in stages.items()}
        figures = progress.figures
        tiles = [
            (title, f"{figures[name]:,.{digits}f}{unit}")
            for title, name, digits, unit in (
                ("micrographs", "micrographs", 0, ""),
                ("accepted", "micrographs_accepted", 0, ""),
                ("picks", "picks", 0, ""),
                ("particles", "particles", 0, ""),
                ("map, FSC 0.143", "resolution", 2, " Å"),
            )
            if name in figures
        ]
        refine, classify = stages.get("refine"), stages.get("classify")
        latest = max(stages.values(), key=lambda s: s.seen, default=None)
        state = "no event yet"
        if latest is not None:
            state = f"{latest.name}, last event {duration(max(now - progress.last, 0.0))} ago"
        failures = [
            FailureRow(
                time.strftime("%H:%M:%S", time.localtime(f.time)),
                f.stage,
                f.unit,
                f.outcome.replace("_", " "),
                f.message,
            )
            for f in list(progress.failures)[: -MOST_FAILURES - 1 : -1]
        ]
        view = LiveView(self._root.resolve().name, state, tiles, [stage_row(s, now) for s in stages.values()], failures)
        try:
            return LiveView(
                view.project,
                view.state,
                view.tiles,
                view.stages,
                view.failures,
                self._live.micrographs(runs) if "ingest" in runs else (),
                self._live.classes(classify.run, classify.iteration) if classify else None,
                self._live.correlation(refine.run, refine.iteration) if refine else None,
                [] if refine is None else [IterationView(i, resolution) for i, resolution in refine.history],
            )
        except (CryosegError, OSError, KeyError, ValueError):
            # An array that the driver is writing this moment: it will be there the next time.
            return view


def local_names(address: str, port: int) -> set[str] | None:
    """Host headers that a request may carry, None for any: a page of another site must not read a loopback server."""
    try:
        loopback = ip_address(address).is_loopback
    except ValueError:
        loopback = address == "localhost"
    return {f"{name}:{port}" for name in (address, "localhost", "127.0.0.1", "[::1]")} if loopback else None


def make_server(root: Path, address: str, port: int) -> ThreadingHTTPServer:
    """A server of the live page that is not running yet.

    Raises
    ------
    BadInputError
        No project folder, or the port is taken.
    """
    if not root.is_dir():
        raise BadInputError(str(root), "a project folder", "none", "Name the folder that `cryoseg run --project` got.")
    dashboard = Dashboard(root)

    class Handler(BaseHTTPRequestHandler):
        server: ThreadingHTTPServer

        def do_GET(self) -> None:
            names = local_names(address, self.server.server_port)
            if names is not None and self.headers.get("Host", "") not in names:
                self._answer(403, "asked for under a foreign name", "text/plain")
            elif self.path == "/":
                nonce = secrets.token_urlsafe(16)
                self._answer(200, shell(root.resolve().name, nonce, REFRESH), "text/html", nonce)
            elif self.path == "/contents":
                self._answer(200, dashboard.page(), "text/html")
            else:
                self._answer(404, "no such page", "text/plain")

        def _answer(self, code: int, text: str, kind: str, nonce: str = "") -> None:
            body = text.encode()
            script = f"script-src 'nonce-{nonce}'; connect-src 'self'; " if nonce else ""
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header(
                "Content-Security-Policy",
                f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {script}frame-ancestors 'none'",
            )
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the terminal quiet."""

    try:
        return ThreadingHTTPServer((address, port), Handler)
    except OSError as fault:
        raise BadInputError(f"{address}:{port}", "a free port", str(fault), "Choose another with --port.") from None


def dashboard(
    project: Annotated[Path, typer.Argument(help="Project folder.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.", min=0, max=65535)] = 8050,
    address: Annotated[
        str, typer.Option(help="Address to listen on. Beyond loopback, whoever reaches it can read the project.")
    ] = "127.0.0.1",
) -> None:
    """Show a project live in a browser, while a run goes on and after."""

    def action() -> int:
        with make_server(project, address, port) as server:
            typer.echo(f"http://{address}:{server.server_port}/ shows {project}; Ctrl-C ends it")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                typer.echo("ended")
        return DONE

    guarded(action)
