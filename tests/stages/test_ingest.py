import numpy as np
import pytest

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.schema.work import ImageFile
from cryoseg_dist.stages.ingest import (
    IngestSettings,
    IngestStage,
    MicrographHeader,
    array_specs,
    even_chunk,
    majority_shape,
    plan,
    replace_outliers,
)

SHAPE = (120, 164)
PIXEL = 2.0
SETTINGS = IngestSettings()


def one_unit(header: MicrographHeader, settings: IngestSettings = SETTINGS):
    return plan("ingest-x", [header], SHAPE, PIXEL, settings)[0]


def ingest(image: np.ndarray, settings: IngestSettings = SETTINGS):
    unit = one_unit(MicrographHeader("a.mrc", (1, *SHAPE), PIXEL), settings)
    return unit, IngestStage(settings, PIXEL, SHAPE).compute(unit, {"image": image[None]}, None)


def noisy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1000.0, 40.0, SHAPE)


def test_original_grey_values_come_back_from_the_record() -> None:
    image = np.round(noisy()).astype(np.uint16)
    unit, result = ingest(image)
    stored = result.arrays["micrograph"][0].astype(float)
    back = stored * result.record["scale"] + result.record["offset"]
    assert stored.dtype == float
    assert result.arrays["micrograph"].dtype == np.float16
    np.testing.assert_allclose(back, image, atol=0.1)
    assert np.std(stored) == pytest.approx(1.0, abs=0.03)
    for name, region in unit.writes.items():
        assert result.arrays[name].shape == region.shape


def test_level_samples_the_micrograph_where_it_says() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = noisy() + 500 * np.exp(-((y - 60) ** 2 + (x - 88) ** 2) / (2 * 8.0**2))
    _, result = ingest(image)
    level = result.arrays["level"][0]
    step = result.record["level_pixel_size"] / PIXEL
    assert step == 4.0
    peak = np.unravel_index(np.argmax(level), level.shape)
    assert tuple(np.array(peak) * step) == (60, 88)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.full(SHAPE, 7, np.int16), "constant 7"),
        (np.where(np.arange(SHAPE[1]) == 5, np.nan, noisy()), "120 NaN"),
        (np.where(np.arange(SHAPE[1]) == 5, np.inf, noisy()), "120 NaN or infinite"),
        (np.where(np.arange(SHAPE[0])[:, None] < 40, noisy(), 0.0), "67%"),
    ],
)
def test_unusable_pixels_are_set_aside_with_their_reason(image: np.ndarray, word: str) -> None:
    with pytest.raises(BadInputError, match=word) as caught:
        ingest(image)
    assert "a.mrc" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (MicrographHeader("b.mrc", None, None, "the header is damaged"), "the header is damaged"),
        (MicrographHeader("b.mrc", (8, *SHAPE), PIXEL), "stack of 8"),
        (MicrographHeader("b.mrc", (1, 120, 120), PIXEL), "120 x 120"),
        (MicrographHeader("b.mrc", (1, *SHAPE), 3.1), "3.1 in the header"),
    ],
)
def test_a_header_that_rules_a_file_out_is_not_read(header: MicrographHeader, word: str) -> None:
    unit = one_unit(header)
    assert unit.reads == {}
    with pytest.raises(BadInputError, match=word):
        IngestStage(SETTINGS, PIXEL, SHAPE).compute(unit, {}, None)


@pytest.mark.parametrize("pixel_size", [None, 0.0, 1.0, float("nan"), 2.05])
def test_pixel_sizes_that_say_nothing_or_agree_pass(pixel_size: float | None) -> None:
    assert one_unit(MicrographHeader("a.mrc", (1, *SHAPE), pixel_size)).reads == {"image": ImageFile("a.mrc")}


def test_a_wrong_pixel_size_passes_when_the_check_is_off() -> None:
    assert one_unit(MicrographHeader("a.mrc", (1, *SHAPE), 3.1), IngestSettings(check_pixel_size=False)).reads


def test_majority_decides_the_size() -> None:
    headers = [MicrographHeader(str(i), (1, *s)) for i, s in enumerate([(9, 9), (7, 8), (7, 8)])]
    assert majority_shape([*headers, MicrographHeader("x")]) == (7, 8)
    with pytest.raises(BadInputError, match="no such thing"):
        majority_shape([MicrographHeader("x", fault="no such thing")])


def test_units_own_whole_disjoint_shards() -> None:
    headers = [MicrographHeader(f"{i}.mrc", (1, 1200, 1240), 1.5) for i in range(3)]
    specs = {s.name: s for s in array_specs("r", 3, (1200, 1240), 1.5, SETTINGS)}
    seen = set()
    for unit in plan("r", headers, (1200, 1240), 1.5, SETTINGS):
        for region in unit.writes.values():
            spec = specs[region.array]
            assert region.stop[1:] == spec.shape[1:]
            assert region.start[1:] == (0, 0)
            assert all(
                s % c == 0 and s >= n for s, c, n in zip(spec.shards[1:], spec.chunks[1:], spec.shape[1:], strict=True)
            )
            seen.add((region.array, region.start[0]))
    assert len(seen) == 6
    assert specs["r/level8"].attributes["pixel_size"] == 8.0


@pytest.mark.parametrize("extent", [1, 511, 512, 513, 1240, 4096, 5760, 11520])
def test_chunks_cover_with_little_padding(extent: int) -> None:
    chunk, shard = even_chunk(extent)
    assert chunk <= 512
    assert extent <= shard < extent + shard // chunk


def test_hot_pixels_go_and_the_image_given_stays() -> None:
    image = np.random.default_rng(0).normal(size=(50, 60)).astype(np.float32)
    image[10, 12] = 900
    before = image.copy()
    out, n = replace_outliers(image, 20.0)
    assert n == 1
    assert abs(out[10, 12]) < 1.5
    assert np.array_equal(image, before)
    rest = np.ones(image.shape, bool)
    rest[10, 12] = False
    assert np.array_equal(out[rest], image[rest])


def test_many_outliers_are_clipped() -> None:
    image = np.zeros((100, 100), np.float32)
    image[:20] = 50
    out, n = replace_outliers(image, 20.0)
    assert n == 2000
    assert out.max() == 20
