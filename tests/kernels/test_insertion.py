"""Insertion on the processor against sums in double precision, its threads and its long sums."""

import numpy as np
import pytest
import torch

from cryoseg_dist.kernels.accumulator import empty_accumulator, enforce_friedel
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.insertion import insert
from cryoseg_dist.kernels.interpolation import Interpolation, kaiser_bessel
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import by_rows, disc_pixels
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.weighing import weigh, weigh_torch
from cryoseg_dist.schema.optics import Optics

AXES = torch.tensor(
    [[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[0, -1, 0], [0, 0, -1], [1, 0, 0]]]
)


def sample(size: int, n: int, max_shell: float, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Data, weights, rotations (axes among them), shifts and pixels."""
    g = torch.Generator().manual_seed(seed)
    ky, kx = disc_pixels(size, max_shell)
    data = torch.complex(*(torch.randn((n, len(ky)), generator=g) for _ in range(2)))
    rotations = torch.cat((AXES, random_rotations(n, g).float()))[:n]
    return data, torch.rand((n, len(ky)), generator=g), rotations, torch.randn((n, 2), generator=g), ky, kx


def whole_sum(
    data: torch.Tensor,
    weights: torch.Tensor,
    rotations: torch.Tensor,
    shifts: torch.Tensor,
    ky: torch.Tensor,
    kx: torch.Tensor,
    size: int,
    padding: int,
    interpolation: Interpolation,
    curvature: float,
) -> np.ndarray:
    """The full sum over all of Fourier space, pixel by pixel with its Friedel mate, in double precision: (m, m, m, 3), centred."""
    m, reach = padding * size, interpolation.taps // 2
    out = np.zeros((m + 8, m + 8, m + 8, 3))
    y, x = ky.double().numpy(), kx.double().numpy()
    for q in range(len(data)):
        r = rotations[q].double().numpy() * padding
        k = x[:, None] * r[0] + y[:, None] * r[1] + curvature * (x * x + y * y)[:, None] * r[2]
        phase = np.exp(-2j * np.pi * (x * float(shifts[q, 0]) + y * float(shifts[q, 1])) / size)
        value, weight = data[q].numpy() * phase, weights[q].double().numpy()
        for sign in (1, -1):
            moved = sign * k
            low = np.floor(moved).astype(int) - (reach - 1)
            for dz, dy, dx in np.ndindex(*(interpolation.taps,) * 3):
                at = low + np.array((dx, dy, dz))
                distance = moved - at
                if interpolation is Interpolation.TRILINEAR:
                    share = (1.0 - np.abs(distance)).prod(axis=1)
                else:
                    share = kaiser_bessel(distance).prod(axis=1)
                index = tuple((at + m // 2 + 4).T[::-1])
                parts = np.stack((value.real, sign * value.imag, weight), axis=1)
                np.add.at(out, index, parts * share[:, None])
    return out[4:-4, 4:-4, 4:-4]


@pytest.mark.parametrize("curvature", [0.0, 0.4])
@pytest.mark.parametrize("interpolation", list(Interpolation))
@pytest.mark.parametrize(("size", "padding"), [(20, 2), (21, 2), (34, 1), (70, 2)])
def test_insertion_is_the_sum_over_pixels_and_their_mates(
    size: int, padding: int, interpolation: Interpolation, curvature: float
) -> None:
    """Everywhere, the plane x = 0 of the Friedel pairs included, for even and odd boxes of one and several bricks along each axis."""
    data, weights, rotations, shifts, ky, kx = sample(size, 12, 0.5 * size - 4)
    total = empty_accumulator(size, padding)
    insert(
        total,
        data,
        weights,
        rotations,
        shifts,
        ky,
        kx,
        size=size,
        padding=padding,
        interpolation=interpolation,
        curvature=curvature / size,
    )
    m = size * padding
    want = whole_sum(data, weights, rotations, shifts, ky, kx, size, padding, interpolation, curvature / size)
    want = np.fft.ifftshift(want, axes=(0, 1, 2))[:, :, : m // 2 + 1]
    got = enforce_friedel(total).numpy()
    assert np.abs(got - want).max() < 3e-5 * np.abs(want).max()


def test_threads_share_an_accumulator_and_change_nothing() -> None:
    size = 40
    data, weights, rotations, shifts, ky, kx = sample(size, 150, size / 2)
    sums = []
    for threads in (1, 2, 5):
        sums.append(empty_accumulator(size))
        for _ in range(3):
            insert(sums[-1], data, weights, rotations, shifts, ky, kx, size=size, threads=threads)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@pytest.mark.slow
def test_ten_million_additions_keep_six_digits() -> None:
    """One view, ten million times in a hundred folds: what meets one voxel most often."""
    size, n = 8, 100_000
    ky, kx = disc_pixels(size, 1)
    g = torch.Generator().manual_seed(3)
    ones, which = torch.ones((1, len(ky))), torch.zeros(n, dtype=torch.int64)
    rotations, shifts = torch.eye(3).expand(n, 3, 3), torch.zeros((n, 2))
    merged, want, plain = 0.0, 0.0, np.float32(0.0)
    for _ in range(100):
        share = torch.rand(n, generator=g)
        total = empty_accumulator(size)
        insert(
            total,
            ones.to(torch.complex64),
            ones,
            rotations,
            shifts,
            ky,
            kx,
            size=size,
            pose_image=which,
            pose_weight=share,
        )
        merged += float(total[0, 0, 2, 2])
        want += float(share.double().sum())
        plain = np.cumsum(np.concatenate(([plain], share.numpy())), dtype=np.float32)[-1]
    assert merged == pytest.approx(want, rel=1e-6)
    assert abs(float(plain) / want - 1.0) > 1e-5


def test_a_long_fold_of_like_terms_keeps_its_sum() -> None:
    """Equal terms are rounded the same way each time, the worst case: a plain sum of so many loses a thousandth."""
    size, n = 8, 1_000_000
    ky, kx = disc_pixels(size, 1)
    values, which = torch.full((1, len(ky)), 0.1), torch.zeros(n, dtype=torch.int64)
    rotations, shifts, total = torch.eye(3).expand(n, 3, 3), torch.zeros((n, 2)), empty_accumulator(size)
    insert(total, values.to(torch.complex64), values, rotations, shifts, ky, kx, size=size, pose_image=which)
    want = n * float(np.float32(0.1))
    assert float(total[0, 0, 0, 2]) == pytest.approx(want, rel=5e-5)
    assert abs(np.cumsum(np.full(n, 0.1, np.float32), dtype=np.float32)[-1] / want - 1.0) > 1e-3


@pytest.mark.parametrize("envelopes", [False, True])
@pytest.mark.parametrize("size", [24, 25])
def test_weighing_agrees_with_tensor_operations(size: int, envelopes: bool) -> None:
    ky, kx = disc_pixels(size, size / 2)
    order = by_rows(ky, kx)
    ky, kx = ky[order], kx[order]
    g = torch.Generator().manual_seed(1)
    optics = (
        Optics(2.0, 300.0, 2.7, 0.1),
        Optics(2.0, 300.0, 2.7, 0.1, beam_tilt=(0.3, -0.2), even_aberrations=(0.4, 0.0, -0.3)),
    )
    columns = torch.cat((1e4 + 1e3 * torch.rand((40, 2), generator=g), 90 * torch.rand((40, 2), generator=g)), dim=1)
    columns = torch.cat((columns, torch.arange(40.0)[:, None] % 2), dim=1)
    if envelopes:
        columns = torch.cat((columns, torch.rand((40, 2), generator=g) * torch.tensor((2.0, 80.0))), dim=1)
    images = torch.randn((40, size, size), generator=g).to(torch.float16)
    microscope = Microscope(optics, size, ky, kx)
    noise = 1.0 + torch.rand(len(ky), generator=g)
    for fast, slow in zip(
        weigh(images, microscope, columns, noise, ky, kx),
        weigh_torch(images, microscope, columns, noise, ky, kx),
        strict=True,
    ):
        # Phases of up to 41 radians are rounded in single precision on either side.
        assert float((fast - slow).abs().max()) < 2e-5 * float(slow.abs().max())


@pytest.mark.parametrize(
    ("interpolation", "padding", "least"),
    [("trilinear", 2, 0.999), ("kaiser_bessel", 2, 0.999), ("kaiser_bessel", 1, 0.995)],
)
def test_slices_of_a_map_give_it_back(interpolation: str, padding: int, least: float) -> None:
    """Exact slices: what differs is the interpolation's alone."""
    size, how, g = 32, Interpolation(interpolation), torch.Generator().manual_seed(2)
    points, rotations = torch.randn((30, 3), generator=g) * 3.0, random_rotations(2500, g).float()
    ky, kx = disc_pixels(size, size / 2)
    axis = torch.arange(size) - size // 2
    x, y, z = (torch.exp(-0.5 * (axis[None] - points[:, i, None]) ** 2) for i in range(3))
    truth = torch.einsum("az,ay,ax->zyx", z, y, x)
    k = (kx[:, None] * rotations[:, None, 0] + ky[:, None] * rotations[:, None, 1]) / size
    envelope = torch.exp(-2.0 * torch.pi**2 * (ky * ky + kx * kx) / size**2)
    data = torch.polar(
        envelope.expand(len(points), -1)[:, None], -2.0 * torch.pi * torch.einsum("qpi,ai->aqp", k, points)
    ).sum(0)
    total = empty_accumulator(size, padding)
    weights, shifts = torch.ones(data.shape), torch.zeros((len(rotations), 2))
    insert(total, data, weights, rotations, shifts, ky, kx, size=size, padding=padding, interpolation=how)
    found = finish(enforce_friedel(total), size, padding=padding, interpolation=how)
    assert float(fsc(to_fourier(found, 3), to_fourier(truth, 3))[: int(0.45 * size)].min()) > least
