"""Maps made slab by slab through the store are those made in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoseg_dist.kernels.accumulator import enforce_friedel
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.symmetrisation import reach, symmetrise
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.runtime import partial_sums
from cryoseg_dist.runtime.dask_accumulation import Accumulation
from cryoseg_dist.runtime.partial_sums import PartialSums
from cryoseg_dist.runtime.slab_finishing import MapOfGroups, SlabFinishing
from cryoseg_dist.store.project import Project


def noise(n_folds: int, m: int) -> np.ndarray:
    out = np.random.default_rng(m).normal(size=(n_folds, m, m, m // 2 + 1, 3)).astype(np.float32)
    out[..., 2] = np.abs(out[..., 2]) + 0.5
    for total in out:
        enforce_friedel(torch.from_numpy(total))
    return out


@pytest.mark.parametrize(
    ("symmetry", "size", "padding", "max_shell", "planes"),
    [
        ("C1", 12, 2, None, 5),
        ("C1", 9, 1, 3.5, 1),
        ("C3", 11, 2, None, 7),
        ("D2", 10, 2, None, 3),
        ("O", 12, 2, 4.0, 4),
    ],
)
def test_slabs_give_the_maps_of_whole_volumes(
    symmetry: str,
    size: int,
    padding: int,
    max_shell: float | None,
    planes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m, group = size * padding, operators(symmetry)
    folds = noise(5, m)
    monkeypatch.setattr(partial_sums, "SLAB_BYTES", planes * 12 * m * (m // 2 + 1))
    project = Project(tmp_path / "P", create=True)
    sums = PartialSums(project, "run", folds.shape[1:])
    sums.create(len(folds))
    for place, total in enumerate(folds):
        sums.write(place, total)
    # Fold 2 was set aside, and one group has its sum already.
    places = {"half1": (0, 3, 4), "half2": (1,)}
    slabs = SlabFinishing(sums, size, padding, group, places, max_shell)
    assert len(slabs.slabs) > 1
    slabs.create(3, {})
    run = Accumulation(project.root, workers=2).run
    means = slabs.add_up(run)
    if slabs.has_symmetry:
        means = slabs.complete(run)
    ratio = torch.linspace(0.0, 3.0, size // 2 + 1)
    both = MapOfGroups(2, (0, 1), means[0] + means[1], ratio)
    slabs.make_maps(run, [MapOfGroups(0, (0,), means[0]), MapOfGroups(1, (1,), means[1]), both])
    maps = project.read(project.whole("run/maps"))
    totals = []
    for some in places.values():
        total = torch.from_numpy(folds[list(some)].sum(axis=0, dtype=np.float64).astype(np.float32))
        totals.append(symmetrise(total, group, size / 2, padding))
    wanted = [finish(t, size, padding=padding, max_shell=max_shell) for t in totals]
    wanted.append(finish(totals[0] + totals[1], size, padding=padding, max_shell=max_shell, shrinkage=ratio))
    for got, whole in zip(maps, wanted, strict=True):
        np.testing.assert_allclose(got, whole.numpy(), rtol=0, atol=1e-6 * float(whole.abs().max()))
    slabs.remove()
    assert project.array_names() == ["run/maps"]


def test_planes_that_symmetry_turns_into_a_slab_are_few_where_they_can_be() -> None:
    # Rotations about z leave planes where they are, those of D2 mirror them.
    for symmetry, most in (("C4", 2 * 3 + 8), ("D2", 2 * 3 + 8)):
        wanted = reach(20, 23, 64, operators(symmetry), 16, 2)
        assert {20, 21, 22} <= set(wanted)
        assert len(wanted) <= most
    assert len(reach(0, 3, 64, operators("O"), 16, 2)) == 64
    assert len(reach(31, 32, 64, operators("C1"), 4, 2)) == 0
