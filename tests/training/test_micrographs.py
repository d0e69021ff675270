from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.networks.unet import Architecture, UNet
from cryoseg_dist.training.micrographs import (
    centres_of_mask,
    leave_out_unlabelled,
    micrograph_source,
    mixed_source,
    prepare_micrograph,
    read_labelled,
)
from cryoseg_dist.training.sample import CARBON, CORE, PARTICLE, PARTICLE_PX, Sample

PIXEL, DIAMETER = 2.0, 128.0  # The network's pixel is 8 A: a fourth of the sampling.
CENTRES = np.array([(200.0, 120.0), (264.0, 120.0), (400.0, 300.0)])


def discs(shape: tuple[int, int], radius: float) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.any([np.hypot(x - cx, y - cy) < radius for cx, cy in CENTRES], axis=0)


def micrograph(noise: float = 0.5) -> np.ndarray:
    """Dark discs of the particle's size on noise."""
    rng = np.random.default_rng(0)
    return (-2.0 * discs((400, 520), DIAMETER / PIXEL / 2) + noise * rng.normal(size=(400, 520))).astype(np.float32)


def test_coordinates_become_cores_at_the_networks_pixel_size() -> None:
    ready = prepare_micrograph(micrograph(), PIXEL, DIAMETER, True, centres=CENTRES)
    assert ready.image.shape == (100, 130)
    np.testing.assert_allclose(ready.centres, CENTRES[:, ::-1] / 4)
    area = 3 * np.pi * (CORE * PARTICLE_PX) ** 2
    assert np.count_nonzero(ready.labels == PARTICLE) == pytest.approx(area, rel=0.1)
    # Dark protein came out white.
    assert ready.image[ready.labels == PARTICLE].mean() > ready.image[ready.labels == 0].mean() + 1
    # Nothing is taught where the border cuts particles.
    assert not ready.valid[:7].any()
    assert ready.valid[20:80, 20:110].all()


def test_a_mask_gives_the_same_particles_touching_ones_too() -> None:
    binary = discs((400, 520), DIAMETER / PIXEL / 2).astype(np.uint8) * 255
    ready = prepare_micrograph(micrograph(), PIXEL, DIAMETER, True, mask=binary)
    found = ready.centres[np.argsort(ready.centres[:, 1])]
    np.testing.assert_allclose(found, CENTRES[:, ::-1] / 4, atol=0.6)
    classes = binary // 255
    classes[:, 480:] = 3
    classes[:40, :40] = 255
    graded = prepare_micrograph(micrograph(), PIXEL, DIAMETER, True, mask=classes)
    assert (graded.labels[:, 121:] == CARBON).all()
    assert not graded.valid[:9, :9].any()
    assert graded.valid[:, 121:].all()


def test_centres_of_touching_discs() -> None:
    y, x = np.ogrid[:60, :80]
    mask = (np.hypot(x - 25, y - 30) < 8) | (np.hypot(x - 41, y - 30) < 8)
    found = centres_of_mask(mask, 16.0)
    np.testing.assert_allclose(found[np.argsort(found[:, 1])], [(30, 25), (30, 41)], atol=0.7)


def test_bad_labels_are_named() -> None:
    image = micrograph()
    with pytest.raises(BadInputError, match="either coordinates or a mask, got neither"):
        prepare_micrograph(image, PIXEL, DIAMETER, True)
    with pytest.raises(BadInputError, match="m1: expected centres inside 520 x 400 pixels, got 1 outside"):
        prepare_micrograph(image, PIXEL, DIAMETER, True, centres=np.array([(600.0, 10.0), (10.0, 10.0)]), where="m1")
    with pytest.raises(BadInputError, match="a mask of 520 x 400"):
        prepare_micrograph(image, PIXEL, DIAMETER, True, mask=np.zeros((4, 4)))
    with pytest.raises(BadInputError, match="mask values"):
        prepare_micrograph(image, PIXEL, DIAMETER, True, mask=(np.arange(400 * 520) % 7).reshape(400, 520))


