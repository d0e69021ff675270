"""From flags to an open session."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryoseg_dist.cli.options import flag_layer
from cryoseg_dist.cli.progress import Progress
from cryoseg_dist.errors import BadInputError
from cryoseg_dist.monitor.prometheus import Metrics
from cryoseg_dist.pipeline.config import RunSettings, build_settings, from_environment, from_toml
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.session import open_session as open_pipeline_session
from cryoseg_dist.runtime.events import Message, without_secrets


def gather_settings(
    project: Path, config: Path | None, flags: Mapping[str, Any], assignments: list[str] | None
) -> RunSettings:
    """Settings of a project: those it was last run with, a file, the environment, flags; the later wins.

    Raises
    ------
    SettingsError, BadInputError
    """
    held = project / "settings.json"
    last: dict[str, Any] = {}
    if config is None and held.exists():
        last = json.loads(held.read_text(encoding="utf-8"))
    file = {} if config is None else from_toml(config)
    return build_settings(last, file, from_environment(), flag_layer(flags, assignments))


@contextmanager
def open_session(
    settings: RunSettings, project: Path, command: Sequence[str], push: str | None = None
) -> Iterator[Session]:
    """A session that shows progress and, where asked for, serves metrics, or pushes them when it ends in any way.

    Parameters
    ----------
    settings : RunSettings
    project : Path
    command : sequence of str
    push : str, optional
        Address of a Pushgateway. It is no setting, for settings are kept and it may hold a password.
    """
    metrics = Metrics()
    with Progress() as progress:
        if settings.engine.metrics_port is not None:
            metrics.serve(settings.engine.metrics_port, settings.engine.metrics_address)
        try:
            with open_pipeline_session(settings, project, [progress, metrics], command) as session:
                metrics.watch(session.project.root, lambda: session.runner.executor.in_flight)
                yield session
        finally:
            metrics.end()
            if push is not None:
                try:
                    metrics.push(push, f"cryoseg_{project.resolve().name}")
                except BadInputError as fault:
                    # A gateway that is down must not cost the run its result.
                    progress(Message(without_secrets(str(fault)), "metrics"))
