import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from cryoseg_dist.kernels.rescale import fourier_rescale, rescale_ratio, rescaled_shape
from cryoseg_dist.networks.unet import Architecture, UNet, fold_batch_norm
from cryoseg_dist.stages.segment import (
    SegmentGeometry,
    SegmentSettings,
    SegmentStage,
    array_spec,
    geometry,
    plan,
)

ARCHITECTURE = Architecture(depth=2, width=4, classes=4, padded=True, batch_norm=False)
WHERE = SegmentGeometry("micrographs", (300, 420), 2.0, 8.0, (75, 105))


def weights() -> dict[str, np.ndarray]:
    torch.manual_seed(3)
    network = fold_batch_norm(UNet(ARCHITECTURE))
    return {k: v.numpy().astype(np.float16) for k, v in network.state_dict().items()}


def stage(where: SegmentGeometry = WHERE, **settings: object) -> SegmentStage:
    return SegmentStage(SegmentSettings(**settings), ARCHITECTURE, weights(), 128.0, True, where)  # type: ignore[arg-type]


def micrograph() -> np.ndarray:
    smooth = fourier_rescale(torch.from_numpy(np.random.default_rng(0).normal(size=(75, 105))), Fraction(4))
    return smooth[:300, :420].numpy().astype(np.float16)[None]


def run(what: SegmentStage, image: np.ndarray) -> tuple[np.ndarray, dict]:
    (unit,) = plan("s", "i", [4], 4, what.where)
    assert unit.key == "segment/000004"
    result = what.compute(unit, {"image": image}, what.setup({}, "cpu"))
    assert result.arrays["probability"].shape == unit.writes["probability"].shape
    return result.arrays["probability"], dict(result.record)


def test_probabilities_do_not_depend_on_the_tile() -> None:
    image = micrograph()
    whole, record = run(stage(tile_size=None), image)
    assert whole.dtype == np.uint8
    assert np.abs(whole.sum(axis=1, dtype=int) - 255).max() <= 2
    assert whole.std() > 5
    assert len(record["area"]) == 4
    for tile in (16, 32, 64):
        tiled, _ = run(stage(tile_size=tile), image)
        # Rounding to 1/255 may tip at single precision.
        assert np.abs(tiled.astype(int) - whole).max() <= 1
        assert np.mean(tiled != whole) < 1e-3


def test_contrast_and_scale_of_the_micrograph_do_not_matter_but_its_sign_does() -> None:
    image = micrograph()
    usual, _ = run(stage(), image)
    scaled, _ = run(stage(), (3.0 * image.astype(np.float32) + 7.0))
    assert np.abs(scaled.astype(int) - usual).max() <= 4
    inverted = SegmentStage(SegmentSettings(), ARCHITECTURE, weights(), 128.0, False, WHERE)
    same, _ = run(inverted, -image)
    np.testing.assert_array_equal(same, usual)
    other, _ = run(inverted, image)
    assert np.abs(other.astype(int) - usual).max() > 20


@pytest.mark.parametrize("diameter", [60.0, 110.0, 124.0, 130.0, 131.7, 333.0, 1000.0])
def test_the_input_is_found_again_from_its_pixel_size(diameter: float) -> None:
    micrographs, level = ((1200, 1240), 1.5), ((225, 233), 8.0)
    where = geometry(diameter, 16.0, micrographs, level)
    assert where.array == ("level8" if diameter >= 16 * 8 / 1.05 else "micrographs")
    # A particle measures what the network was trained on, within the tolerance of the coarse level.
    assert diameter / where.pixel_size == pytest.approx(16.0, rel=0.06)
    ratio = rescale_ratio(where.source_pixel_size, where.pixel_size)
    assert rescaled_shape(where.source_shape, ratio) == where.extent
    assert float(where.source_pixel_size / ratio) == pytest.approx(where.pixel_size, rel=1e-9)
    assert ratio <= 1 or where.array == "micrographs"


def test_the_array_holds_one_shard_a_micrograph() -> None:
    spec = array_spec("s", 7, 4, (75, 105), 8.0)
    assert spec.shape == (7, 4, 75, 105)
    assert spec.shards == (1, 4, 75, 105)
    assert spec.attributes["pixel_size"] == 8.0


def test_it_travels_to_a_worker() -> None:
    there = pickle.loads(pickle.dumps(stage()))
    a, _ = run(there, micrograph())
    b, _ = run(stage(), micrograph())
    np.testing.assert_array_equal(a, b)
