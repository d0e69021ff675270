"""Rotations, symmetry, grids, slices and insertion against analytic truth."""

import pytest
import torch

from cryoseg_dist.errors import SettingsError
from cryoseg_dist.kernels import slices
from cryoseg_dist.kernels.accumulator import empty_accumulator, enforce_friedel
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import shift, to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.insertion import insert
from cryoseg_dist.kernels.insertion_torch import insert_torch
from cryoseg_dist.kernels.orientation_grid import (
    angular_step,
    healpix_directions,
    neighbours,
    orientation_grid,
    random_perturbation,
    subdivide,
)
from cryoseg_dist.kernels.slices import (
    disc_pixels,
    prepare_volume,
    project,
    put_pixels,
    take_pixels,
)
from cryoseg_dist.kernels.so3 import (
    angular_distance,
    angular_distance_modulo,
    euler_to_matrix,
    matrix_to_euler,
    random_rotations,
)
from cryoseg_dist.kernels.symmetrisation import symmetrise
from cryoseg_dist.kernels.symmetry import in_asymmetric_unit, operators, to_asymmetric_unit

GROUPS = {"C1": 1, "C3": 3, "C4": 4, "D2": 4, "D7": 14, "T": 12, "O": 24, "I": 60, "I1": 60}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def atoms(n: int = 30, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    """An asymmetric, chiral cloud of points (xyz)."""
    return torch.randn((n, 3), generator=generator(seed)) * spread


def density(points: torch.Tensor, size: int, sigma: float = 1.0) -> torch.Tensor:
    """Gaussian atoms on a zyx grid about the centre."""
    axis = torch.arange(size) - size // 2
    x, y, z = (torch.exp(-((axis[None] - points[:, i, None]) ** 2) / (2 * sigma**2)) for i in range(3))
    return torch.einsum("az,ay,ax->zyx", z, y, x)


def flat_density(points: torch.Tensor, size: int, sigma: float = 1.0) -> torch.Tensor:
    """Line integral along z of :func:`density`, analytically."""
    axis = torch.arange(size) - size // 2
    x, y = (torch.exp(-((axis[None] - points[:, i, None]) ** 2) / (2 * sigma**2)) for i in range(2))
    return torch.einsum("ay,ax->yx", y, x) * (2 * torch.pi) ** 0.5 * sigma


def test_euler_angles_round_trip_and_follow_relion() -> None:
    r = random_rotations(200, generator())
    torch.testing.assert_close(euler_to_matrix(*matrix_to_euler(r)), r, atol=1e-9, rtol=0)
    # relion_refine --print_symmetry_ops (3.1.3) prints this matrix with Euler angles 90 109.471 -150.
    printed = torch.tensor([[0.5, 0.28867, 0.8165], [0.86603, -0.16667, -0.4714], [0, 0.94281, -0.33333]])
    angles = torch.tensor([90.0, 109.471, -150.0], dtype=torch.float64)
    torch.testing.assert_close(euler_to_matrix(*angles), printed.double(), atol=1e-4, rtol=0)
    for tilt in (0.0, 180.0):
        pole = euler_to_matrix(*torch.tensor([30.0, tilt, 50.0], dtype=torch.float64))
        torch.testing.assert_close(euler_to_matrix(*matrix_to_euler(pole)), pole, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("group", "order"), GROUPS.items())
def test_groups_are_closed_and_complete(group: str, order: int) -> None:
    ops = operators(group)
    assert ops.shape[0] == order
    products = torch.einsum("aij,bjk->abik", ops, ops).reshape(-1, 3, 3)
    assert float(angular_distance(products[:, None], ops[None]).min(dim=1).values.max()) < 1e-5
    torch.testing.assert_close(torch.linalg.det(ops), torch.ones(order, dtype=torch.float64))


def test_operators_match_relions_axes() -> None:
    """Printed by ``relion_refine --sym X --print_symmetry_ops``, version 3.1.3."""
    printed = {
        "C3": [[-0.5, 0.86602539, 0], [-0.86602539, -0.5, 0], [0, 0, 1]],
        "D2": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        "T": [[-1, 0, 0], [0, 0.33333, 0.94281], [0, 0.94281, -0.33333]],
        "O": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
        "I": [[0.5, 0.80902, 0.30902], [-0.80902, 0.30902, 0.5], [0.30902, -0.5, 0.80902]],
        "I1": [[0.80902, -0.5, -0.30902], [0.5, 0.30902, 0.80902], [-0.30902, -0.80902, 0.5]],
    }
    for group, matrix in printed.items():
        distance = angular_distance(torch.tensor(matrix, dtype=torch.float64), operators(group))
        assert float(distance.min()) < 1e-2, group


@pytest.mark.parametrize("bad", ["", "C0", "X", "D", "C-2", "I5"])
def test_unknown_groups_are_refused(bad: str) -> None:
    with pytest.raises(SettingsError, match="symmetry: expected"):
        operators(bad)


@pytest.mark.parametrize("group", ["C4", "D2", "T", "O", "I"])
def test_asymmetric_unit_holds_each_view_once(group: str) -> None:
    r = random_rotations(500, generator())
    views = (r[:, None] @ operators(group)[None])[:, :, 2]
    inside = in_asymmetric_unit(views.reshape(-1, 3), group).reshape(views.shape[:2])
    assert torch.equal(inside.sum(dim=1), torch.ones(500, dtype=torch.int64))
    moved = to_asymmetric_unit(r, group)
    assert bool(in_asymmetric_unit(moved[:, 2], group).all())
    assert float(angular_distance_modulo(moved, r, operators(group)).max()) < 1e-4


def test_healpix_is_equal_area_and_complete() -> None:
    for order in range(4):
        angles = torch.deg2rad(healpix_directions(order))
        assert angles.shape == (12 * 4**order, 2)
        v = torch.stack(
            (
                angles[:, 1].sin() * angles[:, 0].cos(),
                angles[:, 1].sin() * angles[:, 0].sin(),
                angles[:, 1].cos(),
            ),
            -1,
        )
        torch.testing.assert_close(v.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
        second = v.T @ v / v.shape[0]
        torch.testing.assert_close(second, torch.eye(3, dtype=torch.float64) / 3, atol=0.04 / 4**order, rtol=0)
        nearest = (v @ v.T - 2 * torch.eye(v.shape[0], dtype=torch.float64)).max(dim=1).values
        assert float(torch.rad2deg(torch.acos(nearest)).min()) > 0.6 * angular_step(order)


@pytest.mark.parametrize("group", ["C1", "O"])
def test_orientation_grid_leaves_no_hole(group: str) -> None:
    grid = orientation_grid(2, group, random_perturbation(2, generator(3)))
    assert grid.shape[0] == 4608 // len(operators(group)) or group != "C1"
    r = random_rotations(100, generator(1))
    ops = operators(group)
    best = [float(angular_distance((x @ ops)[:, None], grid[None]).min()) for x in r]
    assert max(best) < 15.0


def test_neighbours_and_children_surround_the_identity() -> None:
    step = 3.75
    ring = neighbours(step, 3 * step)
    angle = angular_distance(ring, torch.eye(3, dtype=torch.float64))
    assert float(angle.min()) < 1e-9
    assert float(angle.max()) <= 3 * step + 1e-9
    assert ring.shape[0] == 123
    children = angular_distance(subdivide(step), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(children, torch.full((8,), 3**0.5 * step / 4, dtype=torch.float64))


@pytest.mark.parametrize("size", [32, 33])
def test_slices_are_the_projections_of_the_volume(size: int) -> None:
    points = atoms()
    rotations = random_rotations(4, generator(1)).float()
    images = to_real(project(prepare_volume(density(points, size)), rotations, size), size)
    for image, rotation in zip(images, rotations, strict=True):
        truth = flat_density(points @ rotation.T, size)
        assert float((image - truth).abs().max()) < 0.04 * float(truth.max())


@pytest.mark.parametrize("size", [16, 17])
def test_the_transform_of_a_projection_is_a_central_section(size: int) -> None:
    """The central-section theorem on the grid, and its consequence that projections agree on their common line."""
    volume = torch.randn((size,) * 3, generator=generator(7), dtype=torch.float64)
    whole = to_fourier(volume, 3)
    along_z, along_y = to_fourier(volume.sum(dim=0)), to_fourier(volume.sum(dim=1))
    torch.testing.assert_close(along_z, whole[0])
    torch.testing.assert_close(along_y, whole[:, 0])
    torch.testing.assert_close(along_z[0], along_y[0])


def test_numba_and_torch_slices_agree() -> None:
    reference = prepare_volume(density(atoms(), 16))
    ky, kx = disc_pixels(16, 8)
    rotations = random_rotations(50, generator(4)).float()
    one = slices.project_pixels(reference, rotations, ky, kx)
    two = slices._project_pixels_torch(reference, rotations, ky, kx, 2)
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_disc_pixels_hold_each_friedel_pair_once() -> None:
    for size in (16, 17):
        ky, kx = disc_pixels(size, size / 2)
        pairs = {(int(y), int(x)) for y, x in zip(ky, kx, strict=True)}
        assert len(pairs) == ky.numel()
        assert not any((-y, -x) in pairs for y, x in pairs if (y, x) != (0, 0))
        image = torch.randn((size, size), generator=generator(size))
        limited = put_pixels(take_pixels(to_fourier(image), ky, kx), ky, kx, size)
        again = to_fourier(to_real(limited, size))
        torch.testing.assert_close(again, limited, atol=1e-4, rtol=0)


def reconstruct(images: torch.Tensor, rotations: torch.Tensor, origins: torch.Tensor, size: int) -> torch.Tensor:
    ky, kx = disc_pixels(size, size / 2)
    values = take_pixels(to_fourier(images), ky, kx)
    total = empty_accumulator(size)
    insert(total, values, torch.ones(values.shape), rotations, origins, ky, kx, size=size)
    return finish(enforce_friedel(total), size)


@pytest.mark.parametrize("size", [32, 33])
def test_noise_free_projections_give_the_map_back_with_its_hand(size: int) -> None:
    points = atoms()
    truth = density(points, size)
    rotations = random_rotations(1500, generator(2)).float()
    origins = torch.randn((1500, 2), generator=generator(3)) * 2
    centred = torch.stack([flat_density(points @ r.T, size) for r in rotations])
    images = to_real(shift(to_fourier(centred), -origins, size), size)
    result = to_fourier(reconstruct(images, rotations, origins, size), 3)
    curve = fsc(result, to_fourier(truth, 3))
    assert float(curve[: int(0.45 * size)].min()) > 0.999
    mirrored = to_fourier(truth.flip(0).roll(1 - size % 2, 0), 3)
    assert float(fsc(result, mirrored)[4:12].max()) < 0.8
    assert float((to_real(result, size, 3) - truth).abs().max()) < 0.1 * float(truth.max())


def test_numba_and_torch_insertion_agree() -> None:
    size = 16
    ky, kx = disc_pixels(size, 7)
    g = generator(5)
    values = torch.complex(*(torch.randn((6, ky.numel()), generator=g) for _ in range(2)))
    weights = torch.rand((6, ky.numel()), generator=g)
    rotations = random_rotations(20, g).float()
    shifts = torch.randn((20, 2), generator=g)
    which = torch.randint(0, 6, (20,), generator=g)
    share = torch.rand(20, generator=g)
    one, two = empty_accumulator(size), empty_accumulator(size)
    insert(one, values, weights, rotations, shifts, ky, kx, size=size, pose_image=which, pose_weight=share)
    insert_torch(two, values, weights, which, rotations, shifts, share, ky, kx, size, 2)
    torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)
    assert float(one[..., 2].sum()) == pytest.approx(float((weights[which] * share[:, None]).sum()), rel=1e-4)


def test_symmetrised_accumulator_equals_inserting_every_copy() -> None:
    size = 24
    points = atoms(12, 3.0, seed=7)
    ops = operators("D2").float()
    assembly = torch.cat([points @ s.T for s in ops])
    rotations = random_rotations(300, generator(8)).float()
    images = torch.stack([flat_density(assembly @ r.T, size) for r in rotations])
    ky, kx = disc_pixels(size, size / 2)
    values = take_pixels(to_fourier(images), ky, kx)
    once = empty_accumulator(size)
    zeros = torch.zeros((300, 2))
    insert(once, values, torch.ones(values.shape), rotations, zeros, ky, kx, size=size)
    plain = enforce_friedel(once)
    once, inner = symmetrise(plain, ops, 11), symmetrise(plain, ops, 5)
    axis = torch.fft.fftfreq(2 * size, 0.5 / size)
    near = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + torch.arange(size + 1) ** 2) <= 10**2
    assert torch.equal(inner[near], once[near])
    assert float(inner.abs().sum()) < float(once.abs().sum())
    copies = empty_accumulator(size)
    for s in ops:
        insert(copies, values, torch.ones(values.shape), rotations @ s, zeros, ky, kx, size=size)
    copies = enforce_friedel(copies)
    a = to_fourier(finish(once, size), 3)
    b = to_fourier(finish(copies, size), 3)
    assert float(fsc(a, b)[:11].min()) > 0.99999
    truth = to_fourier(density(assembly, size), 3)
    assert float(fsc(a, truth)[:10].min()) > 0.995


def test_accumulators_of_parts_add_up() -> None:
    size = 16
    ky, kx = disc_pixels(size, 7)
    g = generator(9)
    values = torch.complex(*(torch.randn((40, ky.numel()), generator=g) for _ in range(2)))
    weights = torch.rand((40, ky.numel()), generator=g)
    rotations, shifts = random_rotations(40, g).float(), torch.randn((40, 2), generator=g)

    def part(start: int, stop: int) -> torch.Tensor:
        total = empty_accumulator(size)
        s = slice(start, stop)
        insert(total, values[s], weights[s], rotations[s], shifts[s], ky, kx, size=size)
        return total

    torch.testing.assert_close(part(0, 40), part(0, 13) + part(13, 40), atol=1e-4, rtol=1e-4)


def test_insertion_does_not_change_its_inputs() -> None:
    size = 16
    ky, kx = disc_pixels(size, 7)
    values = torch.ones((2, ky.numel()), dtype=torch.complex64)
    weights, rotations = torch.ones(values.shape), random_rotations(2, generator()).float()
    shifts = torch.ones((2, 2))
    kept = [t.clone() for t in (values, weights, rotations, shifts)]
    insert(empty_accumulator(size), values, weights, rotations, shifts, ky, kx, size=size)
    for before, after in zip(kept, (values, weights, rotations, shifts), strict=True):
        assert torch.equal(before, after)
