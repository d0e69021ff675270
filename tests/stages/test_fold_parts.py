"""Parts of a fold come in order, joined to batches, made ahead of their use."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.stages.fold_parts import Part, ahead, batches
from cryoseg_dist.stages.reconstruct import FoldStage, pose_table

OPTICS = Optics(2.0, 300.0, 2.7, 0.1)


def part(first: int, n: int, n_poses: int) -> Part:
    images = np.arange(first, first + n, dtype=np.float16)[:, None, None]
    return images, np.full((n, 4), first, np.float32), np.full((n, n_poses, 12), first, np.float32)


def test_batches_hold_every_image_once_and_in_order() -> None:
    made = list(batches(iter([part(0, 3, 1), part(3, 5, 2), part(8, 2, 1)]), 4))
    assert [len(images) for images, _, _ in made] == [4, 4, 2]
    assert np.concatenate([images for images, _, _ in made]).ravel().tolist() == list(range(10))
    # Images of parts with fewer poses have poses of weight 0.
    assert made[0][2][:, 1, 11].tolist() == [0.0, 0.0, 0.0, 3.0]


def test_the_next_item_is_made_while_one_is_worked_on_and_its_fault_is_raised() -> None:
    working, threads = threading.Event(), set()

    def items() -> Iterator[int]:
        threads.add((threading.current_thread(), torch.get_num_threads()))
        yield 1
        assert working.wait(10.0)
        yield 2
        raise OSError("no more")

    coming = ahead(items(), 3)
    assert next(coming) == 1
    # The second is being made by now, and only waits.
    working.set()
    assert next(coming) == 2
    with pytest.raises(OSError, match="no more"):
        next(coming)
    ((maker, share),) = threads
    assert maker is not threading.current_thread()
    assert share == 3


def test_a_sum_does_not_depend_on_the_size_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    # More than three batches: memory is used again.
    n, size = 20, 16
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, size, size)).astype(np.float32)
    angles = rng.uniform(0, 180, (3, n))
    poses = pose_table(*angles, *rng.normal(size=(2, n)), OPTICS.pixel_size)
    ctf = np.column_stack((rng.uniform(8e3, 2e4, (n, 2)), np.zeros((n, 2)))).astype(np.float32)
    unit = Unit("fold", {}, {}, {"half": 0, "parts": [{"ctf": ctf, "poses": poses}]})
    whole = FoldStage(OPTICS, size).partial(unit, {"images/0": images})
    monkeypatch.setattr("cryoseg_dist.stages.reconstruct.poses_at_once", lambda extent, pixels: 3)
    cut = FoldStage(OPTICS, size).partial(unit, {"images/0": images})
    assert np.abs(whole).max() > 0
    np.testing.assert_allclose(cut, whole, rtol=0, atol=2e-6 * np.abs(whole).max())
