import numpy as np
import pytest
import torch

from cryoseg_dist.kernels.fourier import to_real
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.training.molecules import BOX, paste_views, random_molecule
from cryoseg_dist.training.sample import CARBON, CONTAMINATION, CORE, PARTICLE, PARTICLE_PX, draw_cores
from cryoseg_dist.training.synthetic import place_particles, synthetic_sample


def test_the_generator_determines_the_patch() -> None:
    a, b = (synthetic_sample(np.random.default_rng([3, 1]), 64) for _ in range(2))
    other = synthetic_sample(np.random.default_rng([3, 2]), 64)
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.labels, b.labels)
    assert not np.array_equal(a.image, other.image)


def test_patches_hold_every_class_and_sound_values() -> None:
    samples = [synthetic_sample(np.random.default_rng([0, i]), 96) for i in range(50)]
    seen = set()
    for s in samples:
        assert s.image.shape == s.labels.shape == s.objects.shape == (96, 96)
        assert s.image.dtype == np.float32
        assert np.isfinite(s.image).all()
        assert np.abs(s.image).max() <= 6.0
        assert np.array_equal(s.objects > 0, s.labels == PARTICLE)
        seen |= set(np.unique(s.labels).tolist())
    assert seen == {0, PARTICLE, CONTAMINATION, CARBON}


def test_molecules_are_centred_and_as_large_as_said() -> None:
    rng = np.random.default_rng(5)
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    for _ in range(40):
        density = random_molecule(rng)
        centre = [float((density * a).sum() / density.sum()) for a in (z, y, x)]
        assert np.abs(centre).max() < 1.0
        reach = 2 * np.sqrt(x**2 + y**2 + z**2)[density > 0.2 * density.max()].max()
        assert 0.4 * PARTICLE_PX < reach < 1.5 * PARTICLE_PX


def test_a_pasted_view_lies_where_it_was_put() -> None:
    rng = np.random.default_rng(1)
    ball = np.zeros((BOX,) * 3, dtype=np.float32)
    ball[np.hypot(np.hypot(*np.ogrid[-12:12, -12:12])[None], np.arange(-12, 12)[:, None, None]) < 6] = 1
    at = np.array([[30.3, 41.8]])
    image = paste_views(ball, at, np.array([2.0]), 80, rng)
    y, x = np.mgrid[:80, :80]
    found = [(image * a).sum() / image.sum() for a in (y, x)]
    np.testing.assert_allclose(found, at[0], atol=0.05)
    view = to_real(project(prepare_volume(torch.from_numpy(ball)), torch.eye(3)[None], BOX), BOX)
    assert image.sum() == pytest.approx(2 * float(view.sum()), rel=0.02)
    # Half a particle at the border is cut, not wrapped.
    border = paste_views(ball, np.array([[0.0, 40.0]]), np.ones(1), 80, rng)
    assert np.abs(border[60:]).max() < 0.02 * border.max()


def test_particles_keep_their_distance_but_touch() -> None:
    nearest = []
    for i in range(20):
        centres = place_particles(np.random.default_rng(i), 160)
        if len(centres) > 1:
            d = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
            nearest.append(np.sort(d, axis=1)[:, 1])
    every = np.concatenate(nearest)
    assert every.min() >= 0.72 * PARTICLE_PX
    assert np.mean(every < 1.1 * PARTICLE_PX) > 0.2


def test_cores_of_touching_particles_stay_apart() -> None:
    blank = np.zeros((40, 60), dtype=np.int64)
    labels, objects = draw_cores(np.array([(20.0, 20.0), (20.0, 20.0 + PARTICLE_PX), (-3.0, 30.0)]), blank, blank)
    assert set(np.unique(objects).tolist()) == {0, 1, 2, 3}
    area = np.pi * (CORE * PARTICLE_PX) ** 2
    assert np.count_nonzero(objects == 1) == pytest.approx(area, rel=0.1)
    assert labels[20, 28] == 0
    assert not blank.any()
