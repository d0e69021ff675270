"""Matching on NVIDIA GPUs: products with references of each image's own, and one pass over the scores of shared ones."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Own references: references and numbers of a tile. Scores: numbers a program, and those that share a maximum.
OWN, NUMBERS, OWN_WARPS = 64, 32, 4
SCORES, GROUP, SCORE_WARPS = 4096, 32, 8


@triton.jit
def _own_products(
    shifted,
    weight,
    references,
    index,
    cross,
    energy,
    n_shifts,
    n_own,
    n_pixels,
    tile: tl.constexpr,
    own: tl.constexpr,
    numbers: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * own + tl.arange(0, own)
    t = tl.program_id(2) * tile + tl.arange(0, tile)
    row = tl.load(index + b * n_own + r, mask=r < n_own, other=0)
    n = 2 * n_pixels
    left = shifted + ((b * n_shifts + t) * n)[:, None]
    right = references + (row * n)[:, None]
    total = tl.zeros((tile, own), tl.float32)
    power = tl.zeros((own,), tl.float32)
    for first in range(0, n, numbers):
        k = first + tl.arange(0, numbers)
        a = tl.load(left + k[None, :], mask=(t < n_shifts)[:, None] & (k < n)[None, :], other=0.0)
        v = tl.load(right + k[None, :], mask=(r < n_own)[:, None] & (k < n)[None, :], other=0.0)
        w = tl.load(weight + b * n_pixels + k // 2, mask=k < n, other=0.0)
        total = tl.dot(a, tl.trans(v), total, input_precision="tf32x3")
        power += tl.sum(v * v * w[None, :], axis=1)
    held = (t < n_shifts)[:, None] & (r < n_own)[None, :]
    tl.store(cross + ((b * n_shifts + t) * n_own)[:, None] + r[None, :], total, mask=held)
    if tl.program_id(2) == 0:
        tl.store(energy + b * n_own + r, power, mask=r < n_own)


def own_products_triton(shifted: Tensor, weight: Tensor, references: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`~cryoseg_dist.kernels.matching.own_products` returns, without gathering the references.

    Numbers are split in three for the matrix units, whose products then are nearly those of float32.

    Parameters
    ----------
    shifted : Tensor, float32, shape (b, t, 2 p)
    weight : Tensor, float32, shape (b, p)
    references : Tensor, complex64, shape (n, p)
    index : Tensor, int64, shape (b, r)
    """
    b, t, n = shifted.shape
    r = index.shape[1]
    cross = torch.empty((b, t, r), device=shifted.device)
    energy = torch.empty((b, r), device=shifted.device)
    tile = min(64, max(16, triton.next_power_of_2(t)))
    _own_products[(b, triton.cdiv(r, OWN), triton.cdiv(t, tile))](
        shifted.contiguous(),
        weight.contiguous(),
        torch.view_as_real(references.contiguous()),
        index.contiguous(),
        cross,
        energy,
        t,
        r,
        n // 2,
        tile=tile,
        own=OWN,
        numbers=NUMBERS,
        num_warps=OWN_WARPS,
    )
    return cross, energy


@triton.jit
def _summarise(
    cross,
    energy,
    prior,
    group_best,
    block_best,
    block_sum,
    n_references,
    n_scores,
    n_blocks,
    has_prior: tl.constexpr,
    any_scale: tl.constexpr,
    scores: tl.constexpr,
    group: tl.constexpr,
):
    block = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    i = block * scores + tl.arange(0, scores)
    held = i < n_scores
    t, r = i // n_references, i % n_references
    value = tl.load(cross + b * n_scores + i, mask=held, other=0.0)
    power = tl.load(energy + b * n_references + r, mask=held, other=1.0)
    if any_scale:
        positive = tl.maximum(value, 0.0)
        value = 0.5 * positive * positive / tl.maximum(power, 1e-12)
    else:
        value -= 0.5 * power
    if has_prior:
        value += tl.load(prior + b * (n_scores // n_references) + t, mask=held, other=0.0)
    value = tl.where(held, value, -float("inf"))
    best = tl.max(value, axis=0)
    tl.store(block_best + b * n_blocks + block, best)
    tl.store(block_sum + b * n_blocks + block, tl.sum(tl.exp(value - best), axis=0))
    of_group = tl.max(tl.reshape(value, (scores // group, group)), axis=1)
    at = b * n_blocks * (scores // group) + block * (scores // group) + tl.arange(0, scores // group)
    tl.store(group_best + at, of_group)


def best_scores_triton(
    cross: Tensor, energy: Tensor, prior: Tensor | None, keep: int, any_scale: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The best scores of each image and the logarithm of the sum of all likelihoods.

    The scores are read once and never written: the best lie in the groups of neighbours with the best maxima.

    Parameters
    ----------
    cross : Tensor, float32, shape (b, t, r)
    energy : Tensor, float32, shape (b, r)
    prior : Tensor, float32, shape (b, t), optional
    keep : int
    any_scale : bool

    Returns
    -------
    values, places : Tensor, shape (b, at most keep)
        Places count through (t, r).
    log_sum : Tensor, shape (b,)
    """
    b, t, r = cross.shape
    n, n_blocks = t * r, triton.cdiv(t * r, SCORES)
    group_best = torch.empty((b, n_blocks * (SCORES // GROUP)), device=cross.device)
    block_best, block_sum = (torch.empty((b, n_blocks), device=cross.device) for _ in range(2))
    _summarise[(n_blocks, b)](
        cross,
        energy,
        cross if prior is None else prior.contiguous(),
        group_best,
        block_best,
        block_sum,
        r,
        n,
        n_blocks,
        has_prior=prior is not None,
        any_scale=any_scale,
        scores=SCORES,
        group=GROUP,
        num_warps=SCORE_WARPS,
    )
    log_sum = torch.logsumexp(block_best + block_sum.log(), dim=1)
    groups = group_best.topk(min(keep, group_best.shape[1]), dim=1).indices
    places = (groups[..., None] * GROUP + torch.arange(GROUP, device=cross.device)).flatten(1)
    held, places = places < n, places.clamp(max=n - 1)
    value, power = cross.view(b, n).gather(1, places), energy.gather(1, places % r)
    if any_scale:
        value = 0.5 * value.clamp(min=0.0).square() / power.clamp(min=1e-12)
    else:
        value = value - 0.5 * power
    if prior is not None:
        value = value + prior.gather(1, places // r)
    top = torch.where(held, value, -torch.inf).topk(min(keep, n, value.shape[1]), dim=1)
    return top.values, places.gather(1, top.indices), log_sum
