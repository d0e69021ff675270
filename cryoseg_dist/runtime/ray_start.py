"""Joining or starting Ray."""

import logging
import os

import ray

OBJECT_STORE_BYTES = 256 << 20


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join a cluster, or start an embedded one that only processes of this run may use and that reports to nobody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is not None:
        ray.init(address=address, **common)
        return
    # "local": otherwise Ray would join whatever cluster was last started on this machine.
    ray.init(
        address="local",
        num_cpus=cpus or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        **common,
    )