def test_patches_keep_image_and_labels_together() -> None:
    ready = prepare_micrograph(micrograph(0.1), PIXEL, DIAMETER, True, centres=CENTRES)
    source = micrograph_source([ready])
    inside, outside = [], []
    for i in range(12):
        s = source(np.random.default_rng([1, i]), 96)
        again = source(np.random.default_rng([1, i]), 96)
        assert np.array_equal(s.image, again.image)
        assert s.image.shape == s.labels.shape == s.valid.shape == (96, 96)
        assert np.array_equal(s.objects > 0, s.labels == PARTICLE)
        if (s.labels == PARTICLE).any():
            inside.append(s.image[s.labels == PARTICLE].mean())
            outside.append(s.image[s.labels == 0].mean())
    assert len(inside) > 6
    assert np.mean(inside) > np.mean(outside) + 1
    empty = prepare_micrograph(micrograph(), PIXEL, DIAMETER, True, centres=np.zeros((0, 2)))
    with pytest.raises(BadInputError, match="1 without any"):
        micrograph_source([empty])


def test_mixed_sources_by_weight() -> None:
    def constant(value: int) -> Sample:
        flat = np.full((2, 2), value)
        return Sample(flat.astype(np.float32), flat, flat.astype(np.int32), flat > 0)

    source = mixed_source([(3.0, lambda rng, size: constant(1)), (1.0, lambda rng, size: constant(2))])
    drawn = [source(np.random.default_rng(i), 2).labels[0, 0] for i in range(400)]
    assert np.mean(np.array(drawn) == 1) == pytest.approx(0.75, abs=0.06)


class _Bright(UNet):
    """Takes whatever is bright for a particle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        particle = 8.0 * (torch.nn.functional.avg_pool2d(x, 7, 1, 3) - 1.0)
        return torch.cat((torch.zeros_like(x), particle, *(torch.full_like(x, -20.0),) * 2), dim=1)


def test_unlabelled_particles_are_not_taught_as_background() -> None:
    ready = prepare_micrograph(micrograph(0.3), PIXEL, DIAMETER, True, centres=CENTRES[:2])
    changed = leave_out_unlabelled(ready, _Bright(Architecture(depth=2, width=2, padded=True)))
    cy, cx = (CENTRES[2, ::-1] / 4).astype(int)
    assert ready.valid[cy, cx]
    assert not changed.valid[cy, cx]
    assert changed.valid[ready.labels == PARTICLE].all()
    # Nothing else is lost: one disc of the particle's size.
    assert np.count_nonzero(ready.valid & ~changed.valid) == pytest.approx(np.pi * 64, rel=0.15)


def test_reading_from_files(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "l").mkdir()
    for name in ("a.01", "b", "c"):
        with mrcfile.new(tmp_path / "m" / f"{name}.mrc") as handle:
            handle.set_data(micrograph())
    pd.DataFrame({"x_px": CENTRES[:, 0], "y_px": CENTRES[:, 1]}).to_csv(tmp_path / "l" / "a.01.csv", index=False)
    with mrcfile.new(tmp_path / "l" / "b.mrc") as handle:
        handle.set_data(discs((400, 520), 32).astype(np.int8))
    paths = sorted((tmp_path / "m").iterdir())
    read = read_labelled(paths, tmp_path / "l", PIXEL, DIAMETER, True)
    assert [len(m.centres) for m in read] == [3, 3]
    star = tmp_path / "picks.star"
    star.write_text(
        "data_\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\n"
        "there/c.mrc 200 120\nthere/c.mrc 264 120\n"
    )
    (only,) = read_labelled(paths, star, PIXEL, DIAMETER, True)
    np.testing.assert_allclose(only.centres, CENTRES[:2, ::-1] / 4)
    with pytest.raises(BadInputError, match="none that match"):
        read_labelled(paths[:1], star, PIXEL, DIAMETER, True)
