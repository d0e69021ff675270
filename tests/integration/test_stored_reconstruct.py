"""`cryoseg reconstruct` on the particles of a project: images from its arrays, on disk or in an object store; damage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.formats.mrc import read_volume, write_stack
from cryoseg_dist.formats.star import write_star
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.stored_images import keep_places
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ArraySpec, Region
from cryoseg_dist.store.project import Project
from tests.s3_server import S3Server

SIZE, PIXEL, N, SHARD = 16, 4.0, 1500, 64
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1, "pixel_size": PIXEL}


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, SIZE, SIZE)).astype(np.float16)


def project_of(root: Path, store: str | None = None) -> Path:
    """A project whose exported particles are some of the images in its arrays, in another order."""
    project, rng = Project(root, create=True, store=store), np.random.default_rng(2)
    shape = (N, SIZE, SIZE)
    project.create(ArraySpec("sim/images", shape, ("p", "y", "x"), "float16", (16, SIZE, SIZE), (SHARD, SIZE, SIZE)))
    project.write(Region("sim/images", (0, 0, 0), shape), images())
    index = rng.permutation(N)[:1400]
    table = pd.DataFrame(
        {
            "image_name": [f"{i:06d}@particles.mrcs" for i in range(1, len(index) + 1)],
            "optics_group": 1,
            "defocus_u": rng.uniform(9000, 20000, len(index)),
            "defocus_v": 9000.0,
            "defocus_angle": 0.0,
            "rot": rng.uniform(-180, 180, len(index)),
            "tilt": rng.uniform(0, 180, len(index)),
            "psi": rng.uniform(-180, 180, len(index)),
            "random_subset": np.arange(len(index)) % 2 + 1,
            "store_index": index,
        }
    )
    optics = pd.DataFrame([{"optics_group_name": "one", "optics_group": 1, "image_size": SIZE, **OPTICS}])
    rows = table.drop(columns="store_index")
    write_star(root / "export/particles.star", {"optics": optics, "particles": rows})
    keep_places(project, "sim", Particles("sim", table, Optics(**OPTICS), SIZE, 50.0, array="sim/images"))
    # The same as RELION would have it.
    write_star(root / "relion/particles.star", {"optics": optics, "particles": rows})
    write_stack(root / "relion/particles.mrcs", images()[index].astype(np.float32), PIXEL)
    return root


def reconstruct(source: Path, out: Path, *options: str, code: int = 0) -> dict[str, object]:
    command = ["reconstruct", str(source), "--output", str(out), "--json", "--workers", "2", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    told: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return told


def maps(out: Path) -> list[np.ndarray]:
    return [read_volume(out / "export" / f"{name}.mrc")[0] for name in ("map_unsharpened", "half1", "half2")]


def test_images_of_an_object_store_give_the_map_of_a_stack(s3_server: S3Server, tmp_path: Path) -> None:
    source = project_of(tmp_path / "P", "s3://bucket/particles")
    reconstruct(source / "relion/particles.star", tmp_path / "stack")
    # Sums and maps go to the object store too.
    reconstruct(source, tmp_path / "s3", "--set", "engine.store=s3://bucket/maps")
    assert not (tmp_path / "s3/store.zarr").exists()
    assert "maps/reconstruct-" in s3_server.objects()
    for a, b in zip(maps(tmp_path / "stack"), maps(tmp_path / "s3"), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())
    written = [p for folder in ("P", "s3") for p in (tmp_path / folder).rglob("*") if p.is_file()]
    assert not any(b"sesame" in p.read_bytes() for p in written)


@pytest.mark.parametrize("damage", ["bytes", "lost"])
def test_a_corrupt_shard_is_named_and_the_rest_is_done(tmp_path: Path, damage: str) -> None:
    source = project_of(tmp_path / "P")
    whole = reconstruct(source, tmp_path / "whole")
    assert whole["set_aside"] == []
    shard = source / "store.zarr/sim/images/c/7/0/0"
    if damage == "lost":
        shard.unlink()
    else:
        shard.write_bytes(bytes(len(shard.read_bytes())))
    told = reconstruct(source, tmp_path / "damaged", code=3)
    items = told["set_aside"]
    assert isinstance(items, list)
    assert items
    assert all(f"sim/images, [{7 * SHARD}, 0, 0]" in item["reason"] for item in items)
    shutil.rmtree(source)
    # Parts of 256 images are lost that need the shard, not whole folds.
    lost = sum(int(str(item["item"]).split()[0]) for item in items)
    assert SHARD // 2 < lost < 800
    assert (tmp_path / "damaged/export/map.mrc").is_file()
