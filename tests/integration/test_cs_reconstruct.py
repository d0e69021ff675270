"""cryoSPARC tables through `cryoseg reconstruct`: the same map as from a STAR file of the same particles."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from cryoseg_dist.cli.main import app
from cryoseg_dist.formats.mrc import read_mrc, read_volume, write_stack
from cryoseg_dist.formats.star import read_star, write_star
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.particles import simulate_particles
from cryoseg_dist.simulate.specimen import Specimen

SIZE, PIXEL, N = 24, 4.0, 300
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.1)


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cs")
    rng = np.random.default_rng(9)
    axis = torch.arange(SIZE) - SIZE // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blobs = ((5, 0, 0, 1.0), (-3, 4, 0, 1.5), (0, -2, 5, 2.0), (0, 3, -4, 0.8), (-4, -4, -3, 1.2))
    volume = sum(
        (m * torch.exp(-0.25 * ((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2)) for a, b, c, m in blobs), torch.zeros(())
    )
    table = pd.DataFrame(
        {
            "image_name": [f"{i:06d}@J5/stack.mrcs" for i in range(1, N + 1)],
            "optics_group": 1,
            "defocus_u": rng.uniform(9000, 20000, N),
            "defocus_angle": rng.uniform(0, 180, N),
            "phase_shift": 0.0,
            "rot": rng.uniform(-180, 180, N),
            "tilt": np.degrees(np.arccos(rng.uniform(-1, 1, N))),
            "psi": rng.uniform(-180, 180, N),
            "origin_x": rng.uniform(-8, 8, N),
            "origin_y": rng.uniform(-8, 8, N),
            "class_number": rng.permutation(N) % 3 + 1,
            "random_subset": rng.permutation(N) % 2 + 1,
        }
    )
    table["defocus_v"] = table["defocus_u"] - 400.0
    rotations = euler_to_matrix(*(torch.tensor(table[c].to_numpy()) for c in ("rot", "tilt", "psi")))
    columns = torch.tensor(table[["defocus_u", "defocus_v", "defocus_angle", "phase_shift"]].to_numpy())
    origins = torch.tensor(table[["origin_x", "origin_y"]].to_numpy())
    images = simulate_particles(Specimen(volume, PIXEL, "C1", 80.0), rotations, origins, columns, OPTICS, snr=4.0)
    (root / "J5").mkdir()
    write_stack(root / "J5/stack.mrcs", images.numpy(), PIXEL)
    group = {"optics_group_name": "one", "optics_group": 1, "voltage": 300.0, "spherical_aberration": 2.7}
    group |= {"amplitude_contrast": 0.1, "pixel_size": PIXEL, "image_size": SIZE}
    write_star(root / "particles.star", {"optics": pd.DataFrame([group]), "particles": table})
    return root / "particles.star"


def cs_tables(star: Path, sign: float) -> tuple[Path, Path]:
    """The same particles as cryoSPARC keeps them: images and CTF in one table, alignments in a passthrough."""
    rows = read_star(star).rows
    rng = np.random.default_rng(1)
    uid = rng.permutation(10 * N)[:N].astype("u8")
    one = np.zeros(
        N,
        dtype=[
            ("uid", "<u8"), ("blob/path", "S32"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
            ("blob/psize_A", "<f4"), ("blob/sign", "<f4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"),
            ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"),
            ("ctf/phase_shift_rad", "<f4"), ("ctf/tilt_A", "<f4", (2,)),
        ],
    )  # fmt: skip
    one["uid"], one["blob/idx"], one["blob/shape"], one["blob/psize_A"] = uid, np.arange(N), SIZE, PIXEL
    one["blob/path"] = f">J5/{'stack' if sign > 0 else 'dark'}.mrcs".encode()
    one["blob/sign"] = sign
    one["ctf/accel_kv"], one["ctf/cs_mm"], one["ctf/amp_contrast"] = 300.0, 2.7, 0.1
    one["ctf/df1_A"], one["ctf/df2_A"] = rows["defocus_u"], rows["defocus_v"]
    one["ctf/df_angle_rad"] = np.deg2rad(rows["defocus_angle"])
    other = np.zeros(
        N,
        dtype=[
            ("uid", "<u8"), ("alignments3D/split", "<u4"), ("alignments3D/shift", "<f4", (2,)),
            ("alignments3D/pose", "<f4", (3,)), ("alignments3D/psize_A", "<f4"), ("alignments3D/class", "<u4"),
        ],
    )  # fmt: skip
    order = rng.permutation(N)
    other["uid"] = uid[order]
    other["alignments3D/split"] = rows["random_subset"].to_numpy()[order] - 1
    other["alignments3D/class"] = rows["class_number"].to_numpy()[order] - 1
    # Poses were found on images of half the pixel size.
    other["alignments3D/psize_A"] = 0.5 * PIXEL
    other["alignments3D/shift"] = rows[["origin_x", "origin_y"]].to_numpy()[order] / (0.5 * PIXEL)
    angles = (torch.tensor(rows[c].to_numpy(copy=True)) for c in ("rot", "tilt", "psi"))
    other["alignments3D/pose"] = Rotation.from_matrix(euler_to_matrix(*angles).numpy()).inv().as_rotvec()[order]
    paths = star.with_name(f"particles{sign:+.0f}.cs"), star.with_name("passthrough.cs")
    for path, table in zip(paths, (one, other), strict=True):
        with path.open("wb") as stream:
            np.save(stream, table)
    return paths


def reconstruct(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["reconstruct", *map(str, arguments), "--workers", "1"])
    assert result.exit_code == 0, result.output
    return result.stdout


def maps(project: Path) -> list[np.ndarray]:
    return [read_volume(project / "export" / f"{n}.mrc")[0] for n in ("map_unsharpened", "half1", "half2")]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_cs_table_gives_the_map_of_the_star_file(star: Path, tmp_path: Path, sign: float) -> None:
    if sign < 0:
        write_stack(star.parent / "J5/dark.mrcs", -read_mrc(star.parent / "J5/stack.mrcs"), PIXEL)
    one, other = cs_tables(star, sign)
    reconstruct(star, "--output", tmp_path / "star")
    reconstruct(one, "--passthrough", other, "--output", tmp_path / "cs")
    for a, b in zip(maps(tmp_path / "star"), maps(tmp_path / "cs"), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-4 * np.abs(a).max())
    # What was written of it is a STAR file that gives the map once more, by way of the project's folder.
    reconstruct(tmp_path / "cs", "--output", tmp_path / "again")
    for a, b in zip(maps(tmp_path / "star"), maps(tmp_path / "again"), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-4 * np.abs(a).max())


def test_corrections_that_are_not_applied_are_refused(star: Path, tmp_path: Path) -> None:
    one, other = cs_tables(star, 1.0)
    table = np.load(one)
    table["ctf/tilt_A"][3] = (0.0, 12.0)
    with star.with_name("tilted.cs").open("wb") as stream:
        np.save(stream, table)
    command = ["reconstruct", str(star.with_name("tilted.cs")), "--passthrough", str(other)]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "p")])
    assert result.exit_code == 2
    assert "ctf/tilt_A" in result.output
    result = CliRunner().invoke(app, ["reconstruct", str(one), "--output", str(tmp_path / "p")])
    assert result.exit_code == 2
    assert "_rlnAngleRot" in result.output


def test_each_class_gets_its_map(star: Path, tmp_path: Path) -> None:
    told = json.loads(reconstruct(star, "--output", tmp_path / "p", "--classes", "1,3", "--json"))
    rows = read_star(star).rows
    assert [f["particles"] for f in told.values()] == [int((rows["class_number"] == k).sum()) for k in (1, 3)]
    assert sorted(p.name for p in (tmp_path / "p").glob("class*")) == ["class001", "class003"]
    # One pass over the images of both.
    assert len(list((tmp_path / "p/ledger").glob("reconstruct-*.jsonl"))) == 1
    alone = star.with_name("third.star")
    write_star(alone, {"optics": read_star(star).optics, "particles": rows[rows["class_number"] == 3]})
    reconstruct(alone, "--output", tmp_path / "q")
    for a, b in zip(maps(tmp_path / "q"), maps(tmp_path / "p/class003"), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())
    reconstruct(alone, "--output", tmp_path / "q", "--no-half-maps")
    for choice, word in (("4", "1, 2, 3"), ("one", "numbers"), ("²", "numbers")):
        command = ["reconstruct", str(star), "--output", str(tmp_path / "r"), "--classes", choice]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert word in result.output
