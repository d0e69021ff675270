"""From images to the sum of their slices."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.accumulator import empty_accumulator
from cryoseg_dist.kernels.insertion_torch import insert_torch
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.weighing import weigh
from tests.benchmarks.gpu.measuring import DEVICE, LIMITS, OPTICS, columns_of, generator, seconds, tell


def ring_order(ky: Tensor, kx: Tensor, thickness: float) -> Tensor:
    """Pixels ring by ring, by their angle within a ring."""
    ring = torch.floor(torch.sqrt((ky * ky + kx * kx).double()) / thickness)
    return torch.argsort(ring * 10.0 + torch.atan2(ky.double(), kx.double()))


def orders(ky: Tensor, kx: Tensor) -> dict[str, Tensor]:
    """Ways in which pixels may follow one another."""
    return {
        "radius": torch.arange(len(ky), device=ky.device),
        "rows": torch.argsort(ky * 4096 + kx),
        "ring2": ring_order(ky, kx, 2.0),
    }


def slices_of(size: int, padding: int, n: int, order: str = "radius", seed: int = 1) -> tuple[Tensor, ...]:
    """Arguments of an insertion of ``n`` random images on the card, without the accumulator."""
    ky, kx = disc_pixels(size, size / 2, DEVICE)
    at = orders(ky, kx)[order]
    ky, kx = ky[at], kx[at]
    g = torch.Generator(DEVICE).manual_seed(seed)
    images = torch.randn((n, len(ky)), generator=g, device=DEVICE, dtype=torch.complex64)
    weights = torch.rand((n, len(ky)), generator=g, device=DEVICE)
    which = torch.arange(n, device=DEVICE)
    rotations = random_rotations(n, generator(seed)).float().to(DEVICE)
    shifts = 3.0 * torch.randn((n, 2), generator=g, device=DEVICE)
    return images, weights, which, rotations, shifts, torch.ones(n, device=DEVICE), ky, kx


def insertion() -> None:
    """Particles a second into the accumulator."""
    from cryoseg_dist.kernels.insertion_triton import insert_triton

    def measure(size: int, padding: int, n: int, order: str = "radius", apart: int = 4) -> None:
        given = slices_of(size, padding, n, order)
        m = size * padding
        total = torch.zeros((m, m, m // 2 + 1, apart), device=DEVICE)[..., :3]
        taken = seconds(lambda: insert_triton(total, *given, size, padding), 5, 1)
        pixels = given[-1].numel()
        # Eight voxels of three floats read and written, and the pixel read.
        moved = n * pixels * (8 * 12 * 2 + 12)
        tell(
            "insertion",
            f"{size} px padding {padding}, {n} at once, order {order}, {apart} floats apart",
            particles_s=n / taken,
            useful_gb_s=moved / taken / 1e9,
            share_of_copy=moved / taken / LIMITS.get("copy", math.nan),
            additions_s=n * pixels * 8 / taken,
        )

    for size, n in ((64, 32768), (128, 16384), (256, 4096), (512, 1024)):
        for padding in (1, 2):
            measure(size, padding, n)
    for n in (256, 1024):
        measure(256, 2, n)
    measure(256, 2, 4096, "rows")
    measure(256, 2, 4096, "ring2")
    measure(256, 2, 4096, "radius", 3)
    given = slices_of(128, 2, 256)
    total = torch.zeros((256, 256, 129, 3), device=DEVICE)
    taken = seconds(lambda: insert_torch(total, *given, 128, 2), 3, 1)
    tell("insertion", "128 px padding 2, tensor operations", particles_s=256 / taken)


def path() -> None:
    """Float16 images to the accumulator: transform, weighting, insertion."""
    from cryoseg_dist.kernels.insertion_triton import insert_triton

    for size, padding, batch, n_batches in (
        (128, 2, 16384, 4),
        (256, 2, 4096, 6),
        (256, 1, 4096, 6),
        (512, 2, 1024, 4),
    ):
        ky, kx = disc_pixels(size, size / 2, DEVICE)
        microscope = Microscope(OPTICS, size, ky, kx)
        inverse = torch.ones(len(ky), device=DEVICE)
        columns = columns_of(batch)
        *_, which, rotations, shifts, share, _, _ = slices_of(size, padding, batch)
        total = empty_accumulator(size, padding, DEVICE)
        images = torch.randn((batch, size, size), device=DEVICE, dtype=torch.float16)

        def whole(
            images: Tensor,
            size: int = size,
            padding: int = padding,
            given: tuple[Any, ...] = (microscope, columns, inverse, ky, kx),
            poses: tuple[Tensor, ...] = (which, rotations, shifts, share),
            total: Tensor = total,
        ) -> None:
            data, weights = weigh(images, *given)
            insert_triton(total, data, weights, *poses, *given[3:], size, padding)

        parts = {
            "transform": seconds(lambda images=images: torch.fft.rfft2(images.float()), 5),
            "transform and weighting": seconds(
                lambda images=images, a=(microscope, columns, inverse, ky, kx): weigh(images, *a), 5
            ),
            "whole, images on the card": seconds(lambda images=images: whole(images), 5),
        }
        for name, taken in parts.items():
            tell("path", f"{size} px padding {padding}, {name}", particles_s=batch / taken)
        host = [images.cpu().pin_memory() for _ in range(2)]
        room = [torch.empty_like(images) for _ in range(2)]
        upload, ready, free = (
            torch.cuda.Stream(),
            [torch.cuda.Event() for _ in room],
            [torch.cuda.Event() for _ in room],
        )

        def streamed(
            host: list[Tensor] = host,
            room: list[Tensor] = room,
            upload: torch.cuda.Stream = upload,
            ready: list[torch.cuda.Event] = ready,
            free: list[torch.cuda.Event] = free,
            n_batches: int = n_batches,
            whole: Callable[[Tensor], None] = whole,
        ) -> None:
            for i in range(n_batches):
                j = i % 2
                with torch.cuda.stream(upload):
                    upload.wait_event(free[j])
                    room[j].copy_(host[j], non_blocking=True)
                    ready[j].record(upload)
                torch.cuda.current_stream().wait_event(ready[j])
                whole(room[j])
                free[j].record()

        streamed()
        torch.cuda.synchronize()
        began = time.perf_counter()
        streamed()
        torch.cuda.synchronize()
        rate = batch * n_batches / (time.perf_counter() - began)
        tell(
            "path",
            f"{size} px padding {padding}, whole, images in pinned memory of the host",
            particles_s=rate,
            upload_gb_s=rate * size * size * 2 / 1e9,
            share_of_upload=rate * size * size * 2 / LIMITS.get("upload", math.nan),
        )


def fold() -> None:
    """A whole fold of the reconstruction stage, from arrays in memory to the sum in memory."""
    from cryoseg_dist.schema.work import Unit
    from cryoseg_dist.stages.reconstruct import FoldStage, pose_table

    for size, n in ((128, 65536), (256, 8192), (256, 24576)):
        g = np.random.default_rng(0)
        images = np.tile(g.standard_normal((512, size, size), dtype=np.float32).astype(np.float16), (n // 512, 1, 1))
        angles = g.uniform(0, 360, (3, n))
        poses = pose_table(*angles, g.normal(size=n), g.normal(size=n), OPTICS.pixel_size)
        unit = Unit("f", parameters={"half": 0, "parts": [{"ctf": columns_of(n).numpy(), "poses": poses}]})
        stage = FoldStage(OPTICS, size)
        for _ in range(2):
            began = time.perf_counter()
            stage.partial(unit, {"images/0": images})
            rate = n / (time.perf_counter() - began)
        tell("fold", f"{size} px, {n} particles, ordinary memory to sum in memory", particles_s=rate)
