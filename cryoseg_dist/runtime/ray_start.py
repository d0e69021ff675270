"""Joining or starting Ray."""

import logging
import os

import ray
from ray.exceptions import RayError

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.runtime.executor import last_line

OBJECT_STORE_BYTES = 256 << 20


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join a cluster, or start an embedded one that only processes of this run may use and that reports to nobody.

    Raises
    ------
    StageFailedError
        There is no cluster at the address, or it does not let this driver in.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is not None:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, RayError) as fault:
            raise StageFailedError(
                f"ray: expected a cluster at {address} that lets this driver in, got {last_line(fault)}. Check engine.ray_address "
                "and the cluster's token (RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH); the same command goes on."
            ) from fault
        return
    # "local": otherwise Ray would join whatever cluster was last started on this machine.
    ray.init(
        address="local",
        num_cpus=cpus or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        **common,
    )
