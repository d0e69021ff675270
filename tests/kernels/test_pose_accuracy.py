"""Angular accuracy against the likelihood that the search of poses uses."""

import pytest
import torch

from cryoseg_dist.kernels.matching import log_likelihood, observe
from cryoseg_dist.kernels.orientation_grid import rotation_vectors_to_matrix
from cryoseg_dist.kernels.pose_accuracy import LOG_ODDS, angular_accuracy
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.simulate.specimen import made_up

SIZE = 32


@pytest.mark.parametrize("noise", [3e2, 3e3, 3e4])
def test_it_is_where_the_likelihood_of_a_clean_image_has_fallen_a_hundredfold(noise: float) -> None:
    volume = prepare_volume(made_up(diameter=90.0, size=SIZE, pixel_size=4.0, resolution=9.0, seed=3).volume)
    ky, kx = disc_pixels(SIZE, 12)
    rotation = random_rotations(1, torch.Generator().manual_seed(5)).float()
    transfer = torch.linspace(-1.0, 1.0, len(ky))[None]
    clean = transfer * project_pixels(volume, rotation, ky, kx)
    level = torch.full((len(ky),), noise * float(clean.abs().square().mean()) / len(ky))
    seen = observe(clean, transfer, level)
    tried = torch.arange(1, 3201) * 0.01
    reached = []
    for axis in torch.eye(3):
        turned = rotation @ rotation_vectors_to_matrix(tried[:, None] * axis).float()
        slices = project_pixels(volume, torch.cat((rotation, turned)), ky, kx)
        score = log_likelihood(seen, torch.ones((1, len(ky)), dtype=torch.complex64), slices)[0, 0]
        lost = score[0] - score[1:]
        reached.append(float(tried[int((lost >= LOG_ODDS).int().argmax())]) if bool((lost >= LOG_ODDS).any()) else 32.0)
    found = float(angular_accuracy(volume, rotation, seen.weight, ky, kx)[0])
    assert found == pytest.approx(sum(reached) / 3, rel=0.03)


def test_images_that_tell_nothing_have_the_greatest_angle() -> None:
    volume = prepare_volume(made_up(diameter=90.0, size=SIZE, pixel_size=4.0, resolution=9.0, seed=3).volume)
    ky, kx = disc_pixels(SIZE, 12)
    rotations = random_rotations(2, torch.Generator().manual_seed(5)).float()
    found = angular_accuracy(volume, rotations, torch.zeros((2, len(ky))), ky, kx)
    assert found.tolist() == pytest.approx([32.0, 32.0])
