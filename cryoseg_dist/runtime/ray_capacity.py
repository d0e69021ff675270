"""How many workers a Ray cluster holds, and waiting until it holds enough of them."""

import math
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

POLL_SECONDS = 2.0


def room(cpus: float, gpus: float = 0.0, nodes: list[Mapping[str, Any]] | None = None) -> int:
    """Workers that fit the living nodes; one worker never spans two of them.

    Parameters
    ----------
    cpus, gpus : float
        Cores and GPUs of a worker.
    nodes : list of Mapping, optional
        As ``ray.nodes()`` gives them, which is the default.
    """
    return sum(_fit(node, cpus, gpus) for node in (ray.nodes() if nodes is None else nodes))


def _fit(node: Mapping[str, Any], cpus: float, gpus: float) -> int:
    """Workers that fit one node; none where it is dead."""
    if not node.get("Alive"):
        return 0
    held = node.get("Resources", {})
    fit = held.get("CPU", 0.0) / cpus
    if gpus:
        fit = min(fit, held.get("GPU", 0.0) / gpus)
    # 0.1 of a core three times is not less than 0.3 of it.
    return math.floor(fit + 1e-9)


def healthy_node(
    sick: Collection[str],
    workers: Collection[str],
    cpus: float,
    gpus: float = 0.0,
    nodes: list[Mapping[str, Any]] | None = None,
) -> str | None:
    """The node with most room for one more worker that is not sick; None where none has room.

    Parameters
    ----------
    sick : collection of str
        Node ids.
    workers : collection of str
        Node of each worker that runs.
    cpus, gpus : float
        Cores and GPUs of a worker.
    nodes : list of Mapping, optional
        As ``ray.nodes()`` gives them, which is the default.
    """
    held = Counter(workers)
    free = {
        str(node["NodeID"]): _fit(node, cpus, gpus) - held[str(node["NodeID"])]
        for node in (ray.nodes() if nodes is None else nodes)
        if str(node["NodeID"]) not in sick
    }
    best = max(free, key=lambda name: free[name], default=None)
    return best if best is not None and free[best] > 0 else None


def wait_for_room(workers: int, cpus: float, gpus: float, seconds: float, poll: float = POLL_SECONDS) -> int:
    """Ask an autoscaling cluster for room, and wait until all workers fit or the time is over.

    A cluster without an autoscaler ignores the request; there the wait is for nodes that are still starting.

    Returns
    -------
    int
        Workers that fit at the end, which may be fewer than asked for.
    """
    bundle = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    if room(cpus, gpus) < workers:
        request_resources(bundles=[bundle] * workers)
    deadline = time.monotonic() + seconds
    while (fit := room(cpus, gpus)) < workers and time.monotonic() < deadline:
        time.sleep(poll)
    return fit
