import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.store.weights import read_weights
from cryoseg_dist.training.sample import CLASSES, PARTICLE, Sample, draw_cores
from cryoseg_dist.training.train import TrainSettings, batch_of, load_model, train

TINY = TrainSettings(iterations=8, batch=2, patch=32, depth=2, width=4, checkpoint_every=3, half_precision=False)


def easy(rng: np.random.Generator, size: int) -> Sample:
    """Bright cores on noise."""
    blank = np.zeros((size, size), dtype=np.int64)
    centres = rng.uniform(6, size - 6, (2, 2))
    labels, objects = draw_cores(centres, blank, blank.astype(np.int32))
    image = 2.0 * labels + 0.5 * rng.normal(size=(size, size))
    return Sample(image.astype(np.float32), labels, objects, np.ones((size, size), dtype=bool))


class StoppedError(Exception):
    pass


def stop_at(iteration: int):
    def on_progress(done: int, total: int, figures: object) -> None:
        if done == iteration:
            raise StoppedError

    return on_progress


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in lines] == list(range(len(lines)))
    return [entry["loss"] for entry in lines]


def test_a_resumed_training_equals_one_that_never_stopped(tmp_path: Path) -> None:
    whole = train(TINY, easy, tmp_path / "whole")
    for stop in (5, 7):  # Twice; each time up to two batches after a checkpoint are lost.
        with pytest.raises(StoppedError):
            train(TINY, easy, tmp_path / "parts", on_progress=stop_at(stop))
    parts = train(TINY, easy, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert parts.loss == whole.loss
    a, b = (read_weights(result.model)[0] for result in (whole, parts))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    # Done is done: a further call computes nothing and gives the same.
    called = []
    again = train(TINY, easy, tmp_path / "whole", on_progress=lambda *figures: called.append(figures))
    assert not called
    assert again.loss == whole.loss


def test_it_learns_an_easy_problem_and_the_model_says_so(tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"iterations": 120, "patch": 48, "learning_rate": 5e-3, "average_decay": 0.9})
    result = train(settings, easy, tmp_path, metadata={"command": "a test"})
    curve = losses(tmp_path)
    assert np.mean(curve[-10:]) < 0.4 * np.mean(curve[:10])
    assert result.metrics["dice_particle"] > 0.85
    network, metadata = load_model(result.model)
    assert metadata["classes"] == list(CLASSES)
    assert metadata["command"] == "a test"
    fresh = easy(np.random.default_rng(99), 64)
    with torch.inference_mode():
        found = network(torch.from_numpy(fresh.image)[None, None]).argmax(dim=1)[0].numpy()
    truth = fresh.labels == PARTICLE
    assert 2 * np.count_nonzero((found == PARTICLE) & truth) / (np.count_nonzero(found) + truth.sum()) > 0.85


def test_bfloat16_learns_too(tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"iterations": 40, "half_precision": True, "learning_rate": 5e-3})
    train(settings, easy, tmp_path)
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < 0.8 * np.mean(curve[:5])


def test_valid_convolutions_learn_from_the_middle_of_larger_patches(tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"iterations": 60, "padded": False, "patch": 32, "learning_rate": 5e-3})
    train(settings, easy, tmp_path)
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])
    images, labels, weights = batch_of(easy, settings, 0, margin=20)
    assert images.shape[-1] == 72
    assert labels.shape == weights.shape == (2, 32, 32)
    # Labels lie at the middle of the images they belong to.
    inner = images[:, 0, 20:52, 20:52]
    assert inner[labels == 1].mean() > inner[labels == 0].mean() + 1.5
    with pytest.raises(BadInputError, match="Take 36"):
        train(settings.model_copy(update={"patch": 34}), easy, tmp_path / "odd")


def test_fine_tuning_starts_from_a_model(tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"iterations": 80, "learning_rate": 5e-3, "average_decay": 0.9})
    base = train(settings, easy, tmp_path / "base")
    gentle = settings.model_copy(update={"iterations": 5, "learning_rate": 1e-4, "width": 16})
    tuned = train(gentle, easy, tmp_path / "tuned", start_from=base.model)
    # The width is that of the model; the start is as good as the model was.
    assert load_model(tuned.model)[0].architecture.width == 4
    assert losses(tmp_path / "tuned")[0] < 0.6 * losses(tmp_path / "base")[0]


def test_other_settings_and_bad_files_are_refused(tmp_path: Path) -> None:
    train(TINY.model_copy(update={"iterations": 3}), easy, tmp_path)
    with pytest.raises(BadInputError, match="a training with the same settings"):
        train(TINY.model_copy(update={"iterations": 3, "seed": 1}), easy, tmp_path)
    with pytest.raises(BadInputError, match="a training with the same settings"):
        train(TINY.model_copy(update={"iterations": 3}), easy, tmp_path, data="other micrographs")
    with pytest.raises(BadInputError, match=r"suits depth 2.*Take 36"):
        train(TINY.model_copy(update={"patch": 34}), easy, tmp_path / "odd")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(BadInputError, match="safetensors"):
        load_model(tmp_path / "text.safetensors")


def test_pixels_of_unknown_truth_have_no_weight() -> None:
    def half_known(rng: np.random.Generator, size: int) -> Sample:
        s = easy(rng, size)
        s.valid[:, : size // 2] = False
        return s

    _, _, weights = batch_of(half_known, TINY, 0)
    assert not weights[..., :16].any()
    assert (weights[..., 16:] > 0).all()
