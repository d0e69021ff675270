"""Solvent masks of known shapes, and beside RELION's."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cryoseg_dist.formats.mrc import read_volume
from cryoseg_dist.kernels.mask import distance_from_centre, solvent_mask


@pytest.mark.parametrize(("extend", "edge"), [(0, 0), (3, 0), (0, 5), (3, 6)])
def test_growth_and_edge_are_relions(shared_data: Path, tmp_path: Path, extend: int, edge: int) -> None:
    if shutil.which("relion_mask_create") is None:
        pytest.skip("relion_mask_create is not installed")
    path = shared_data / "maps" / "betaGal.mrc"
    volume, _ = read_volume(path)
    # At this threshold the map is one part without specks or holes, which RELION would keep.
    threshold = float(0.25 * volume.max())
    subprocess.run(
        ["relion_mask_create", "--i", str(path), "--o", "mask.mrc", "--ini_threshold", str(threshold),
         "--extend_inimask", str(extend), "--width_soft_edge", str(edge)],
        cwd=tmp_path, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    theirs = torch.from_numpy(read_volume(tmp_path / "mask.mrc")[0])
    ours = solvent_mask(torch.from_numpy(volume), threshold, extend, edge)
    assert 0.01 < float(theirs.mean()) < 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_ball_grows_by_the_distance_and_fades_over_the_edge() -> None:
    n, radius = 48, 10.0
    r = distance_from_centre(n)
    mask = solvent_mask((r <= radius).float(), 0.5, 4.0, 6.0)
    assert float(mask[r <= radius + 3.0].min()) == 1.0
    assert float(mask[r > radius + 4.0 + 6.0].max()) == 0.0
    # Voxels at the distance itself stay out, so that the edge begins somewhat earlier.
    middle = mask[(r - radius - 3.3 - 3.0).abs() < 0.3]
    assert float(middle.mean()) == pytest.approx(0.5, abs=0.12)
    grown = solvent_mask((r <= radius).float(), 0.5, 4.0, 0.0)
    assert float(grown.sum()) == pytest.approx(4.0 / 3.0 * math.pi * 13.6**3, rel=0.05)


def test_specks_go_and_holes_are_filled() -> None:
    n = 32
    r = distance_from_centre(n)
    shell = ((r < 9) & (r > 4)).float()
    shell[2, 2, 2] = 1.0
    mask = solvent_mask(shell, 0.5, 0.0, 0.0)
    assert float(mask[2, 2, 2]) == 0.0
    assert float(mask[n // 2, n // 2, n // 2]) == 1.0
    assert not solvent_mask(shell, 2.0, 3.0, 3.0).any()
