"""The second pass of many particles at once against a plain loop over particles."""

import pytest
import torch

from cryoseg_dist.kernels.matching import log_likelihood, observe, shift_phases
from cryoseg_dist.kernels.orientation_grid import orientation_grid, subdivide
from cryoseg_dist.kernels.second_pass import FineSlices, first_distinct, split_cells
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels

SIZE = 16


def test_distinct_values_come_in_order_of_first_appearance() -> None:
    values = torch.tensor([[5, 3, 5, 9, 3, 1], [2, 2, 2, 2, 7, 7], [4, 0, 4, 0, 8, 6]])
    found = first_distinct(values, torch.tensor([6, 4, 5]), 3)
    assert found.tolist() == [[5, 3, 9], [2, -1, -1], [4, 0, 8]]


@pytest.fixture
def setting() -> tuple:
    g = torch.Generator().manual_seed(0)
    ky, kx = disc_pixels(SIZE, 7)
    volume = prepare_volume(torch.randn((SIZE,) * 3, generator=g))
    grid, children = orientation_grid(0).float(), subdivide(60.0).float()
    n = len(ky)
    images = torch.randn((5, n), generator=g, dtype=torch.complex64)
    observed = observe(images, torch.rand((5, n), generator=g), torch.rand(n, generator=g) + 0.5)
    cells = torch.tensor([[3, 70, -1], [11, -1, -1], [70, 3, 5], [1, 2, -1], [8, 40, 60]])
    shifts = torch.randn((5, 2, 2), generator=g)
    shifts[1, 1] = torch.nan
    return ky, kx, volume, grid, children, observed, cells, shifts


@pytest.mark.parametrize("any_scale", [False, True])
@pytest.mark.parametrize("room", [1, 2**22])
def test_poses_of_many_are_those_of_each(setting: tuple, any_scale: bool, room: int) -> None:
    ky, kx, volume, grid, children, observed, cells, shifts = setting
    fine = FineSlices(volume, ky, kx, grid, children, 2**24)
    keep = 100
    rotations, moves, scores = split_cells(
        observed,
        cells,
        shifts,
        lambda _, some: fine.of(some),
        lambda rows, some: -0.1 * rows[:, None] * some.square().sum(dim=-1),
        ky,
        kx,
        size=SIZE,
        shift_step_px=1.0,
        keep=keep,
        any_scale=any_scale,
        room_bytes=room,
    )
    quarter = torch.tensor([[-0.25, -0.25], [-0.25, 0.25], [0.25, -0.25], [0.25, 0.25]])
    for i in range(5):
        own = (children @ grid[cells[i][cells[i] >= 0]][:, None]).flatten(0, 1)
        at = shifts[i][torch.isfinite(shifts[i, :, 0])]
        moved = (at[:, None] + quarter).flatten(0, 1)
        slices = project_pixels(volume, own, ky, kx)
        score = log_likelihood(observed[i : i + 1], shift_phases(moved, ky, kx, SIZE), slices, any_scale=any_scale)[0]
        score -= 0.1 * i * moved.square().sum(dim=1)[:, None]
        top = score.flatten().topk(min(keep, score.numel()))
        n = len(top.values)
        torch.testing.assert_close(scores[i, :n], top.values, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(rotations[i, 0], own[top.indices[0] % len(own)])
        torch.testing.assert_close(moves[i, 0], moved[top.indices[0] // len(own)])
        assert torch.isneginf(scores[i, n:]).all()
        assert torch.equal(moves[i, n:], torch.zeros_like(moves[i, n:]))


def test_kept_slices_are_those_projected(setting: tuple) -> None:
    ky, kx, volume, grid, children, *_ = setting
    room = 8 * len(children) * len(ky)
    asked = [torch.tensor([[1, 2], [2, 3]]), torch.tensor([[3, 9], [1, 1]]), torch.tensor([[5, 6], [7, 8]])]
    # Room for every cell, for the cells of one call only, and for less than that.
    for kept in (100 * room, 4 * room, room):
        fine = FineSlices(volume, ky, kx, grid, children, kept)
        for cells in asked:
            rotations, slices, index = fine.of(cells)
            wanted = project_pixels(volume, rotations.reshape(-1, 3, 3), ky, kx)
            assert torch.equal(slices[index].flatten(0, 1), wanted)
            torch.testing.assert_close(rotations[0, :8], children @ grid[cells[0, 0]])
