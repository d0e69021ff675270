"""Maps that were turned, moved and mirrored are found again."""

import pytest
import torch

from cryoseg_dist.kernels.alignment import align, mirror, rotate_map
from cryoseg_dist.kernels.fourier import to_fourier
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from cryoseg_dist.simulate.specimen import made_up


def phantom() -> torch.Tensor:
    return made_up(diameter=90.0, size=32, pixel_size=4.0, resolution=12.0, seed=1).volume


def test_rotating_back_gives_the_map_again() -> None:
    volume = phantom()
    rotation = random_rotations(1, torch.Generator().manual_seed(0))[0]
    again = rotate_map(rotate_map(volume, rotation), rotation.T)
    assert float(fsc(to_fourier(again, 3), to_fourier(volume, 3))[1:11].min()) > 0.98
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turned = rotate_map(volume, quarter)
    # The value at (x, y) is that at (-y, x): a quarter turn of the grid.
    exact = volume.flip(2).roll(1, 2).transpose(1, 2)
    assert float(fsc(to_fourier(turned, 3), to_fourier(exact, 3))[1:14].min()) > 0.99


@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_hand_and_shift_are_found(mirrored: bool) -> None:
    volume = phantom()
    rotation = random_rotations(1, torch.Generator().manual_seed(3))[0]
    moved = rotate_map(mirror(volume) if mirrored else volume, rotation).roll((2, -1, 1), (0, 1, 2))
    found = align(moved, volume, 12.0)
    assert found.mirrored is mirrored
    assert found.correlation > 0.97
    assert float(fsc(to_fourier(found.volume, 3), to_fourier(volume, 3))[1:10].min()) > 0.9
    if not mirrored:
        assert float(angular_distance(found.rotation, rotation.T)) < 3.0


def test_the_other_hand_fits_less_well() -> None:
    volume = phantom()
    right = align(volume, volume, 12.0, both_hands=False).correlation
    wrong = align(mirror(volume), volume, 12.0, both_hands=False).correlation
    assert right > 0.99
    assert wrong < right - 0.1
