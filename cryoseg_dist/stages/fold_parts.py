"""What a fold reads: parts that come while others are worked on, joined to batches of one size."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from cryoseg_dist.schema.work import Unit

T = TypeVar("T")

# Parts that are read ahead.
AHEAD = 2

# Images, columns of their transfer, poses.
Part = tuple[np.ndarray, np.ndarray, np.ndarray]


def parts_of(unit: Unit, inputs: Mapping[str, np.ndarray]) -> Iterator[Part]:
    """Images, columns of their transfer, and poses of each part; the next are read while one is worked on."""
    parts = unit.parameters["parts"]

    def read(i: int) -> Part:
        rows, images = parts[i].get("rows"), inputs[f"images/{i}"]
        images = images if rows is None else images[np.asarray(rows)]
        poses = inputs[f"poses/{i}"][0, : len(images)] if f"poses/{i}" in inputs else parts[i]["poses"]
        return images, np.asarray(parts[i]["ctf"], dtype=np.float32), np.asarray(poses, dtype=np.float32)

    return ahead(map(read, range(len(parts))), 1, AHEAD)


def ahead(items: Iterator[T], threads: int, depth: int = 1) -> Iterator[T]:
    """The items, the next ``depth`` of which are made while one is worked on: by a thread, for which torch starts ``threads`` in all."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as maker:
        coming = deque(maker.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(maker.submit(next, items, None))
            yield item


def batches(parts: Iterator[Part], room: int) -> Iterator[Part]:
    """Parts joined and cut to ``room`` images; poses beyond those of a part weigh nothing."""
    waiting: list[Part] = []
    for part in parts:
        waiting.append(part)
        while sum(len(images) for images, _, _ in waiting) >= room:
            whole = _joined(waiting)
            yield whole[0][:room], whole[1][:room], whole[2][:room]
            waiting = [(whole[0][room:], whole[1][room:], whole[2][room:])]
    rest = _joined(waiting)
    if len(rest[0]):
        yield rest


def _joined(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    width = max(poses.shape[1] for _, _, poses in parts)
    images, columns, poses = zip(*parts, strict=True)
    filled = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0))) for p in poses]
    return np.concatenate(images), np.concatenate(columns), np.concatenate(filled)
