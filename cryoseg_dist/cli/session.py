"""From flags to an open session."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryoseg_dist.cli.options import flag_layer
from cryoseg_dist.cli.progress import Progress
from cryoseg_dist.monitor.prometheus import Metrics
from cryoseg_dist.pipeline.config import RunSettings, build_settings, from_environment, from_toml
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.pipeline.session import open_session as open_pipeline_session


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
def open_session(settings: RunSettings, project: Path, command: Sequence[str]) -> Iterator[Session]:
    """A session that shows progress and, where asked for, serves metrics."""
    metrics = Metrics()
    with Progress() as progress:
        if settings.engine.metrics_port is not None:
            metrics.serve(settings.engine.metrics_port, settings.engine.metrics_address)
        with open_pipeline_session(settings, project, [progress, metrics], command) as session:
            yield session
