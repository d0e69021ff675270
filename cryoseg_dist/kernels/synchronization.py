"""Orientations from common lines: angular voting, hands, and synchronisation.

Three images with their three common lines fix the angles between their planes, up to the hand: the relative rotation
``R_ij = A_i A_j^T = Rz(angle_ij) Rx(gamma) Rz(-angle_ji)`` is known up to the sign of ``gamma``, that is up to a
conjugation with ``J = diag(1, 1, -1)``. Votes of all third images give ``gamma`` (Singer et al. 2010), the triangles of
pairs which of them have the same hand (Pragier & Shkolnisky 2019), and eigenvectors the orientations (Singer &
Shkolnisky 2011).
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from cryoseg_dist.kernels.common_lines import CommonLines, pair_number, pairs_of

# Bins of a degree on 0 .. 180, and the spread of votes in degrees.
BINS, SPREAD = 181, 3.0
# Triangles flatter than this say nothing of the angle between planes.
FLAT = 1e-3
# Entries of a relative rotation that J changes the sign of.
FLIPPED = np.array([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])


@dataclass(frozen=True, slots=True)
class RelativeRotations:
    """Rotations between pairs of images.

    Attributes
    ----------
    matrix : Tensor, float64, shape (n, n, 3, 3)
        ``A_i A_j^T``; ``matrix[j, i]`` is the transpose of ``matrix[i, j]``.
    weight : Tensor, float64, shape (n, n)
        How far the votes agree, 0 to 1; symmetric, zero on the diagonal.
    """

    matrix: Tensor
    weight: Tensor


@numba.njit(nogil=True, cache=True)
def _vote(angle: np.ndarray, score: np.ndarray, votes: np.ndarray, total: np.ndarray) -> None:
    n = angle.shape[0]
    for i in range(n):
        for j in range(i + 1, n):
            p = pair_number(i, j, n)
            for k in range(n):
                if k in (i, j):
                    continue
                a = angle[i, k] - angle[i, j]
                b = angle[j, k] - angle[j, i]
                ca, cb, cc = np.cos(a), np.cos(b), np.cos(angle[k, i] - angle[k, j])
                weight = score[i, k] * score[j, k]
                total[p] += weight
                volume = 1.0 + 2.0 * ca * cb * cc - ca * ca - cb * cb - cc * cc
                if volume < FLAT:
                    continue
                cosine = (cc - ca * cb) / (np.sin(a) * np.sin(b))
                gamma = np.degrees(np.arccos(min(1.0, max(-1.0, cosine))))
                low = int(gamma)
                votes[p, low] += weight * (1.0 - (gamma - low))
                votes[p, min(low + 1, BINS - 1)] += weight * (gamma - low)


def _smoothing() -> Tensor:
    """Gaussian kernel on the bins, reflected at 0 and 180 degrees; shape (BINS, BINS)."""
    at = torch.arange(BINS, dtype=torch.float64)
    out = torch.zeros((BINS, BINS), dtype=torch.float64)
    for mirrored in (at, -at, 360.0 - at):
        out += torch.exp(-0.5 * ((at[:, None] - mirrored) / SPREAD).square())
    return out


def rotations_about(axis: str, degrees: Tensor) -> Tensor:
    """Active rotations about ``x`` or ``z``; (...,) to (..., 3, 3)."""
    angle = torch.deg2rad(degrees.double())
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = (one, zero, zero, zero, c, -s, zero, s, c) if axis == "x" else (c, -s, zero, s, c, zero, zero, zero, one)
    return torch.stack(rows, dim=-1).reshape(*angle.shape, 3, 3)


def vote(lines: CommonLines) -> RelativeRotations:
    """Relative rotations, each up to the hand, by the votes of all third images.

    The density of votes of a pair is estimated with a Gaussian kernel; its highest peak gives the angle between the
    planes, its height the weight.
    """
    n = len(lines.angle)
    n_pairs = n * (n - 1) // 2
    votes, total = np.zeros((n_pairs, BINS)), np.zeros(n_pairs)
    score = lines.score.clamp(min=0.0).numpy()
    _vote(torch.deg2rad(lines.angle).numpy(), score, votes, total)
    density = torch.from_numpy(votes) @ _smoothing()
    peak, top = density.max(dim=1)
    around = (torch.arange(BINS) - top[:, None]).abs() <= 2.0 * SPREAD
    near = torch.from_numpy(votes) * around
    mean = (near @ torch.arange(BINS, dtype=torch.float64)) / near.sum(dim=1).clamp(min=1e-12)
    gamma = torch.where(near.sum(dim=1) > 0, mean, top.double())
    i, j = (torch.from_numpy(v) for v in pairs_of(n))
    relative = (
        rotations_about("z", lines.angle[i, j]) @ rotations_about("x", gamma) @ rotations_about("z", -lines.angle[j, i])
    )
    matrix = torch.eye(3, dtype=torch.float64).repeat(n, n, 1, 1)
    matrix[i, j], matrix[j, i] = relative, relative.transpose(1, 2)
    weight = torch.zeros((n, n), dtype=torch.float64)
    weight[i, j] = weight[j, i] = peak / torch.from_numpy(total).clamp(min=1e-12)
    return RelativeRotations(matrix, weight)


@numba.njit(nogil=True, cache=True)
def _product_distance(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """Squared distance of ``a b`` from ``c``."""
    out = 0.0
    for row in range(3):
        for column in range(3):
            value = a[row, 0] * b[0, column] + a[row, 1] * b[1, column] + a[row, 2] * b[2, column] - c[row, column]
            out += value * value
    return out


@numba.njit(nogil=True, cache=True)
def _triangles(
    matrix: np.ndarray, flipped: np.ndarray, weight: np.ndarray, signs: np.ndarray, power: np.ndarray
) -> None:
    """For each triangle of pairs, which of the three has the other hand (3: none), and how clearly."""
    n = matrix.shape[0]
    distance = np.empty(4)
    t = 0
    for i in range(n):
        for j in range(i + 1, n):
            for k in range(j + 1, n):
                a, b, c = matrix[i, j], matrix[j, k], matrix[i, k]
                distance[0] = _product_distance(flipped[i, j], b, c)
                distance[1] = _product_distance(a, flipped[j, k], c)
                distance[2] = _product_distance(a, b, flipped[i, k])
                distance[3] = _product_distance(a, b, c)
                best = 0
                for q in range(1, 4):
                    if distance[q] < distance[best]:
                        best = q
                second = 1e30
                for q in range(4):
                    if q != best and distance[q] < second:
                        second = distance[q]
                signs[t] = best
                clear = 1.0 - np.sqrt(distance[best] / max(second, 1e-12))
                power[t] = clear * weight[i, j] * weight[j, k] * weight[i, k]
                t += 1


@numba.njit(nogil=True, cache=True)
def _hand_product(n: int, signs: np.ndarray, power: np.ndarray, vector: np.ndarray, out: np.ndarray) -> None:
    t = 0
    for i in range(n):
        for j in range(i + 1, n):
            ij = pair_number(i, j, n)
            for k in range(j + 1, n):
                jk, ik = pair_number(j, k, n), pair_number(i, k, n)
                w, odd = power[t], signs[t]
                a = -w if odd == 0 or odd == 1 else w
                b = -w if odd == 1 or odd == 2 else w
                c = -w if odd == 0 or odd == 2 else w
                out[ij] += a * vector[jk] + c * vector[ik]
                out[jk] += a * vector[ij] + b * vector[ik]
                out[ik] += b * vector[jk] + c * vector[ij]
                t += 1


def synchronise_hands(relative: RelativeRotations, iterations: int = 200, tolerance: float = 1e-4) -> RelativeRotations:
    """Give all relative rotations one hand: the sign of the leading eigenvector of the triangles' verdicts.

    Which of the two hands it is, common lines cannot tell.
    """
    matrix, weight = relative.matrix.numpy(), relative.weight.numpy()
    n = len(matrix)
    if n < 3:
        return relative
    flipped = matrix * FLIPPED
    n_triangles = n * (n - 1) * (n - 2) // 6
    signs, power = np.empty(n_triangles, dtype=np.int8), np.empty(n_triangles)
    _triangles(matrix, flipped, weight, signs, power)
    vector = np.random.default_rng(0).normal(size=n * (n - 1) // 2)
    vector /= np.linalg.norm(vector)
    # A multiple of the identity keeps eigenvalues positive, so that the power iteration cannot alternate.
    offset = 2.0 * float(power.sum()) / len(vector)
    for _ in range(iterations):
        product = offset * vector
        _hand_product(n, signs, power, vector, product)
        product /= max(float(np.linalg.norm(product)), 1e-30)
        change = float(np.abs(product - vector).max() / np.abs(product).max())
        vector = product
        if change < tolerance:
            break
    i, j = pairs_of(n)
    other = vector < 0
    out = matrix.copy()
    out[i[other], j[other]] = flipped[i[other], j[other]]
    out[j[other], i[other]] = flipped[j[other], i[other]]
    return RelativeRotations(torch.from_numpy(out), relative.weight)


def nearest_rotations(matrices: Tensor) -> Tensor:
    """Rotations nearest to matrices (..., 3, 3) in the Frobenius norm."""
    u, _, v = torch.linalg.svd(matrices)
    sign = torch.linalg.det(u @ v)
    u = u * torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), dim=-1)[..., None, :]
    return u @ v


def synchronise_rotations(relative: RelativeRotations, rounds: int = 10, softness: float = 0.2) -> Tensor:
    """Orientations from relative rotations of one hand, up to a rotation of all.

    Three leading eigenvectors of the weighted matrix of relative rotations, in float64; then, to be robust, the same with
    weights that fall with the square of a pair's distance from what the orientations say (a Cauchy loss by iteratively
    reweighted least squares: pairs whose votes went wrong stop counting).

    Parameters
    ----------
    relative : RelativeRotations
        After :func:`synchronise_hands`.
    rounds : int
        Reweightings.
    softness : float
        Distance (Frobenius norm) below which a pair keeps its weight.

    Returns
    -------
    Tensor, float64, shape (n, 3, 3)
    """
    matrix, weight = relative.matrix, relative.weight.clone()
    n = len(matrix)
    rotations = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    for _ in range(rounds + 1):
        degree = weight.sum(dim=1).clamp(min=1e-12)
        scale = (weight / (degree[:, None] * degree[None]).sqrt())[..., None, None]
        block = (scale * matrix).permute(0, 2, 1, 3).reshape(3 * n, 3 * n)
        vectors = torch.linalg.eigh(0.5 * (block + block.T)).eigenvectors[:, -3:].reshape(n, 3, 3)
        if float((weight.sum(dim=1) * torch.linalg.det(vectors).sign()).sum()) < 0:
            vectors = vectors * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
        rotations = nearest_rotations(vectors)
        apart = (matrix - rotations[:, None] @ rotations[None].transpose(2, 3)).square().sum((2, 3)).sqrt()
        weight = relative.weight / (apart.square() + softness**2)
    return rotations


def align_orientations(found: Tensor, truth: Tensor) -> tuple[Tensor, bool]:
    """Turn orientations into the frame, and the hand, of others.

    Parameters
    ----------
    found, truth : Tensor, float64, shape (n, 3, 3)

    Returns
    -------
    Tensor, float64, shape (n, 3, 3)
        ``found`` in the frame of ``truth``.
    bool
        Whether ``found`` has the other hand.
    """
    hand = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    best: tuple[float, Tensor, bool] | None = None
    for mirrored in (False, True):
        candidate = hand @ found @ hand if mirrored else found
        # Averaging over all images fails where few are right: the frame that most images agree on.
        frames = candidate.transpose(1, 2) @ truth
        apart = (frames[:, None] - frames[None]).square().sum((2, 3)).sqrt()
        middle = int(apart.clamp(max=0.5).sum(dim=1).argmin())
        near = apart[middle] < 0.5
        frame = nearest_rotations(frames[near].mean(dim=0))
        aligned = candidate @ frame
        misfit = float((aligned - truth).square().sum((1, 2)).sqrt().clamp(max=0.5).mean())
        if best is None or misfit < best[0]:
            best = (misfit, aligned, mirrored)
    if best is None:
        raise ValueError("no orientations")
    return best[1], best[2]


def solve_origins(shift: Tensor, angle: Tensor, weight: Tensor, rounds: int = 10, softness: float = 0.5) -> Tensor:
    """Image origins from the shifts along common lines, by robust least squares.

    Parameters
    ----------
    shift, angle, weight : Tensor, float64, shape (n, n)
        ``e_i . t_i - e_j . t_j`` in pixels, degrees, and a weight for each pair; entries ``i < j`` are used.
    rounds : int
        Reweightings by the residual.
    softness : float
        Residual in pixels below which a pair keeps its weight.

    Returns
    -------
    Tensor, float64, shape (n, 2)
        Origins ``-t`` (x, y) in pixels: what is added to centre the images. Of all solutions, which differ by a shift of
        the map, the shortest.
    """
    n = len(shift)
    i, j = (torch.from_numpy(v) for v in pairs_of(n))
    p = torch.arange(len(i))
    design = torch.zeros((len(i), n, 2), dtype=torch.float64)
    own, other = torch.deg2rad(angle[i, j]), torch.deg2rad(angle[j, i])
    design[p, i] = torch.stack((own.cos(), own.sin()), dim=1)
    design[p, j] = -torch.stack((other.cos(), other.sin()), dim=1)
    design = design.reshape(len(i), 2 * n)
    target, fixed = shift[i, j], weight[i, j].clamp(min=0.0)
    scale = fixed.clone()
    moved = torch.zeros(2 * n, dtype=torch.float64)
    for _ in range(rounds + 1):
        normal = design.T @ (scale[:, None] * design)
        moved = torch.linalg.pinv(normal, rtol=1e-6, hermitian=True) @ (design.T @ (scale * target))
        scale = fixed / ((design @ moved - target).square() + softness**2)
    return -moved.reshape(n, 2)
