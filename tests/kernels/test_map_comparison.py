"""Maps compared with others of known place, hand and scale."""

import pytest
import torch

from cryoseg_dist.kernels.alignment import mirror
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.map_comparison import compare_maps, moved, on_grid
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.orientation_grid import rotation_vectors_to_matrix
from cryoseg_dist.simulate.specimen import made_up

N, PIXEL = 48, 3.0


def phantom() -> torch.Tensor:
    return made_up(diameter=100.0, size=N, pixel_size=PIXEL, resolution=8.0, seed=1).volume


@pytest.mark.parametrize("wrong_hand", [False, True])
def test_a_turned_and_moved_reference_is_brought_back(wrong_hand: bool) -> None:
    volume = phantom()
    turn = rotation_vectors_to_matrix(torch.tensor([40.0, -75.0, 20.0], dtype=torch.float64))
    reference = moved(mirror(volume) if wrong_hand else volume, turn, (1.4, -2.3, 0.6))
    noisy = volume + 0.2 * volume.std() * torch.randn(volume.shape, generator=torch.Generator().manual_seed(0))
    found = compare_maps(noisy, reference, soft_sphere(N, 20, 3), 14.0)
    assert found.mirrored is wrong_hand
    assert not found.in_place
    assert float(found.curve[1:14].min()) > 0.97
    assert found.agreement > found.agreement_other_hand + 0.2
    assert float(fsc(to_fourier(found.moved, 3), to_fourier(volume, 3))[1:14].min()) > 0.97


def test_a_reference_in_place_stays() -> None:
    volume = phantom()
    found = compare_maps(volume, 3.0 * volume, soft_sphere(N, 20, 3), 12.0)
    assert found.in_place
    assert not found.mirrored
    assert found.agreement == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(found.moved, 3.0 * volume)


def test_an_unrelated_reference_does_not_agree() -> None:
    other = made_up(diameter=100.0, size=N, pixel_size=PIXEL, resolution=8.0, seed=9).volume
    found = compare_maps(phantom(), other, soft_sphere(N, 20, 3), 14.0)
    assert float(found.curve[8:].mean()) < 0.4


@pytest.mark.parametrize(("pixel", "size"), [(2.0, 96), (3.7, 40), (2.31, 61), (3.0, 31)])
def test_maps_come_onto_another_grid_at_the_right_scale(pixel: float, size: int) -> None:
    """A Gaussian blob keeps its place, its width and its height."""

    def blob(n: int, p: float) -> torch.Tensor:
        axis = (torch.arange(n) - n // 2) * p
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        return torch.exp(-((x - 20.0) ** 2 + (y + 12.0) ** 2 + z**2) / (2 * 9.0**2)).float()

    out = on_grid(blob(size, pixel), pixel, N, PIXEL)
    inside = soft_sphere(N, min(N / 2, 0.5 * size * pixel / PIXEL) - 3, 0) > 0
    assert float((out - blob(N, PIXEL)).abs()[inside].max()) < 0.02


def test_fractions_of_a_pixel_move_a_map() -> None:
    volume = phantom()
    there = moved(volume, torch.eye(3, dtype=torch.float64), (2.0, 0.0, -1.0))
    whole = volume.roll((-1, 0, 2), (0, 1, 2))
    assert float(fsc(to_fourier(there, 3), to_fourier(whole, 3))[1:20].min()) > 0.99
