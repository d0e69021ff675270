"""The model that ships with the package."""

from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoseg_dist.formats.coordinates import read_coordinates
from cryoseg_dist.formats.images import read_images
from cryoseg_dist.kernels.evaluation import match_centres
from cryoseg_dist.networks.unet import UNet
from cryoseg_dist.schema.work import ImageFile, Region, Unit
from cryoseg_dist.stages.pick import PickSettings, PickStage, choose_threshold, most_picks
from cryoseg_dist.stages.segment import SegmentSettings, SegmentStage, geometry, plan
from cryoseg_dist.training.evaluate import detection
from cryoseg_dist.training.sample import CLASSES, PARTICLE_PX
from cryoseg_dist.training.synthetic import synthetic_sample
from cryoseg_dist.training.train import load_model

MODEL = Path(str(files("cryoseg_dist.networks") / "weights" / "default.safetensors"))


@pytest.fixture(scope="module")
def network() -> UNet:
    return load_model(MODEL)[0].to(memory_format=torch.channels_last)


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert MODEL.stat().st_size <= 16 * 2**20
    network, metadata = load_model(MODEL)
    assert metadata["classes"] == list(CLASSES)
    assert metadata["particle_px"] == PARTICLE_PX
    assert "--simulated" in metadata["command"]
    assert metadata["settings"]["seed"] == 0
    assert network.architecture.padded
    card = (MODEL.parent / "MODEL_CARD.md").read_text()
    assert metadata["command"] in card


@pytest.mark.parametrize(("snr", "recall", "precision"), [(0.3, 0.75, 0.7), (3.0, 0.9, 0.85)])
def test_it_finds_particles_it_has_never_seen(network: UNet, snr: float, recall: float, precision: float) -> None:
    score = detection(network, partial(synthetic_sample, snr=snr), patches=10, size=192, seed=7)
    assert score.n_truth > 200
    assert score.recall > recall
    assert score.precision > precision


def test_pure_noise_has_almost_no_particles(network: UNet) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 256, 256)).astype(np.float32))
    with torch.inference_mode():
        probability = network(noise).softmax(dim=1)[0, 1]
    assert float((probability > 0.5).float().mean()) < 0.01


@pytest.mark.parametrize("name", ["May08_03.15.02", "May08_07.30.46"])
def test_it_picks_real_apoferritin_untrained(shared_data: Path, network: UNet, name: str) -> None:
    folder = shared_data / "apoferritin_empiar10146"
    image = read_images(ImageFile(str(folder / "micrographs" / f"{name}.mrc")))
    truth = read_coordinates(folder / "coords" / f"{name}.csv")
    diameter, pixel_size = 130.0, 1.5
    shape = (image.shape[1], image.shape[2])
    # No coarse level here: the full micrograph is rescaled.
    where = geometry(diameter, PARTICLE_PX, (shape, pixel_size), (shape, 1e9))
    weights = {k: v.numpy() for k, v in network.state_dict().items()}
    stage = SegmentStage(SegmentSettings(), network.architecture, weights, diameter, True, where)
    (unit,) = plan("s", "i", [0], len(CLASSES), where)
    segmented = stage.compute(unit, {"image": image}, stage.setup({}, "cpu"))
    settings = PickSettings()
    n = most_picks(where.extent, where.pixel_size, diameter, settings)
    picked = PickStage(settings, diameter / where.pixel_size, where.pixel_size / pixel_size).compute(
        Unit("pick/0", writes={"picks": Region("p", (0, 0, 0), (1, n, 3))}, parameters={"index": 0}),
        {"probability": segmented.arrays["probability"]},
        None,
    )
    threshold = choose_threshold([picked.record], settings)
    picks = picked.arrays["picks"][0]
    score = match_centres(picks[picks[:, 2] >= threshold][:, :2], truth, 0.5 * diameter / pixel_size)
    assert score.recall > 0.75
    assert score.precision > 0.9
