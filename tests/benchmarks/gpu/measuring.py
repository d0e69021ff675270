"""How the parts measure, and what they tell."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryoseg_dist.schema.optics import Optics

OPTICS = Optics(1.2, 300.0, 2.7, 0.1)
FIGURES: list[dict[str, Any]] = []
LIMITS: dict[str, float] = {}
STARTED = time.perf_counter()
DEVICE = torch.device("cuda")


def tell(part: str, what: str, **figures: Any) -> None:
    """Print and keep one line of figures."""
    shown = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
    print(f"[{time.perf_counter() - STARTED:6.1f}] {part}: {what}: {shown}", flush=True)
    FIGURES.append({"part": part, "what": what, **figures})


def seconds(work: Callable[[], object], repeats: int = 7, warm: int = 2, most: float = 1.5) -> float:
    """Median seconds of some work on the card, by its events."""
    for _ in range(warm):
        work()
    torch.cuda.synchronize()
    taken: list[float] = []
    began = time.perf_counter()
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
        if time.perf_counter() - began > most:
            break
    return statistics.median(taken)


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over that of ``b``, in double precision on the processor."""
    x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (a.cpu(), b.cpu()))
    return float((x.double() - y.double()).norm() / y.double().norm())


def generator(seed: int = 0) -> torch.Generator:
    """Of random numbers on the processor."""
    return torch.Generator().manual_seed(seed)


def columns_of(n: int, seed: int = 3) -> Tensor:
    """Defocus of images: (n, 4)."""
    g = generator(seed)
    u = 8000.0 + 15000.0 * torch.rand(n, generator=g)
    angle = 180.0 * torch.rand(n, generator=g)
    return torch.stack((u, u - 500.0 * torch.rand(n, generator=g), angle, torch.zeros(n)), dim=1)
