"""Whether the container does its work: exit code 0 or 1, with a sentence. Standard library only.

A driver that serves metrics (``CRYOSEG_ENGINE__METRICS_PORT`` names the port) must answer, and while a stage runs a unit
must have ended within the time that one may take. A Ray node's agent must answer. A container with neither runs a command
that ends by itself, and is well as long as it runs.
"""

import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable

PROGRESS = re.compile(r"^cryoseg_last_progress_timestamp_seconds(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)
RUNNING = re.compile(r"^cryoseg_stage_running\{[^}]*\} 1(?:\.0)?$", re.MULTILINE)
TIMEOUT = 5.0


def fetch(url: str) -> str:
    """The body of a local page."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        body: bytes = answer.read()
    return body.decode("utf-8", "replace")


def driver_fault(port: int, deadline: float, now: float) -> str | None:
    """What is wrong with the driver, None where nothing is."""
    text = fetch(f"http://127.0.0.1:{port}/metrics")
    found = PROGRESS.search(text)
    last = float(found.group(1)) if found else 0.0
    # Between stages, and before the first unit, nothing is due.
    if last > 0.0 and RUNNING.search(text) and now - last > deadline:
        return f"no unit ended for {now - last:.0f} s, {deadline:.0f} s are allowed"
    return None


def ray_fault(port: int) -> str | None:
    """What is wrong with the Ray node, None where nothing is."""
    text = fetch(f"http://127.0.0.1:{port}/api/healthz")
    return None if "success" in text else f"Ray's agent says {text[:200]!r}"


def main(environment: dict[str, str]) -> int:
    """Check what the environment says is here."""
    checks: list[tuple[str, Callable[[], str | None]]] = []
    if port := environment.get("CRYOSEG_ENGINE__METRICS_PORT"):
        # A hung unit is tried three times before it is given up.
        deadline = 3.0 * float(environment.get("CRYOSEG_ENGINE__UNIT_DEADLINE", "3600")) + 60.0
        checks.append(("driver", lambda: driver_fault(int(port), deadline, time.time())))
    if agent := environment.get("CRYOSEG_RAY_AGENT_PORT"):
        checks.append(("ray", lambda: ray_fault(int(agent))))
    for name, check in checks:
        try:
            fault = check()
        except (OSError, ValueError) as error:
            fault = str(error)
        if fault is not None:
            print(f"{name}: {fault}")
            return 1
    print("well" if checks else "nothing to check: a command that ends by itself")
    return 0


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
