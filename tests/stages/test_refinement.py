"""Poses, noise and schedule of the refinement, on simulated and real particles."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoseg_dist.formats.images import read_images
from cryoseg_dist.formats.mrc import read_volume
from cryoseg_dist.formats.star import image_reads, read_star
from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import shell_mean, shift, to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Region, Unit
from cryoseg_dist.simulate.specimen import made_up
from cryoseg_dist.stages import refine
from cryoseg_dist.stages.reconstruct import FoldStage, complete, pose_table
from cryoseg_dist.stages.refine_expectation import ExpectationStage, Sampling, moved, shift_grid
from cryoseg_dist.stages.refine_scales import updated_scales

SIZE, PIXEL, N = 32, 4.0, 160
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.1)
DIAMETER = 90.0


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, np.ndarray, torch.Tensor, torch.Tensor, np.ndarray]:
    """Map, noisy images (n, y, x), rotations, origins in px, CTF columns."""
    volume = made_up(diameter=DIAMETER, size=SIZE, pixel_size=PIXEL, resolution=9.0, seed=3).volume
    g = torch.Generator().manual_seed(0)
    rotations = random_rotations(N, g).float()
    origins = torch.randn((N, 2), generator=g) * 1.2
    u = 12000.0 + 8000.0 * torch.rand(N, generator=g)
    columns = torch.stack((u, u - 200.0, torch.full((N,), 30.0), torch.zeros(N)), dim=1)
    transfer = ctf(SIZE, PIXEL, *columns.T, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)
    clean = to_real(shift(project(prepare_volume(volume), rotations, SIZE) * transfer, -origins, SIZE), SIZE)
    volume, clean = volume / clean.std(), clean / clean.std()
    images = clean + 1.5 * torch.randn(clean.shape, generator=g)
    return volume, images.numpy(), rotations, origins, columns.numpy()


def expectation(volume: torch.Tensor, images: np.ndarray, sampling: Sampling, **changes: object) -> ExpectationStage:
    power = shell_mean(to_fourier(torch.from_numpy(images)).abs().square(), SIZE).mean(dim=0).numpy()
    noise = np.tile(0.5 * power, (2, 1)).astype(np.float32)
    values = {
        "optics": OPTICS,
        "symmetry": "C1",
        "diameter": DIAMETER,
        "sampling": sampling,
        "noise": noise,
        "perturbation": np.eye(3),
        "poses_kept": 8,
        "share": 0.999,
        "any_scale": False,
        "references": {},
    }
    return ExpectationStage(**{**values, **changes})  # type: ignore[arg-type]


def compute(stage: ExpectationStage, volume: torch.Tensor, images: np.ndarray, columns: np.ndarray, last: np.ndarray):
    state = stage.setup({"half1": volume.numpy(), "half2": volume.numpy()}, "cpu")
    shape = (1, len(images) + 3, stage.poses_kept, 12)
    unit = Unit("u", {}, {"poses": Region("x", (0, 0, 0, 0), shape)}, {"half": 0, "ctf": columns, "poses": last})
    return stage.compute(unit, {"images": images}, state)


def still(n: int) -> np.ndarray:
    return np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], dtype=np.float32), (n, 1))


def test_global_search_finds_planted_poses(planted) -> None:
    volume, images, rotations, origins, columns = planted
    n = 60
    stage = expectation(volume, images, Sampling(2, False, 4.0, 1.5, 12.0, 8.0))
    result = compute(stage, volume, images[:n], columns[:n], still(n))
    poses = result.arrays["poses"][0]
    assert poses.shape == (n + 3, 8, 12)
    assert not poses[n:].any()
    np.testing.assert_allclose(poses[:n, :, 11].sum(axis=1), 1.0, atol=1e-4)
    error = angular_distance(torch.from_numpy(poses[:n, 0, :9].reshape(-1, 3, 3)), rotations[:n])
    assert float(error.median()) < 7.5
    assert float((error < 15).float().mean()) > 0.85
    shifts = torch.from_numpy(poses[:n, 0, 9:11])
    good = error < 10
    assert float((shifts - origins[:n])[good].abs().median()) < 0.7
    assert result.record["n"] == n


def test_local_search_sharpens_poses(planted) -> None:
    volume, images, rotations, origins, columns = planted
    n = 40
    g = torch.Generator().manual_seed(9)
    from cryoseg_dist.kernels.orientation_grid import rotation_vectors_to_matrix

    near = rotation_vectors_to_matrix(torch.randn((n, 3), generator=g, dtype=torch.float64) * 3).float() @ rotations[:n]
    last = torch.cat((near.flatten(1), origins[:n].round()), dim=1).numpy()
    stage = expectation(volume, images, Sampling(4, True, 1.0, 0.5, 14.0, 14.0))
    poses = compute(stage, volume, images[:n], columns[:n], last).arrays["poses"][0]
    before = angular_distance(near, rotations[:n])
    after = angular_distance(torch.from_numpy(poses[:n, 0, :9].reshape(-1, 3, 3)), rotations[:n])
    assert float(after.median()) < 0.75 * float(before.median())


def test_origins_stay_within_their_prior(planted) -> None:
    volume, images, _, _, columns = planted
    n = 24
    last = still(n)
    last[:, 9] = 2.0
    far = {}
    for sd in (math.inf, 0.05):
        stage = expectation(volume, images, Sampling(2, False, 4.0, 1.0, 12.0, 8.0, origin_sd_px=sd))
        result = compute(stage, volume, images[:n], columns[:n], last)
        far[sd] = np.linalg.norm(result.arrays["poses"][0][:n, 0, 9:11], axis=1).mean()
        assert result.record["square_origin"] > 0
    assert far[0.05] < 0.6 < far[math.inf]


def test_the_noise_spectrum_is_that_of_the_noise(planted) -> None:
    volume, images, rotations, origins, columns = planted
    last = torch.cat((rotations.flatten(1), origins), dim=1).numpy()
    stage = expectation(volume, images, Sampling(5, True, 0.5, 0.5, 14.0, 14.0))
    record = compute(stage, volume, images, columns, last).record
    spectra = refine.noise_spectra([record, record], [0, 1], stage.noise)
    # White noise of deviation 1.5: half its power lies in each component of n^2 samples.
    np.testing.assert_allclose(spectra[0, 4:13], 0.5 * 1.5**2 * SIZE**2, rtol=0.12)


def test_scales_of_micrographs_are_measured(planted) -> None:
    volume, images, _, _, columns = planted
    n = 80
    micrographs = np.arange(n) % 2
    dim = np.where(micrographs == 1, 0.5, 1.0).astype(np.float32)[:, None, None]
    # Noise as strong as ever: only the molecule is dimmer.
    clean = np.random.default_rng(0).normal(scale=1.5, size=images[:n].shape).astype(np.float32)
    images = images[:n] * dim + clean * np.sqrt(1.0 - dim**2)
    stage = expectation(volume, images, Sampling(2, False, 4.0, 1.0, 10.0, 8.0))
    scales = np.ones((2, 2))
    for _ in range(3):
        state = stage.setup({"half1": volume.numpy(), "half2": volume.numpy()}, "cpu")
        scaled = np.column_stack((columns[:n], np.zeros(n), scales[0, micrographs], np.zeros(n)))
        parameters = {"half": 0, "ctf": scaled, "poses": still(n), "micrographs": micrographs}
        unit = Unit("u", {}, {"poses": Region("x", (0, 0, 0, 0), (1, n, stage.poses_kept, 12))}, parameters)
        record = stage.compute(unit, {"images": images}, state).record
        scales = updated_scales(scales, [record], [0], [micrographs])
    np.testing.assert_allclose(scales[0], (4 / 3, 2 / 3), rtol=0.06)
    np.testing.assert_allclose(scales[1], 1.0)


def test_scales_of_few_particles_stay_near_one() -> None:
    micrographs = np.array([0] * 50 + [1] * 50 + [2])
    # Micrograph 1 is known to be half as bright, the single particle of micrograph 2 tells next to nothing.
    record = {"scale": [[5000.0, 2500.0, 0.2], [5000.0, 5000.0, 1.0]]}
    first, second, third = updated_scales(np.ones((2, 3)), [record], [0], [micrographs])[0]
    assert second / first == pytest.approx(0.5, abs=0.01)
    assert third == pytest.approx(1.0, abs=0.05)
    assert np.average([first, second, third], weights=[50, 50, 1]) == pytest.approx(1.0)
    negative = {"scale": [[5000.0, -5000.0, 0.2], [5000.0, 5000.0, 1.0]]}
    assert updated_scales(np.ones((2, 3)), [negative], [0], [micrographs]).min() > 0


def fold(images: np.ndarray, columns: np.ndarray, rotations: torch.Tensor, origins: torch.Tensor) -> torch.Tensor:
    poses = torch.cat((rotations.flatten(1), origins, torch.ones(len(images), 1)), dim=1)[:, None].numpy()
    unit = Unit("f", parameters={"half": 0, "parts": [{"ctf": columns, "poses": poses}]})
    total = FoldStage(OPTICS, SIZE).partial(unit, {"images/0": images})
    return complete(total, "C1", SIZE, 2)


def test_half_sets_do_not_see_each_other(planted) -> None:
    volume, images, rotations, origins, columns = planted
    settings = refine.RefineSettings()
    halves = [slice(0, N // 2), slice(N // 2, N)]
    first = [fold(images[h], columns[h], rotations[h], origins[h]) for h in halves]
    poisoned = [
        first[0],
        fold(np.zeros_like(images[halves[1]]) + 9.0, columns[halves[1]], rotations[halves[1]], origins[halves[1]]),
    ]
    a = refine.maximize(first, SIZE, PIXEL, DIAMETER, 2, settings)
    b = refine.maximize(poisoned, SIZE, PIXEL, DIAMETER, 2, settings)
    assert torch.equal(a.raw[0], b.raw[0])
    assert not torch.equal(a.raw[1], b.raw[1])
    sphere = soft_sphere(SIZE, 11, 4)
    truth = to_fourier(volume * sphere, 3)
    assert float(fsc(to_fourier((a.raw[0] + a.raw[1]) * sphere, 3), truth)[2:8].min()) > 0.8
    assert float(a.curve[2:6].min()) > 0.6
    # References of different halves agree where they are joined and differ beyond.
    spectra = [to_fourier(r, 3) for r in a.references]
    assert float((spectra[0] - spectra[1]).abs().max()) > 0


def test_the_grid_gets_finer_only_when_the_resolution_stalls() -> None:
    settings = refine.RefineSettings()
    state = refine.first_state(torch.ones(33), 64, 3.0, 40.0, settings)
    noise = state.noise_array()

    def curve(shell: int) -> torch.Tensor:
        return torch.cat((torch.ones(shell, dtype=torch.float64), torch.zeros(33 - shell, dtype=torch.float64)))

    def go(state: refine.RefineState, shell: int, accuracy: float = 0.0) -> refine.RefineState:
        return refine.next_state(state, curve(shell), noise, 1.0, 18.0, accuracy, 64, 3.0, 130.0, settings)

    state = go(go(state, 8), 12)
    assert (state.order, state.stalled, state.converged) == (2, 0, False)
    # Images that cannot tell finer poses apart keep the grid, and end the refinement.
    vague = go(state, 12, accuracy=11.0)
    assert (vague.order, vague.angular_accuracy) == (2, 11.0)
    assert go(vague, 12, accuracy=10.8).converged
    # A map that tells orientations apart ever better is not finished, whatever its FSC.
    assert go(vague, 12, accuracy=10.5).stalled == 0
    state = go(state, 12, accuracy=9.0)
    assert state.order == 3
    for _ in range(20):
        if state.converged:
            break
        state = go(state, 12)
    assert state.converged
    assert 3 <= state.order <= settings.last_order
    assert refine.RefineState.from_json(state.to_json()) == state
    sampled = refine.sampling(state, 64, 3.0, 130.0, "C1", settings)
    assert sampled.local == (state.order >= 4)
    assert not refine.sampling(replace(state, order=4), 64, 3.0, 130.0, "O", settings).local
    assert refine.sampling(replace(state, order=5), 64, 3.0, 130.0, "O", settings).local
    assert sampled.max_shell <= 31


def test_images_are_moved_by_whole_pixels_as_their_phases_would() -> None:
    images = torch.randn((3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    shifts = torch.tensor([[0, 0], [3, -2], [-7, 5]])
    expected = to_real(shift(to_fourier(images), shifts.float(), SIZE), SIZE)
    torch.testing.assert_close(moved(images, shifts), expected, atol=1e-5, rtol=0)


def test_shift_grid_and_half_sets() -> None:
    grid = shift_grid(2.0, 1.0)
    assert grid[0].tolist() == [0.0, 0.0]
    assert grid.shape == (13, 2)
    half = refine.half_sets(101, 5)
    assert sorted(np.bincount(half).tolist()) == [50, 51]
    np.testing.assert_array_equal(half, refine.half_sets(101, 5))


def bgal_curve(folder: Path, ctf_file: str) -> torch.Tensor:
    """FSC with the published-style map from the given angles and the CTF of a file."""
    rows = read_star(folder / "particles_refinedangles_shared.star").rows
    names = rows["image_name"].tolist()
    images = np.concatenate([read_images(r) for r in image_reads(names, folder)])
    other = read_star(folder / ctf_file).rows.set_index("image_name").loc[names]
    columns = np.column_stack([other[c] for c in ("defocus_u", "defocus_v", "defocus_angle")] + [np.zeros(len(rows))])
    poses = pose_table(rows["rot"], rows["tilt"], rows["psi"], rows["origin_x"], rows["origin_y"], 3.54)
    stage = FoldStage(Optics(3.54, 200.0, 1.4, 0.1), 64)
    unit = Unit("f", parameters={"half": 0, "parts": [{"ctf": columns, "poses": poses}]})
    volume = finish(complete(stage.partial(unit, {"images/0": images}), "D2", 64, 2), 64)
    truth = torch.from_numpy(read_volume(folder.parent / "maps" / "betaGal.mrc")[0])[18:82, 18:82, 18:82]
    sphere = soft_sphere(64, 25, 4)
    return fsc(to_fourier(volume * sphere, 3), to_fourier(truth * sphere, 3))


def test_real_beta_galactosidase_needs_its_ctf(shared_data: Path) -> None:
    folder = shared_data / "bgal_empiar10204"
    right = bgal_curve(folder, "particles_refinedangles_shared.star")
    wrong = bgal_curve(folder, "particles_wrong_ctf.star")
    assert float(right[round(64 * 3.54 / 12.6)]) > 0.78
    assert float(right[round(64 * 3.54 / 9.4)]) > 0.5
    beyond = int(64 * 3.54 / 12.0) + 1
    assert float(wrong[beyond:30].max()) < 0.1
