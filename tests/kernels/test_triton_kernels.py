"""Triton kernels against the tensor and processor paths.

Where Triton is installed they are run by its interpreter, in a process of their own; where torch sees a GPU, on that.
"""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from cryoseg_dist.kernels.accumulator import empty_accumulator
from cryoseg_dist.kernels.insertion import insert
from cryoseg_dist.kernels.insertion_torch import insert_torch
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.weighing import weigh
from cryoseg_dist.schema.optics import Optics

GROUPS = (
    Optics(1.5, 300.0, 2.7, 0.1, (0.1, -0.2), (0.0, 0.0, 0.2), (0.0, 0.1, 0.1)),
    Optics(1.5, 200.0, 1.4, 0.07),
)


def slices_to_insert(size: int, b: int = 5, q: int = 7) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(size)
    ky, kx = disc_pixels(size, size / 2)
    images = torch.randn((b, len(ky)), generator=g, dtype=torch.complex64)
    weights = torch.rand((b, len(ky)), generator=g)
    which = torch.randint(0, b, (q,), generator=g)
    rotations, shifts = random_rotations(q, g).float(), 3.0 * torch.randn((q, 2), generator=g)
    return images, weights, which, rotations, shifts, torch.rand(q, generator=g), ky, kx


def exact_sum(given: tuple[torch.Tensor, ...], size: int, padding: int) -> torch.Tensor:
    """By tensor operations in double precision."""
    images, weights, which, rotations, shifts, share, ky, kx = given
    m = size * padding
    out = torch.zeros((m, m, m // 2 + 1, 3), dtype=torch.float64)
    double = (images.to(torch.complex128), weights.double(), which, rotations.double(), shifts.double(), share.double())
    insert_torch(out, *double, ky, kx, size, padding)
    return out


def images_to_weigh(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(size)
    u = 10000.0 + 5000.0 * torch.rand(6, generator=g)
    group = torch.tensor([0.0, 1, 0, 1, 1, 0])
    columns = torch.stack((u, u - 300.0, 90.0 * torch.rand(6, generator=g), torch.full((6,), 5.0), group), dim=1)
    inverse = torch.rand(len(disc_pixels(size, size / 2)[0]), generator=g) + 0.1
    return torch.randn((6, size, size), generator=g), columns, inverse


def close(a: torch.Tensor, b: torch.Tensor, error: float) -> None:
    assert float((a.cpu() - b).abs().square().sum().sqrt() / b.abs().square().sum().sqrt()) < error


@pytest.mark.parametrize(("size", "padding"), [(16, 2), (16, 1), (15, 2)])
def test_paths_of_insertion_agree_on_a_processor(size: int, padding: int) -> None:
    given = slices_to_insert(size)
    images, weights, which, rotations, shifts, share, ky, kx = given
    exact = exact_sum(given, size, padding)
    by_torch, by_numba = empty_accumulator(size, padding), empty_accumulator(size, padding)
    insert_torch(by_torch, *given, size, padding)
    insert(
        by_numba, images, weights, rotations, shifts, ky, kx, size=size, padding=padding, pose_image=which, pose_weight=share
    )  # fmt: skip
    close(by_torch, exact, 1e-6)
    close(by_numba, exact, 1e-6)


def numbers(text: str) -> tuple[int, ...]:
    """Of a version: its first two."""
    return tuple(int(n) for n in text.split(".")[:2])


INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")


def test_kernels_in_the_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: its kernels are not tested here")
    if numbers(version("triton")) < (3, 9) and numbers(version("numpy")) >= (2, 4):
        pytest.skip("this Triton's interpreter cannot count with this NumPy: its kernels are not tested here")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ran = subprocess.run(
        [sys.executable, str(INTERPRETED)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    errors = [float(line.split()[-1]) for line in ran.stdout.splitlines()]
    assert len(errors) == 25
    assert max(errors) < 2e-5


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: kernels are not tested on one")


@needs_cuda
@pytest.mark.parametrize(("size", "padding"), [(48, 2), (48, 1), (33, 2)])
def test_insertion_on_a_gpu(size: int, padding: int) -> None:
    given = slices_to_insert(size, 40, 60)
    exact = exact_sum(given, size, padding)
    total = empty_accumulator(size, padding, "cuda")
    images, weights, which, rotations, shifts, share, ky, kx = (t.cuda() for t in given)
    insert(
        total, images, weights, rotations, shifts, ky, kx, size=size, padding=padding, pose_image=which, pose_weight=share
    )  # fmt: skip
    # Coordinates in float32 are what is off: tensor operations in float32 are off by 1.9e-6 here.
    close(total, exact, 3e-6)


@needs_cuda
def test_slices_and_weights_on_a_gpu() -> None:
    for size in (32, 31):
        ky, kx = disc_pixels(size, size / 2)
        g = torch.Generator().manual_seed(size)
        volume, rotations = prepare_volume(torch.randn((size,) * 3, generator=g)), random_rotations(9, g).float()
        there = project_pixels(volume.cuda(), rotations.cuda(), ky.cuda(), kx.cuda())
        close(there, project_pixels(volume, rotations, ky, kx), 1e-5)
        images, columns, inverse = images_to_weigh(size)
        wanted = weigh(images, Microscope(GROUPS, size, ky, kx), columns, inverse, ky, kx)
        microscope = Microscope(GROUPS, size, ky.cuda(), kx.cuda())
        got = weigh(images.half().cuda(), microscope, columns, inverse.cuda(), ky.cuda(), kx.cuda())
        close(got[0], wanted[0], 1e-3)
        close(got[1], wanted[1], 1e-5)
