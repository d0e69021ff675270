"""Poses of particles: the expectation stage and the products that it is made of."""

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.matching import left_factor, product
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels, put_pixels
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from tests.benchmarks.gpu.measuring import DEVICE, OPTICS, columns_of, generator, seconds, tell


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
            1, order, 0.25 * size, 0, 0.25 * size, 1.0, 3.0, tuple(tuple(map(float, r)) for r in noise)
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
