import numpy as np
import pytest

from cryoseg_dist.networks.augment import Deformation, random_deformation, random_grey_values, warp_image, warp_labels


def grid(size: int) -> Deformation:
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return Deformation(rows.astype(np.float32), columns.astype(np.float32))


def test_elastic_displacements_have_the_asked_spread_and_are_smooth() -> None:
    plain, bent = [], []
    for i in range(300):
        # The same draws precede the elastic ones, so that the difference is the elastic part.
        a = random_deformation(33, np.random.default_rng(i), elastic_px=0.0, rotate=False)
        b = random_deformation(33, np.random.default_rng(i), elastic_px=10.0, rotate=False)
        plain.append(a.rows)
        bent.append(b.rows)
    moved = np.array(bent) - np.array(plain)
    # The nine grid nodes are the corners, the middles of the sides and the centre.
    at_nodes = moved[:, ::16, ::16]
    assert at_nodes.std() == pytest.approx(10.0, rel=0.06)
    assert abs(at_nodes.mean()) < 0.8
    assert np.abs(np.diff(moved, n=2, axis=1)).max() < 1.0


def test_rotation_flip_and_scale_are_a_similarity_about_the_centre() -> None:
    signs = set()
    for i in range(20):
        d = random_deformation(21, np.random.default_rng(i), elastic_px=0.0, scale=0.2)
        assert (d.rows[10, 10], d.columns[10, 10]) == pytest.approx((10.0, 10.0))
        jacobian = np.array(
            [
                [d.rows[11, 10] - d.rows[10, 10], d.rows[10, 11] - d.rows[10, 10]],
                [d.columns[11, 10] - d.columns[10, 10], d.columns[10, 11] - d.columns[10, 10]],
            ]
        )
        scale = np.sqrt(abs(np.linalg.det(jacobian)))
        assert 0.8 <= scale <= 1.2
        np.testing.assert_allclose(jacobian @ jacobian.T, scale**2 * np.eye(2), atol=1e-4)
        signs.add(float(np.sign(np.linalg.det(jacobian))))
    assert signs == {-1.0, 1.0}


def test_image_and_labels_move_together() -> None:
    y, x = np.mgrid[:64, :64]
    labels = (np.hypot(y - 24, x - 40) < 12).astype(np.int64)
    image = labels.astype(np.float32)
    for i in range(10):
        d = random_deformation(64, np.random.default_rng(i), elastic_px=4.0, shift_px=5.0)
        warped, moved = warp_image(image, d), warp_labels(labels, d)
        assert moved.dtype == np.int64
        assert set(np.unique(moved).tolist()) <= {0, 1}
        np.testing.assert_array_equal(
            (warped > 0.5)[np.abs(warped - 0.5) > 0.45], (moved == 1)[np.abs(warped - 0.5) > 0.45]
        )


def test_no_deformation_changes_nothing_and_the_outside_is_mirrored() -> None:
    image = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    same = grid(16)
    np.testing.assert_allclose(warp_image(image, same), image, atol=1e-6)
    beyond = Deformation(same.rows - 3, same.columns)
    np.testing.assert_allclose(warp_image(image, beyond)[:3], image[3:0:-1], atol=1e-6)


def test_grey_values_change_but_the_picture_stays() -> None:
    _, x = np.mgrid[:64, :64]
    image = np.sin(x / 5.0).astype(np.float32) * 2
    changed = [random_grey_values(image, np.random.default_rng(i)) for i in range(20)]
    assert all(c.dtype == np.float32 and c.shape == image.shape for c in changed)
    correlations = [np.corrcoef(c.ravel(), image.ravel())[0, 1] for c in changed]
    assert min(correlations) > 0.9
    assert len({round(float(c.std()), 3) for c in changed}) > 15
