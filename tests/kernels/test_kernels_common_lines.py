"""Common lines: where they lie, what is read from them, and how far the orientations found are from the truth."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoseg_dist.kernels.common_lines import (
    ONE,
    CommonLines,
    LineScores,
    best_lines,
    centre_scores,
    line_shifts,
    lines_of,
    pair_number,
    pairs_of,
    score_lines,
)
from cryoseg_dist.kernels.fourier import shift, to_real
from cryoseg_dist.kernels.line_consensus import (
    _add_grid_scores,
    _add_scores,
    consensus,
    improve,
    pair_statistics,
)
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.orientation_grid import orientation_grid, psi_angles
from cryoseg_dist.kernels.polar import polar_rays, weighted_rays
from cryoseg_dist.kernels.slices import project
from cryoseg_dist.kernels.so3 import angular_distance, random_rotations
from cryoseg_dist.kernels.synchronization import (
    RelativeRotations,
    align_orientations,
    nearest_rotations,
    rotations_about,
    solve_origins,
    synchronise_hands,
    synchronise_rotations,
    vote,
)
from cryoseg_dist.simulate.specimen import Specimen, made_up

SIZE, SHELLS, ANGLES = 64, 16, 180
HAND = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))


@dataclass(frozen=True)
class Views:
    rotations: Tensor
    shifts_px: Tensor
    rays: Tensor
    scores: LineScores


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return made_up(symmetry="C1", diameter=150.0, size=SIZE, pixel_size=3.0, seed=3)


def views(specimen: Specimen, n: int, snr: float | None, shift_px: float) -> Views:
    """Projections of a specimen, moved, noisy, and the scores of their rays."""
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(n, generator)
    shifts = (2.0 * torch.rand((n, 2), generator=generator) - 1.0) * shift_px
    images = to_real(shift(project(specimen.transform, rotations.float(), SIZE), shifts, SIZE), SIZE)
    if snr is not None:
        images = images / images.std() * snr**0.5 + torch.randn(images.shape, generator=generator)
    rays = polar_rays(images * soft_sphere(SIZE, 28.0, 4.0, 2), ANGLES, SHELLS)
    weighted = weighted_rays(rays, torch.ones(SHELLS))
    reach = torch.arange(-4.0, 5.0)
    return Views(rotations, shifts, weighted, score_lines(weighted, reach, SIZE))


def synchronised(lines: CommonLines) -> Tensor:
    return synchronise_rotations(synchronise_hands(vote(lines)))


def errors(found: Tensor, truth: Tensor) -> Tensor:
    aligned, _ = align_orientations(found, truth)
    return angular_distance(aligned, truth)


def exact(rotations: Tensor) -> CommonLines:
    n = len(rotations)
    return CommonLines(lines_of(rotations), 1.0 - torch.eye(n, dtype=torch.float64))


def relative_of(rotations: Tensor) -> Tensor:
    return rotations[:, None] @ rotations[None].transpose(2, 3)


def test_pairs_are_numbered_in_their_order() -> None:
    i, j = pairs_of(7)
    assert [pair_number(a, b, 7) for a, b in zip(i, j, strict=True)] == list(range(21))


def test_rays_of_a_shifted_point_are_plane_waves() -> None:
    images = torch.zeros((2, 32, 32))
    images[0, 16, 16] = 1.0
    images[1, 16 + 3, 16 - 2] = 1.0
    rays = polar_rays(images, 12, 8, padding=8)
    angle = torch.deg2rad(torch.arange(6) * 30.0)[:, None]
    along = -2.0 * angle.cos() + 3.0 * angle.sin()
    wave = torch.polar(torch.ones(6, 8), -2.0 * torch.pi * along * torch.arange(1, 9) / 32.0)
    assert (rays[0] - 1.0).abs().max() < 0.02
    assert (rays[1] - wave).abs().max() < 0.05


def test_rays_that_leave_the_transform_are_refused() -> None:
    images = torch.zeros((1, 32, 32))
    with pytest.raises(ValueError, match="at most 15 shells"):
        polar_rays(images, 12, 16)
    with pytest.raises(ValueError, match="even number of angles"):
        polar_rays(images, 13, 8)


def test_a_common_line_is_one_direction_of_the_volume() -> None:
    rotations = random_rotations(8, torch.Generator().manual_seed(1))
    angle = torch.deg2rad(lines_of(rotations))
    local = torch.stack((angle.cos(), angle.sin(), torch.zeros_like(angle)), dim=-1)
    line = torch.einsum("iab,ija->ijb", rotations, local)
    off = ~torch.eye(8, dtype=torch.bool)
    assert (line - line.transpose(0, 1))[off].abs().max() < 1e-9
    assert torch.einsum("ijb,ib->ij", line, rotations[:, 2])[off].abs().max() < 1e-9


def test_noise_free_projections_share_the_lines_of_their_orientations(specimen: Specimen) -> None:
    seen = views(specimen, 20, None, 2.0)
    found, truth = best_lines(seen.scores), lines_of(seen.rotations)
    i, j = pairs_of(20)
    apart = []
    for turn in (0.0, 180.0):
        # A line has two directions; both images must take the same one.
        both = torch.stack((found.angle[i, j] - truth[i, j], found.angle[j, i] - truth[j, i])) + turn
        apart.append(((both + 180.0) % 360.0 - 180.0).abs().amax(dim=0))
    error = torch.minimum(*apart)
    assert error.median() < 1.5
    assert (error < 5.0).double().mean() > 0.9
    assert found.score[i, j].median() > 0.99


@pytest.mark.parametrize(("a", "b"), [(2.0, 4.25), (-0.3, 8.0), (5.2, 11.4)])
def test_the_peak_is_refined_between_rays(a: float, b: float) -> None:
    half, full = 6, 12
    values = np.zeros((1, half, full), dtype=np.int16)
    for turned in (0, half):
        # The peak at (a, b) is also one at (a + half, b + half): the opposite direction of the same line.
        da = (np.arange(half)[:, None] - a - turned + half) % full - half
        db = (np.arange(full) - b - turned + half) % full - half
        values[0] = np.maximum(values[0], 0.9 * ONE - 2000.0 * (da**2 + db**2))
    lines = best_lines(LineScores(2, values))
    apart = [(float(lines.angle[0, 1]) - 30.0 * a), (float(lines.angle[1, 0]) - 30.0 * b)]
    both = [max(abs((d + turn + 180.0) % 360.0 - 180.0) for d in apart) for turn in (0.0, 180.0)]
    assert min(both) < 0.1
    assert abs(float(lines.score[0, 1]) - 0.9) < 0.02


def test_votes_on_exact_lines_give_relative_rotations_up_to_the_hand() -> None:
    rotations = random_rotations(30, torch.Generator().manual_seed(2))
    found, truth = vote(exact(rotations)), relative_of(rotations)
    i, j = pairs_of(30)
    same = angular_distance(found.matrix, truth)[i, j]
    other = angular_distance(HAND @ found.matrix @ HAND, truth)[i, j]
    assert torch.minimum(same, other).median() < 0.5
    assert torch.minimum(same, other).max() < 4.0
    torch.testing.assert_close(found.matrix.transpose(0, 1), found.matrix.transpose(2, 3))


def test_all_pairs_get_one_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = relative_of(random_rotations(25, generator))
    flip = torch.triu(torch.rand((25, 25), generator=generator) < 0.5, 1)
    flip = flip | flip.T
    mixed = torch.where(flip[..., None, None], HAND @ truth @ HAND, truth)
    before = mixed.clone()
    weight = 1.0 - torch.eye(25, dtype=torch.float64)
    found = synchronise_hands(RelativeRotations(mixed, weight)).matrix
    assert torch.equal(mixed, before)
    i, j = pairs_of(25)
    right = angular_distance(found, truth)[i, j] < 1e-6
    mirrored = angular_distance(HAND @ found @ HAND, truth)[i, j] < 1e-6
    assert right.all() or mirrored.all()


@pytest.mark.parametrize("wrong", [0.0, 0.4])
def test_synchronisation_survives_wrong_pairs(wrong: float) -> None:
    generator = torch.Generator().manual_seed(4)
    n = 40
    truth = random_rotations(n, generator)
    relative = relative_of(truth)
    bad = torch.triu(torch.rand((n, n), generator=generator) < wrong, 1)
    noise = random_rotations(n * n, generator).reshape(n, n, 3, 3)
    relative = torch.where(bad[..., None, None], noise, relative)
    relative = torch.where(bad.T[..., None, None], noise.transpose(0, 1).transpose(2, 3), relative)
    found = synchronise_rotations(RelativeRotations(relative, 1.0 - torch.eye(n, dtype=torch.float64)))
    aligned, mirrored = align_orientations(found, truth)
    assert not mirrored
    assert angular_distance(aligned, truth).max() < (1e-5 if wrong == 0 else 1.0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_orientations_are_turned_into_the_frame_of_others(mirrored: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    truth = random_rotations(30, generator)
    frame = random_rotations(1, generator)[0]
    found = truth @ frame
    found[:9] = random_rotations(9, generator)
    found = HAND @ found @ HAND if mirrored else found
    aligned, other = align_orientations(found, truth)
    assert other is mirrored
    assert angular_distance(aligned, truth)[9:].max() < 1e-4


def test_nearest_rotations_and_axes() -> None:
    rotations = random_rotations(5, torch.Generator().manual_seed(6))
    torch.testing.assert_close(nearest_rotations(1.7 * rotations), rotations)
    assert torch.linalg.det(nearest_rotations(-rotations)).min() > 0.99
    turned = rotations_about("z", torch.tensor([90.0])) @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(turned[0], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    about_x = rotations_about("x", torch.tensor(90.0)) @ torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(about_x, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


def origins_apart(found: Tensor, truth: Tensor, rotations: Tensor) -> Tensor:
    """Distances in pixels after the best shift of the map, which common lines cannot tell."""
    design = rotations[:, :2].reshape(-1, 3)
    move = torch.linalg.lstsq(design, (found - truth).reshape(-1, 1)).solution
    return (found - truth - (design @ move).reshape(-1, 2)).norm(dim=1)


def test_origins_from_shifts_along_lines_despite_outliers() -> None:
    generator = torch.Generator().manual_seed(7)
    n = 30
    rotations = random_rotations(n, generator)
    t = 2.0 * torch.randn((n, 2), generator=generator, dtype=torch.float64)
    angle = lines_of(rotations)
    e = torch.stack((torch.deg2rad(angle).cos(), torch.deg2rad(angle).sin()), dim=-1)
    along = torch.einsum("ijc,ic->ij", e, t)
    shift_px = along - along.T
    wild = torch.rand((n, n), generator=generator) < 0.2
    shift_px = torch.where(wild, shift_px + 4.0, shift_px)
    found = solve_origins(shift_px, angle, torch.ones((n, n), dtype=torch.float64), rounds=30)
    assert origins_apart(found, -t, rotations).max() < 0.3
    assert origins_apart(found, -t, rotations).median() < 0.1


def test_noise_free_projections_give_orientations_and_origins(specimen: Specimen) -> None:
    seen = views(specimen, 40, None, 2.0)
    start = synchronised(best_lines(seen.scores))
    assert errors(start, seen.rotations).median() < 1.0
    found = improve(seen.scores, start, pair_statistics(seen.scores), global_sweeps=1)
    assert errors(found, seen.rotations).median() < 0.7
    angle = lines_of(found)
    shift_px, score = line_shifts(seen.rays, angle, torch.arange(-5.0, 5.1, 0.5), SIZE)
    origins = solve_origins(shift_px, angle, score)
    # Either hand: the lines are the same, so are the shifts.
    aligned, mirrored = align_orientations(found, seen.rotations)
    frame = HAND @ seen.rotations @ HAND if mirrored else seen.rotations
    assert origins_apart(origins, -seen.shifts_px.double(), frame).median() < 0.15
    assert len(aligned) == 40


@pytest.mark.parametrize(("snr", "limit"), [(3.0, 2.5), (1.0, 6.0)])
def test_noise_is_overcome_and_the_search_over_all_rays_helps(specimen: Specimen, snr: float, limit: float) -> None:
    seen = views(specimen, 40, snr, 1.5)
    statistics = pair_statistics(seen.scores)
    start = synchronised(best_lines(seen.scores))
    found = improve(seen.scores, start, statistics)
    before, after = errors(start, seen.rotations), errors(found, seen.rotations)
    assert after.median() < limit
    assert after.median() <= before.median() + 0.3
    assert (after < 10.0).double().mean() > max(0.9, (before < 10.0).double().mean() - 0.05)
    scored = consensus(seen.scores, found, statistics).mean()
    assert scored >= consensus(seen.scores, start, statistics).mean() - 1e-9
    chance = consensus(seen.scores, random_rotations(40, torch.Generator().manual_seed(9)), statistics).mean()
    assert chance.abs() < 0.3 < scored - 0.5


def test_either_hand_agrees_alike(specimen: Specimen) -> None:
    seen = views(specimen, 15, 3.0, 0.0)
    statistics = pair_statistics(seen.scores)
    one = consensus(seen.scores, seen.rotations, statistics)
    other = consensus(seen.scores, HAND @ seen.rotations @ HAND, statistics)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_centred_scores_have_no_favourite_rays(specimen: Specimen) -> None:
    seen = views(specimen, 12, 3.0, 0.0)
    before = seen.scores.values.copy()
    centred = centre_scores(seen.scores)
    assert np.array_equal(seen.scores.values, before)
    i, j = pairs_of(12)
    for scores, favoured in ((seen.scores, True), (centred, False)):
        favour = np.zeros((12, ANGLES // 2))
        half = ANGLES // 2
        for p in range(len(i)):
            favour[i[p]] += scores.values[p].mean(axis=1)
            # Columns b and b + half are the two directions of one line of image j.
            columns = scores.values[p].mean(axis=0)
            favour[j[p]] += 0.5 * (columns[:half] + columns[half:])
        spread = favour.std(axis=1).mean() / 11 / ONE
        assert bool(spread > 0.01) is favoured


def test_the_grid_of_orientations_scores_as_each_of_them(specimen: Specimen) -> None:
    seen = views(specimen, 12, 3.0, 1.0)
    statistics = pair_statistics(seen.scores)
    grid, n_psi = orientation_grid(1), len(psi_angles(1))
    others = seen.rotations.numpy()
    for image in (0, 6, 11):
        one_by_one = np.zeros(len(grid))
        _add_scores(seen.scores.values, *statistics, others, image, grid.numpy(), one_by_one)
        together = np.zeros((len(grid) // n_psi, n_psi))
        turned = grid[::n_psi].contiguous().numpy()
        _add_grid_scores(seen.scores.values, *statistics, others, image, turned, together)
        assert np.abs(together.reshape(-1) - one_by_one).max() < 2e-3 * np.abs(one_by_one).max()


def test_slices_in_one_plane_share_every_line(specimen: Specimen) -> None:
    seen = views(specimen, 3, None, 0.0)
    statistics = pair_statistics(seen.scores)
    turn = rotations_about("z", torch.tensor([0.0, 40.0, 100.0]))
    flat = consensus(seen.scores, turn @ seen.rotations[:1], statistics)
    assert torch.isfinite(flat).all()
