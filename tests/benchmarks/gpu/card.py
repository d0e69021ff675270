"""What the card can do at most."""

import os

import torch

from tests.benchmarks.gpu.measuring import DEVICE, LIMITS, seconds, tell


def machine() -> None:
    """What the card can do at most."""
    p = torch.cuda.get_device_properties(0)
    import triton

    tell(
        "machine",
        p.name,
        torch=torch.__version__,
        triton=triton.__version__,
        gib=p.total_memory / 2**30,
        processors=p.multi_processor_count,
        l2_mb=p.L2_cache_size / 2**20,
        cores=os.cpu_count(),
    )
    a, b = (torch.empty(2**30, dtype=torch.uint8, device=DEVICE).random_() for _ in range(2))
    LIMITS["copy"] = 2 * a.numel() / seconds(lambda: b.copy_(a))
    tell("machine", "copy on the card", gb_s=LIMITS["copy"] / 1e9)
    host = torch.empty(2**28, dtype=torch.uint8).pin_memory()
    LIMITS["upload"] = host.numel() / seconds(lambda: a[: 2**28].copy_(host, non_blocking=True))
    tell("machine", "copy from pinned memory", gb_s=LIMITS["upload"] / 1e9)
    plain = torch.ones(2**28, dtype=torch.uint8)
    tell(
        "machine",
        "copy from ordinary memory",
        gb_s=plain.numel() / seconds(lambda: a[: 2**28].copy_(plain), 3, 1) / 1e9,
    )
    n = 8192
    for name, kind, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, False),
        ("bf16", torch.bfloat16, False),
    ):
        x, y = (torch.randn((n, n), device=DEVICE, dtype=kind) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        LIMITS[name] = 2 * n**3 / seconds(lambda x=x, y=y: x @ y, 5)
        torch.backends.cuda.matmul.allow_tf32 = False
        tell("machine", f"product {name} 8192", tflop_s=LIMITS[name] / 1e12)
    for size, count in ((64, 16384), (128, 8192), (256, 2048), (512, 512)):
        x = torch.randn((count, size, size), device=DEVICE)
        tell("machine", f"rfft2 {size}", images_s=count / seconds(lambda x=x: torch.fft.rfft2(x), 5))
