"""The GPU paths on one card: limits of the card, correctness of each kernel, then rates.

``python tests/benchmarks/gpu.py [PART ...] --seconds 240`` needs CUDA, torch, Triton and this package alone. Each figure is printed as it is
taken; a part that fails says so and the rest goes on. With ``OUT`` set, figures are written to ``$OUT/gpu.json`` as well.
"""

import argparse
import cProfile
import json
import math
import os
import pstats
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.accumulator import empty_accumulator
from cryoseg_dist.kernels.insertion_torch import insert_torch
from cryoseg_dist.kernels.matching import Observations, left_factor, own_products, product, search
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels, put_pixels
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from cryoseg_dist.kernels.weighing import weigh
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


def columns_of(n: int, seed: int = 3) -> Tensor:
    """Defocus of images: (n, 4)."""
    g = generator(seed)
    u = 8000.0 + 15000.0 * torch.rand(n, generator=g)
    angle = 180.0 * torch.rand(n, generator=g)
    return torch.stack((u, u - 500.0 * torch.rand(n, generator=g), angle, torch.zeros(n)), dim=1)


def check() -> None:
    """Each kernel against double precision on the processor, on fresh numbers."""
    from cryoseg_dist.kernels.insertion_triton import insert_triton
    from cryoseg_dist.kernels.slices_triton import project_triton

    for size, padding in ((48, 2), (48, 1), (33, 2)):
        g = generator(size + padding)
        ky, kx = disc_pixels(size, size / 2)
        b, q = 60, 90
        images = torch.randn((b, len(ky)), generator=g, dtype=torch.complex64)
        weights = torch.rand((b, len(ky)), generator=g)
        which = torch.randint(0, b, (q,), generator=g)
        rotations, shifts = random_rotations(q, g).float(), 4.0 * torch.randn((q, 2), generator=g)
        share = torch.rand(q, generator=g)
        given = (images, weights, which, rotations, shifts, share, ky, kx)
        m = size * padding
        exact = torch.zeros((m, m, m // 2 + 1, 3), dtype=torch.float64)
        upcast = [t.to(torch.complex128) if t.is_complex() else t.double() for t in given[:2]]
        insert_torch(exact, *upcast, which, rotations.double(), shifts.double(), share.double(), ky, kx, size, padding)
        onto = [t.to(DEVICE) for t in given]
        for name, apart in (("vector additions", 4), ("single additions", 3)):
            total = torch.zeros((m, m, m // 2 + 1, apart), device=DEVICE)[..., :3]
            insert_triton(total, *onto, size, padding)
            tell("check", f"insertion {size} px padding {padding}, {name}", error=relative(total, exact))
        again = []
        for _ in range(6):
            total = empty_accumulator(size, padding, DEVICE)
            insert_triton(total, *onto, size, padding)
            again.append(total.contiguous().cpu())
        tell("check", "insertion repeated, spread", spread=max(relative(t, again[0]) for t in again[1:]))
        total = empty_accumulator(size, padding, DEVICE)
        insert_torch(total, *onto, size, padding)
        tell("check", "insertion by tensor operations", error=relative(total, exact))
        volume = prepare_volume(torch.randn((size, size, size), generator=g), padding)
        wanted = project_pixels(volume, rotations, ky, kx, padding)
        got = project_triton(volume.to(DEVICE), rotations.to(DEVICE), ky.to(DEVICE), kx.to(DEVICE), padding)
        tell("check", f"slices {size} px padding {padding}", error=relative(got, wanted))
    for size in (128, 127):
        g = generator(size)
        ky, kx = disc_pixels(size, size / 2)
        groups = (
            Optics(1.2, 300.0, 2.7, 0.1, (0.1, -0.2), (0.0, 0.0, 0.2, 0.1), (0.0, 0.1, 0.1, -0.1)),
            Optics(1.2, 200.0, 1.4, 0.07),
        )
        columns = torch.cat((columns_of(40), torch.randint(0, 2, (40, 1), generator=g).float()), dim=1)
        images = torch.randn((40, size, size), generator=g)
        inverse = torch.rand(len(ky), generator=g) + 0.5
        data, weights = weigh(images, Microscope(groups, size, ky, kx), columns, inverse, ky, kx)
        there = [t.to(DEVICE) for t in (inverse, ky, kx)]
        got, got_weights = weigh(images.to(DEVICE), Microscope(groups, size, *there[1:]), columns, *there)
        tell("check", f"weighing {size} px", error=relative(got, data), weights=relative(got_weights, weights))
    g = generator(5)
    ky, kx = disc_pixels(64, 24)
    b, t, r, n = 9, 37, 200, 300
    data, references = (torch.randn((k, len(ky)), generator=g, dtype=torch.complex64) for k in (b, n))
    weight, prior = torch.rand((b, len(ky)), generator=g), torch.randn((b, t), generator=g)
    phases = torch.polar(torch.ones(b, t, len(ky)), 6.28 * torch.rand((b, t, len(ky)), generator=g))
    index = torch.randint(0, n, (b, r), generator=g)
    exact = own_products(
        Observations(data.to(torch.complex128), weight.double()),
        phases.to(torch.complex128),
        references.to(torch.complex128),
        index,
    )
    there = [x.to(DEVICE) for x in (data, weight, phases, references, index)]
    got = own_products(Observations(*there[:2]), *there[2:])
    tell("check", "products with own references", cross=relative(got[0], exact[0]), energy=relative(got[1], exact[1]))
    for any_scale in (False, True):
        exact_best = search(Observations(data, weight), phases[0], [references], 64, prior=prior, any_scale=any_scale)
        best = search(
            Observations(*there[:2]), there[2][0], [there[3]], 64, prior=prior.to(DEVICE), any_scale=any_scale
        )
        same = (best.rotation.cpu() == exact_best.rotation) & (best.shift.cpu() == exact_best.shift)
        tell(
            "check",
            f"best of a search{', any scale' if any_scale else ''}",
            score=relative(best.score, exact_best.score),
            log_sum=relative(best.log_sum, exact_best.log_sum),
            same_places=float(same.float().mean()),
        )


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


def products() -> None:
    """Products of the first pass: rate and error by how numbers are split for the matrix units."""

    def single(a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T

    def tf32(a: Tensor, b: Tensor) -> Tensor:
        torch.backends.cuda.matmul.allow_tf32 = True
        out = a @ b.T
        torch.backends.cuda.matmul.allow_tf32 = False
        return out

    def split(a: Tensor, b: Tensor) -> Tensor:
        return product(left_factor(a), b)

    g = torch.Generator(DEVICE).manual_seed(0)
    for m, n, k in ((1024 * 37, 4096, 422), (1024 * 37, 4096, 1650)):
        a = torch.randn((m, k), generator=g, device=DEVICE) * torch.rand(k, generator=g, device=DEVICE) ** 4
        b = torch.randn((n, k), generator=g, device=DEVICE) * torch.rand(k, generator=g, device=DEVICE) ** 4
        exact = a[:2000].double() @ b.double().T
        scale = a[:2000].double().norm(dim=1)[:, None] * b.double().norm(dim=1)
        for way in (single, tf32, split):
            error = ((way(a, b)[:2000].double() - exact) / scale).abs()
            taken = seconds(lambda way=way, a=a, b=b: way(a, b), 5, 2)
            tell(
                "products",
                f"{m} x {n} x {k} {way.__name__}",
                tflop_s=2 * m * n * k / taken / 1e12,
                worst=float(error.max()),
                rms=float(error.square().mean().sqrt()),
            )


def particle(size: int, seed: int = 0) -> Tensor:
    """A made-up map: blobs within a ball."""
    g = np.random.default_rng(seed)
    axis = torch.arange(size) - size // 2
    out = torch.zeros((size, size, size))
    for _ in range(60):
        at = g.normal(size=3)
        at *= 0.36 * size * g.uniform() ** (1 / 3) / np.linalg.norm(at)
        line = [torch.exp(-0.5 * ((axis - c) / (0.02 * size)) ** 2) for c in at]
        out += line[0][:, None, None] * line[1][:, None] * line[2]
    return out


def estep() -> None:
    """Particles a second through the expectation stage, images in memory of the host, poses back there."""
    from cryoseg_dist.kernels.orientation_grid import rotation_vectors_to_matrix
    from cryoseg_dist.schema.work import Region, Unit
    from cryoseg_dist.stages import refine
    from cryoseg_dist.stages.refine_expectation import ExpectationStage

    settings = refine.RefineSettings()
    for size, order, n in (
        (128, 2, 4096),
        (128, 3, 2048),
        (128, 4, 2048),
        (256, 2, 1024),
        (256, 3, 512),
        (256, 4, 512),
    ):
        volume = particle(size)
        diameter = 0.8 * size * OPTICS.pixel_size
        g = generator(size)
        rotations = random_rotations(n, g).float()
        ky, kx = disc_pixels(size, size / 2, DEVICE)
        columns = columns_of(n)
        microscope = Microscope(OPTICS, size, ky, kx)
        prepared = prepare_volume(volume.to(DEVICE))
        images = torch.empty((n, size, size), dtype=torch.float16)
        for first in range(0, n, 512):
            rows = slice(first, first + 512)
            values = project_pixels(prepared, rotations[rows].to(DEVICE), ky, kx) * microscope.ctf(columns[rows])
            spectra = put_pixels(values, ky, kx, size)
            clean = torch.fft.fftshift(torch.fft.irfft2(spectra, s=(size, size)), dim=(-2, -1))
            if first == 0:
                scale = clean.std()
            images[rows] = (clean / scale + 3.0 * torch.randn(clean.shape, device=DEVICE)).half().cpu()
        scaled = volume / scale.cpu()
        noise = np.full((2, size // 2 + 1), 0.5 * 9.0 * size * size, dtype=np.float32)
        state = refine.RefineState(
            1, order, 0.25 * size, 0, 0.25 * size, 1.0, 3.0, tuple(tuple(map(float, r)) for r in noise), False
        )
        sampling = refine.sampling(state, size, OPTICS.pixel_size, diameter, "C1", settings)
        stage = ExpectationStage(
            OPTICS, "C1", diameter, sampling, noise, np.eye(3), 64, settings.share, False, {}
        )  # fmt: skip
        near = rotation_vectors_to_matrix(torch.randn((n, 3), generator=g, dtype=torch.float64)).float() @ rotations
        last = torch.cat((near.flatten(1), torch.zeros(n, 2)), dim=1).numpy()
        began = time.perf_counter()
        held = stage.setup({"half1": scaled.numpy(), "half2": scaled.numpy()}, "cuda")
        torch.cuda.synchronize()
        setup = time.perf_counter() - began
        unit = Unit(
            "u",
            {},
            {"poses": Region("x", (0, 0, 0, 0), (1, n, 64, 12))},
            {"half": 0, "ctf": columns.numpy(), "poses": last},
        )
        taken = []
        for _ in range(4):
            began = time.perf_counter()
            result = stage.compute(unit, {"images": images.numpy()}, held)
            taken.append(time.perf_counter() - began)
        best = torch.from_numpy(result.arrays["poses"][0, :, 0, :9].reshape(-1, 3, 3))
        error = angular_distance(best, rotations)
        n_references = held.grid.shape[0] or 123
        n_shifts = refine_shifts(sampling)
        flops = n * n_references * n_shifts * 4.0 * held.n_coarse
        tell(
            "estep",
            f"{size} px order {order}{' local' if sampling.local else ''}",
            particles_s=n / statistics.median(taken[1:]),
            first_s=n / taken[0],
            setup_s=setup,
            coarse_px=held.n_coarse,
            fine_px=held.n_fine,
            references=n_references,
            shifts=n_shifts,
            first_pass_tflop_s=flops / statistics.median(taken[1:]) / 1e12,
            median_error=float(error.median()),
        )
        if size == 128:
            profile(lambda s=stage, u=unit, i=images, h=held: s.compute(u, {"images": i.numpy()}, h))
        if order in (2, 4) and size == 128:
            few = slice(0, 48)
            small = Unit(
                "u",
                {},
                {"poses": Region("x", (0, 0, 0, 0), (1, 48, 64, 12))},
                {"half": 0, "ctf": columns[few].numpy(), "poses": last[few]},
            )
            on_card = stage.compute(small, {"images": images[few].numpy()}, held).arrays["poses"][0]
            cpu = stage.setup({"half1": scaled.numpy(), "half2": scaled.numpy()}, "cpu")
            began = time.perf_counter()
            here = stage.compute(small, {"images": images[few].numpy()}, cpu).arrays["poses"][0]
            rate = 48 / (time.perf_counter() - began)
            apart = angular_distance(*(torch.from_numpy(p[:, 0, :9].reshape(-1, 3, 3)) for p in (on_card, here)))
            tell(
                "estep",
                "against the processor",
                best_equal=float((apart < 0.01).float().mean()),
                weight_difference=float(np.abs(on_card[:, 0, 11] - here[:, 0, 11]).max()),
                processor_s=rate,
            )


def profile(work: Callable[[], object]) -> None:
    """Print where the time of some work goes, on the card and before it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with profiled(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    table = seen.key_averages()
    kernels = sorted(table, key=lambda e: -e.self_device_time_total)[:12]
    print("  on the card, ms:", ", ".join(f"{e.key[:48]} {e.self_device_time_total / 1e3:.1f}" for e in kernels))
    calls = cProfile.Profile()
    calls.runcall(work)
    found = pstats.Stats(calls).stats  # type: ignore[attr-defined]
    most = sorted(found.items(), key=lambda item: -item[1][2])[:10]
    print("  before it, ms:", ", ".join(f"{name[2][:44]} {1e3 * figures[2]:.1f}" for name, figures in most), flush=True)


def refine_shifts(sampling: Any) -> int:
    """Shifts of the first pass."""
    from cryoseg_dist.stages.refine_expectation import shift_grid

    return len(shift_grid(sampling.shift_range_px, sampling.shift_step_px))


def second_pass() -> None:
    """Slices a second: what the second pass of a local search takes most time for."""
    for size, shell in ((128, 48), (256, 80)):
        volume = prepare_volume(particle(size).to(DEVICE))
        ky, kx = disc_pixels(size, shell, DEVICE)
        rotations = random_rotations(20000, generator()).float().to(DEVICE)
        taken = seconds(lambda v=volume, r=rotations, y=ky, x=kx: project_pixels(v, r, y, x), 5)
        pixels = len(rotations) * len(ky)
        tell("slices", f"{size} px to shell {shell}", slices_s=len(rotations) / taken, pixels_s=pixels / taken)


def own() -> None:
    """Products of the second pass, each particle with its own slices, by tile."""
    from cryoseg_dist.kernels.matching_triton import own_products_triton

    g = torch.Generator(DEVICE).manual_seed(0)
    for b, t, r, p in ((256, 48, 384, 3248), (256, 16, 64, 3248), (64, 48, 384, 11904)):
        shifted = torch.randn((b, t, 2 * p), generator=g, device=DEVICE)
        weight = torch.rand((b, p), generator=g, device=DEVICE)
        references = torch.randn((30000 if p < 10000 else 8000, p), generator=g, device=DEVICE, dtype=torch.complex64)
        index = torch.randint(0, len(references), (b, r), generator=g, device=DEVICE)
        real = torch.view_as_real(references).flatten(1)
        exact = shifted[:2].double() @ real[index[:2]].double().mT
        scale = shifted[:2].double().norm(dim=2)[..., None] * real[index[:2]].double().norm(dim=2)[:, None]
        cross, _ = own_products_triton(shifted, weight, references, index)
        taken = seconds(lambda a=(shifted, weight, references, index): own_products_triton(*a), 5, 1)
        tell(
            "own",
            f"{t} shifts, {r} of {len(references)} slices of {p} px",
            particles_s=b / taken,
            tflop_s=4 * b * t * r * p / taken / 1e12,
            read_gb_s=8 * b * r * p / taken / 1e9,
            worst=float(((cross[:2].double() - exact) / scale).abs().max()),
        )


def unet_flops(architecture: Any, height: int, width: int) -> float:
    """Floating point operations of one padded pass."""
    a, total = architecture, 0.0
    for level in range(a.depth + 1):
        pixels, c = (height >> level) * (width >> level), a.width << level
        total += 2 * 9 * pixels * c * (a.in_channels if level == 0 else c // 2) + 2 * 9 * pixels * c * c
        if level < a.depth:
            total += 2 * 9 * pixels * c * 2 * c + 2 * 9 * pixels * c * c + 2 * 4 * (pixels // 4) * c * 2 * c
    return total + 2 * height * width * a.width * a.classes


def shipped() -> tuple[Any, dict[str, Tensor]]:
    """The network that comes with the package."""
    from safetensors import safe_open

    from cryoseg_dist.networks.unet import Architecture

    with safe_open(
        str(files("cryoseg_dist.networks") / "weights" / "default.safetensors"), framework="numpy"
    ) as handle:
        metadata = json.loads(handle.metadata()["cryoseg"])
        tensors = {name: torch.from_numpy(handle.get_tensor(name)).float() for name in handle.keys()}  # noqa: SIM118
    return Architecture.from_dict(metadata["architecture"]), tensors


def unet(compiled: bool = False) -> None:
    """Images a second through the network."""
    from cryoseg_dist.networks.inference import class_probabilities, for_inference
    from cryoseg_dist.networks.unet import Architecture, UNet

    torch.backends.cudnn.benchmark = True
    cases = [
        ("base 32", Architecture(width=32, padded=True, batch_norm=False), 1024, 8),
        ("base 64", Architecture(width=64, padded=True, batch_norm=False), 1024, 8),
        ("base 64", Architecture(width=64, padded=True, batch_norm=False), 4096, 1),
        ("shipped", shipped()[0], 1024, 16),
    ]
    for name, architecture, extent, batch in cases:
        try:
            network = for_inference(UNet(architecture), DEVICE, compiled)
            x = torch.randn((batch, 1, extent, extent), device=DEVICE)
            began = time.perf_counter()
            with torch.inference_mode():
                class_probabilities(network, x)
                torch.cuda.synchronize()
                first = time.perf_counter() - began
                taken = seconds(lambda network=network, x=x: class_probabilities(network, x), 5, 1)
            rate = batch / taken
            tell(
                "unet",
                f"{name}, {extent}{', compiled' if compiled else ''}",
                images_s=rate,
                tflop_s=rate * unet_flops(architecture, extent, extent) / 1e12,
                first_s=first,
                batch=batch,
            )
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()


def picks(micrograph: Path | None) -> None:
    """The segmentation stage on the card and on the processor: probabilities and picks of one micrograph."""
    from cryoseg_dist.kernels.evaluation import match_centres
    from cryoseg_dist.schema.work import Region, Unit
    from cryoseg_dist.stages.pick import PickSettings, PickStage
    from cryoseg_dist.stages.segment import SegmentGeometry, SegmentSettings, SegmentStage

    architecture, weights = shipped()
    if micrograph is None:
        g = generator(4)
        image = torch.randn((1024, 1024), generator=g).numpy()
    else:
        image = np.load(micrograph).astype(np.float32)
    pixel, diameter = 1.5, 130.0
    wanted = diameter / 16.0
    from cryoseg_dist.kernels.rescale import rescale_ratio, rescaled_shape

    ratio = rescale_ratio(pixel, wanted)
    where = SegmentGeometry("m", image.shape, pixel, float(pixel / ratio), rescaled_shape(image.shape, ratio))
    stage = SegmentStage(
        SegmentSettings(), architecture, {k: v.numpy() for k, v in weights.items()}, diameter, True, where
    )
    unit = Unit("s", {}, {"probability": Region("p", (0, 0, 0, 0), (1, 4, *where.extent))}, {"index": 0})
    found, probability = [], []
    for device in ("cpu", "cuda"):
        network = stage.setup({}, device)
        result = stage.compute(unit, {"image": image[None]}, network)
        began = time.perf_counter()
        for _ in range(5):
            result = stage.compute(unit, {"image": image[None]}, network)
        taken = (time.perf_counter() - began) / 5
        tell("picks", f"segmenting {image.shape[1]} x {image.shape[0]} on {device}", seconds=taken)
        probability.append(result.arrays["probability"].astype(np.float32))
        pick = PickStage(PickSettings(), diameter / where.pixel_size, where.pixel_size / pixel)
        target = Unit("p", {}, {"picks": Region("p", (0, 0, 0), (1, 4000, 3))}, {"index": 0})
        table = pick.compute(target, {"probability": result.arrays["probability"]}, None).arrays["picks"][0]
        found.append(table[np.isfinite(table[:, 0]) & (table[:, 2] > 0.5)])
    both = match_centres(found[1][:, :2], found[0][:, :2], 0.05 * diameter / pixel)
    tell(
        "picks",
        "card against processor",
        picks=len(found[0]),
        recall=both.recall,
        precision=both.precision,
        probability=float(np.abs(probability[0] - probability[1]).max() / 255.0),
    )


def main() -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no part after that")
    parser.add_argument("--micrograph", type=Path, help="a micrograph (.npy, 1.5 A, particles of 130 A) to pick")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: expected a CUDA device, got none. Run it where torch sees one.", file=sys.stderr)
        return 2
    parts: dict[str, Callable[[], None]] = {
        "machine": machine,
        "check": check,
        "insertion": insertion,
        "path": path,
        "fold": fold,
        "own": own,
        "estep": estep,
        "products": products,
        "slices": second_pass,
        "picks": lambda: picks(arguments.micrograph),
        "unet": unet,
        "compiled": lambda: unet(compiled=True),
    }
    for name in arguments.parts or parts:
        if time.perf_counter() - STARTED > arguments.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        began = time.perf_counter()
        try:
            parts[name]()
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
        if "OUT" in os.environ:
            (Path(os.environ["OUT"]) / "gpu.json").write_text(json.dumps(FIGURES, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
