import numpy as np
import pytest

from cryoseg_dist.kernels.evaluation import match_centres
from cryoseg_dist.stages.pick import PickSettings, PickStage, array_spec, choose_threshold, most_picks, plan

DIAMETER_PX, SCALE = 16.0, 5.25
SHAPE = (3, 4, 120, 160)


def probability(centres: np.ndarray, heights: np.ndarray, forbidden: tuple[slice, slice] | None = None) -> np.ndarray:
    """Painted cores (x, y in pixels of the map) of given probability, and an area of carbon."""
    y, x = np.mgrid[: SHAPE[2], : SHAPE[3]]
    out = np.zeros((1, *SHAPE[1:]), dtype=np.float32)
    for (cx, cy), height in zip(centres, heights, strict=True):
        core = np.clip(0.33 * DIAMETER_PX + 0.5 - np.hypot(x - cx, y - cy), 0, 1) * height
        out[0, 1] = np.maximum(out[0, 1], core)
    if forbidden is not None:
        out[0, 3][forbidden] = 1.0 - out[0, 1][forbidden]
    out[0, 0] = 1.0 - out[0, 1:].sum(axis=0)
    return np.rint(255 * out).astype(np.uint8)


def run(values: np.ndarray, **settings: float) -> tuple[np.ndarray, dict]:
    wanted = PickSettings(**settings)  # type: ignore[arg-type]
    n = most_picks((SHAPE[2], SHAPE[3]), 8.0, 8.0 * DIAMETER_PX, wanted)
    (unit,) = plan("p", "s/probability", SHAPE, [2], n)
    result = PickStage(wanted, DIAMETER_PX, SCALE).compute(unit, {"probability": values}, None)
    picks = result.arrays["picks"]
    assert picks.shape == unit.writes["picks"].shape
    assert picks.dtype == np.float32
    found = picks[0][np.isfinite(picks[0, :, 2])]
    assert np.isnan(picks[0, len(found) :]).all()
    return found, dict(result.record)


def test_centres_come_in_pixels_of_the_micrograph_best_first() -> None:
    truth = np.array([(40.3, 30.6), (56.4, 30.6), (100.0, 80.5)])
    found, record = run(probability(truth, np.array([0.5, 0.7, 0.9])))
    np.testing.assert_allclose(found[:, :2], truth[::-1] * SCALE, atol=0.15 * SCALE)
    assert (np.diff(found[:, 2]) < 0).all()
    assert (record["n_candidates"], record["n_refused"], record["n_border"]) == (3, 0, 0)
    assert record["scores"] == pytest.approx(found[:, 2], abs=6e-4)


def test_nothing_on_carbon_or_cut_by_the_border() -> None:
    truth = np.array([(30.0, 30.0), (110.0, 60.0), (30.0, 3.0)])
    found, record = run(probability(truth, np.full(3, 0.9), (slice(None), slice(80, None))))
    np.testing.assert_allclose(found[:, :2], truth[:1] * SCALE, atol=0.1 * SCALE)
    assert (record["n_refused"], record["n_border"]) == (1, 1)


def test_a_crowded_field_is_found_whole() -> None:
    rng = np.random.default_rng(0)
    grid = np.array([(x, y) for y in np.arange(10, 112, 16.0) for x in np.arange(10, 152, 16.0)])
    truth = grid + rng.uniform(-1.0, 1.0, grid.shape)
    found, _ = run(probability(truth, np.full(len(truth), 0.9)))
    matched = match_centres(found[:, :2], truth * SCALE, 0.25 * DIAMETER_PX * SCALE)
    assert matched.recall == matched.precision == 1.0


def test_an_empty_micrograph_gives_nothing() -> None:
    found, record = run(probability(np.zeros((0, 2)), np.zeros(0)))
    assert len(found) == 0
    assert record["scores"] == []


def test_the_array_holds_the_densest_packing() -> None:
    settings = PickSettings()
    distance = settings.min_distance * DIAMETER_PX
    rows = np.arange(0, 120, distance * np.sqrt(3) / 2)
    densest = sum(len(np.arange(0, 160, distance)) for _ in rows)
    n = most_picks((120, 160), 8.0, 8.0 * DIAMETER_PX, settings)
    assert n >= densest
    spec = array_spec("p", 5, n)
    assert spec.shards == (1, n, 3)


def test_the_threshold_comes_from_all_micrographs_unless_given() -> None:
    sure, doubtful = {"scores": [0.9] * 40}, {"scores": [0.25] * 60}
    assert choose_threshold([sure], PickSettings()) == PickSettings().highest_threshold
    assert 0.2 <= choose_threshold([doubtful], PickSettings()) <= 0.25
    assert choose_threshold([sure, doubtful], PickSettings()) == PickSettings().highest_threshold
    assert choose_threshold([sure, doubtful], PickSettings(threshold=0.77)) == 0.77
    assert choose_threshold([], PickSettings()) == PickSettings().lowest_score
