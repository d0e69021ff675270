"""What a stage run was made from, and with what: ``runs/<run id>.json``."""

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cryoseg_dist import __version__
from cryoseg_dist.store.project import SCHEMA_VERSION, Project

RECORDED_PACKAGES = ("numpy", "torch", "numba", "zarr", "zarrs", "ray", "dask", "mrcfile", "starfile")


def package_versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the installed packages that results depend on."""
    found = {"cryoseg_dist": __version__, "python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(
    project: Project,
    run_id: str,
    stage: str,
    settings: Mapping[str, Any],
    upstream: Mapping[str, str],
    command: Sequence[str],
) -> dict[str, Any]:
    """Write the manifest of a run; one that exists stays, so that it tells how the run began.

    Parameters
    ----------
    project : Project
    run_id : str
        As :func:`cryoseg_dist.store.ledger.run_id` gave it for the next three.
    stage : str
    settings : Mapping
        JSON values.
    upstream : Mapping of str to str
        Run ids and digests of inputs and weights.
    command : sequence of str
        The command line.

    Returns
    -------
    dict
        The manifest on disk.
    """
    held = read_manifest(project, run_id)
    if held is not None:
        return held
    manifest = {
        "run_id": run_id,
        "stage": stage,
        "settings": dict(settings),
        "upstream": dict(upstream),
        "versions": package_versions(),
        "schema": SCHEMA_VERSION,
        "command": list(command),
        "created_at": time.time(),
    }
    project.write_json(f"runs/{run_id}.json", manifest)
    return manifest


def read_manifest(project: Project, run_id: str) -> dict[str, Any] | None:
    """The manifest of a run, None where there is none."""
    return project.read_json(f"runs/{run_id}.json")
