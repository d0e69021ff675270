from pathlib import Path

import numpy as np
import pytest
import torch

from cryoseg_dist.formats.mrc import read_mrc
from cryoseg_dist.kernels.fourier import shift, to_fourier, to_real
from cryoseg_dist.schema.work import UnitResult
from cryoseg_dist.stages.extract import (
    CHUNK,
    SHARD,
    ExtractSettings,
    ExtractStage,
    array_specs,
    plan,
    residual_origins,
    shard_size,
    sort_particles,
    usable_centres,
    window_geometry,
)

PIXEL = 2.0
SHAPE = (200, 240)


def micrograph(x: np.ndarray, y: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    """Dark particles on a slanted background."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    image = 100.0 + 0.02 * rows + noise * np.random.default_rng(seed).standard_normal(SHAPE)
    for cx, cy in zip(x, y, strict=True):
        image -= 8.0 * np.exp(-((rows - cy) ** 2 + (columns - cx) ** 2) / (2 * 4.0**2))
    return image[None].astype(np.float32)


def extract(
    inputs: dict[int, np.ndarray],
    index: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    diameter: float = 40.0,
    **settings: object,
) -> tuple[UnitResult, ExtractSettings, float]:
    wanted = ExtractSettings(**settings)  # type: ignore[arg-type]
    where = window_geometry(wanted, PIXEL, diameter)
    (unit,) = plan("e", "i/micrographs", SHAPE, index, x, y, where)
    stage = ExtractStage(wanted, where, protein_dark=True)
    result = stage.compute(unit, {f"micrograph/{m}": image for m, image in inputs.items()}, None)
    assert {k: v.shape for k, v in result.arrays.items()} == {k: r.shape for k, r in unit.writes.items()}
    return result, wanted, where.pixel_size


def centroids(images: torch.Tensor) -> torch.Tensor:
    """x, y of the white particle about the centre, in pixels."""
    size = images.shape[-1]
    axis = torch.arange(size) - size // 2
    weight = images.clamp(min=0) * (axis[:, None] ** 2 + axis[None, :] ** 2 < (0.4 * size) ** 2)
    total = weight.sum((1, 2))
    return torch.stack(((weight.sum(1) * axis).sum(1) / total, (weight.sum(2) * axis).sum(1) / total), dim=1)


@pytest.mark.parametrize("stored", [2.0, 3.0])
def test_particles_are_white_and_centred_to_a_fraction_of_a_pixel(stored: float) -> None:
    x, y = np.array([60.3, 120.5, 180.8]), np.array([50.7, 101.2, 150.49])
    result, _, pixel = extract(
        {4: micrograph(x, y, 0.0)}, np.full(3, 4), x, y, box_size=48, pixel_size=stored, dust=None
    )
    images = torch.from_numpy(result.arrays["images"].astype(np.float32))
    size = images.shape[-1]
    assert pixel == pytest.approx(stored)
    assert (images[:, size // 2, size // 2] > 3).all()
    origins = np.stack(residual_origins(x, y, PIXEL), axis=1)
    assert np.abs(origins).max() <= 0.5 * PIXEL
    centred = to_real(shift(to_fourier(images), torch.from_numpy(origins / pixel).float(), size), size)
    assert centroids(centred).abs().max() * pixel < 0.1
    assert centroids(images).abs().max() * pixel > 0.5


def test_background_is_normalised_after_resampling() -> None:
    x, y = np.array([60.0, 150.0]), np.array([70.0, 100.0])
    result, _, _ = extract(
        {0: micrograph(x, y, 3.0)}, np.zeros(2, int), x, y, box_size=80, pixel_size=4.0, background_radius=40.0
    )
    images = result.arrays["images"].astype(np.float64)
    rows, columns = np.mgrid[:40, :40] - 20
    ground = images[:, np.hypot(rows, columns) > 10.0]
    np.testing.assert_allclose(ground.mean(axis=1), 0.0, atol=2e-3)
    np.testing.assert_allclose(ground.std(axis=1, ddof=1), 1.0, atol=2e-3)


def test_windows_come_from_their_own_micrographs() -> None:
    a, b = (
        micrograph(np.array([100.0]), np.array([90.0]), 1.0, 1),
        micrograph(np.array([100.0]), np.array([90.0]), 1.0, 2),
    )
    at = np.array([100.0]), np.array([90.0])
    both, _, _ = extract({3: a, 8: b}, np.array([3, 8]), np.repeat(at[0], 2), np.repeat(at[1], 2))
    for row, (m, image) in enumerate(((3, a), (8, b))):
        alone, _, _ = extract({m: image}, np.array([m]), *at)
        np.testing.assert_array_equal(both.arrays["images"][row], alone.arrays["images"][0])


def test_only_centres_on_the_micrograph_are_used_and_edges_are_filled() -> None:
    x, y = np.array([-0.6, -0.4, 239.4, 239.6, 50.0]), np.array([20.0, 20.0, 199.4, 20.0, 200.0])
    assert usable_centres(x, y, SHAPE).tolist() == [False, True, True, False, False]
    result, _, _ = extract({0: micrograph(x[1:3], y[1:3], 1.0)}, np.zeros(2, int), x[1:3], y[1:3])
    assert np.isfinite(result.arrays["images"]).all()
    assert np.abs(result.arrays["images"]).max() > 0


def test_a_window_of_almost_no_contrast_stays_finite() -> None:
    image = np.full((1, *SHAPE), 5.0, dtype=np.float32)
    image[0, 100, 100] = 6.0
    image[0, 80, 80] = 5.0 + 1e-6
    result, _, _ = extract({0: image}, np.zeros(1, int), np.array([100.0]), np.array([100.0]), dust=None)
    assert np.isfinite(result.arrays["images"]).all()
    assert np.isfinite(result.arrays["statistics"]).all()


def test_sorting_drops_junk_and_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    statistics = rng.standard_normal((300, 6)).astype(np.float32)
    statistics[10, 2], statistics[20, 4], statistics[30, 0] = 40.0, -30.0, np.nan
    keep = sort_particles(statistics, ExtractSettings(outlier=7.0))
    assert np.flatnonzero(~keep).tolist() == [10, 20, 30]
    assert not sort_particles(np.full((3, 6), np.nan, np.float32), ExtractSettings()).any()


@pytest.mark.parametrize(
    ("pixel", "diameter", "raw", "stored"), [(1.5, 130.0, 144, 72), (1.77, 180.0, 160, 64), (3.54, 180.0, 80, 64)]
)
def test_automatic_sizes(pixel: float, diameter: float, raw: int, stored: int) -> None:
    where = window_geometry(ExtractSettings(), pixel, diameter)
    assert (where.raw, where.size) == (raw, stored)
    assert where.raw * pixel >= 1.5 * diameter
    assert where.pixel_size == pytest.approx(raw * pixel / stored)
    assert where.background_radius < 0.5 * where.raw * pixel


def test_units_write_whole_shards_and_cover_every_particle() -> None:
    index = np.sort(np.random.default_rng(0).integers(0, 40, 2500))
    x = y = np.full(2500, 100.0)
    where = window_geometry(ExtractSettings(), PIXEL, 40.0)
    specs = array_specs("e", 2500, where)
    units = plan("e", "i/micrographs", SHAPE, index, x, y, where)
    assert [u.writes["images"].start[0] for u in units] == [0, 1024, 2048]
    assert units[-1].writes["images"].stop[0] == specs[0].shape[0] == 2500
    for unit in units:
        assert set(unit.reads) == {f"micrograph/{m}" for m in np.unique(unit.parameters["index"])}
        assert unit.writes["images"].start[0] % specs[0].shards[0] == 0


def test_shards_shrink_where_particles_are_rare() -> None:
    dense, rare = np.repeat(np.arange(20), 100), np.repeat(np.arange(600), 2)
    shape = (4096, 4096)
    assert shard_size(dense, shape) == SHARD
    small = shard_size(rare, shape)
    assert small == 32
    assert max(len(np.unique(rare[a : a + small])) for a in range(0, len(rare), small)) <= 16
    assert shard_size(np.arange(5000), shape, largest_read=1) == CHUNK
    where = window_geometry(ExtractSettings(), PIXEL, 40.0)
    assert array_specs("e", len(rare), where, small)[0].shards[0] == 32
    assert len(plan("e", "m", shape, rare, rare, rare, where, small)) == 38


def test_windows_equal_those_of_relion(shared_data: Path) -> None:
    """A real micrograph, whole windows and ones beyond its corner and edges.

    Pixels of ``relion_preprocess --extract --extract_size 128 --norm --bg_radius 44 --invert_contrast``, RELION 3.1.3,
    of the micrograph as float32 (that version takes 16-bit counts for signed ones); it wrote 4 digits.
    """
    path = shared_data / "apoferritin_empiar10146" / "micrographs" / "May08_03.05.02.mrc"
    image = read_mrc(path)[0].astype(np.float32)
    expected = {
        (406, 31): (-0.9412, -0.6427, -0.8934, 0.0893, -1.4126),
        (916, 346): (-0.0433, -0.1206, 0.0789, 1.4081, 0.1616),
        (3, 5): (0.6729, -2.0779, 1.4322, 2.1375, 0.7815),
        (1236, 1190): (0.6005, 0.2609, -0.811, -0.6313, 1.2655),
        (2, 600): (1.2336, -0.1535, 0.5882, -0.6193, -1.5077),
    }
    x, y = (np.array(v, dtype=float) for v in zip(*expected, strict=True))
    settings = ExtractSettings(box_size=128, pixel_size=1.5, background_radius=66.0, dust=None)
    where = window_geometry(settings, 1.5, 130.0)
    (unit,) = plan("e", "m", image.shape, np.zeros(5, int), x, y, where)
    images = ExtractStage(settings, where, True).compute(unit, {"micrograph/0": image[None]}, None).arrays["images"]
    found = images[:, (64, 60, 10, 120, 0), (64, 70, 100, 5, 127)]
    # Half precision rounds by up to 0.001 at 2.
    np.testing.assert_allclose(found, list(expected.values()), atol=2e-3)
