"""Likelihoods of poses: images against reference projections that all of them share.

With ``A = X CTF / sigma^2`` and ``W = CTF^2 / sigma^2`` the log-likelihood of an image at rotation ``R`` and shift ``t`` is, up to a
constant of the image, ``Re<A e^{-2 pi i k t}, P_R> - <W, |P_R|^2> / 2``: one matrix product over all images, shifts and rotations, and a
small one without the shifts. Fourier pixels are those of ``slices.disc_pixels``, each Friedel pair once; ``sigma^2`` is the variance of
one component (real or imaginary) of the noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from cryoseg_dist.kernels.triton_support import has_triton


@dataclass(frozen=True, slots=True)
class Observations:
    """Images ready to be matched.

    Attributes
    ----------
    data : Tensor, complex64, shape (b, p)
        ``X CTF / sigma^2``.
    weight : Tensor, float32, shape (b, p)
        ``CTF^2 / sigma^2``.
    """

    data: Tensor
    weight: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Observations":
        return Observations(self.data[index], self.weight[index])

    def within(self, n_pixels: int) -> "Observations":
        """The first pixels alone: those of a smaller disc."""
        return Observations(self.data[:, :n_pixels], self.weight[:, :n_pixels])


def observe(images: Tensor, ctf: Tensor, noise: Tensor) -> Observations:
    """Weight transforms for matching.

    Parameters
    ----------
    images : Tensor, complex64, shape (b, p)
    ctf : Tensor, float32, shape (b, p)
    noise : Tensor, float32, shape (p,)
        ``sigma^2`` at each pixel.
    """
    return Observations(images * (ctf / noise), ctf * ctf / noise)


def shift_phases(shifts_px: Tensor, ky: Tensor, kx: Tensor, size: int) -> Tensor:
    """Phase factors that add ``shifts_px`` (x, y) to an image; shape (..., t, 2) to complex64 (..., t, p)."""
    angle = (shifts_px[..., 0, None] * kx + shifts_px[..., 1, None] * ky) * (-2.0 * torch.pi / size)
    return torch.polar(torch.ones_like(angle), angle)


def as_real(values: Tensor) -> Tensor:
    """Complex (..., p) to real (..., 2 p)."""
    return torch.view_as_real(values.contiguous()).flatten(-2)


def left_factor(a: Tensor) -> Tensor:
    """What :func:`product` takes as its first matrix, (m, k)."""
    return a if a.device.type == "cpu" else _split(a, (1, 0, 0))


def product(left: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` of float32 matrices, of which ``left`` is the :func:`left_factor` of ``a``.

    The matrix units of a GPU take short numbers: each is split into two bfloat16, and the three greater of their four
    products are summed in float32. Relative to the norms of the rows the error is some 1e-6.
    """
    if b.device.type == "cpu":
        return left @ b.T
    return torch.mm(left, _split(b, (0, 1, 0)).T, out_dtype=torch.float32)


def _split(values: Tensor, parts: tuple[int, int, int]) -> Tensor:
    """Three copies of a matrix in bfloat16 side by side, each the rounded numbers (0) or what rounding left (1)."""
    m, k = values.shape
    # Rows start at multiples of 16 bytes: else the fast matrix kernels are out of reach.
    out = torch.zeros((m, 3, -(-k // 8) * 8), dtype=torch.bfloat16, device=values.device)
    high = values.to(torch.bfloat16)
    for i, rest in enumerate(parts):
        out[:, i, :k] = values - high if rest else high
    return out.flatten(1)


def own_products(
    observations: Observations, phases: Tensor, references: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Both products where each image has references of its own.

    Parameters
    ----------
    phases : Tensor, complex64, shape (t, p) or (b, t, p)
    references : Tensor, complex64, shape (n, p)
    index : Tensor, int64, shape (b, r)
        Rows of ``references``.

    Returns
    -------
    cross : Tensor, shape (b, t, r)
    energy : Tensor, shape (b, r)
    """
    shifted = _shifted(observations, phases)
    if has_triton(shifted.device):
        from cryoseg_dist.kernels.matching_triton import own_products_triton

        return own_products_triton(shifted, observations.weight, references, index)
    own = references[index]
    power = own.real.square() + own.imag.square()
    return shifted @ as_real(own).mT, (power @ observations.weight[..., None])[..., 0]


def log_likelihood(
    observations: Observations,
    phases: Tensor,
    references: Tensor,
    index: Tensor | None = None,
    *,
    any_scale: bool = False,
) -> Tensor:
    """Log-likelihood of all images, shifts and references, up to a constant of the image.

    Parameters
    ----------
    observations, phases, references
        ``phases`` (t, p) and ``references`` (r, p) are shared by all images; with ``index`` they are as of :func:`own_products`.
    index : Tensor, optional
    any_scale : bool
        Maximise over a positive scale of the reference for each image and pose, for references whose grey
        scale is not that of the images.

    Returns
    -------
    Tensor, float32, shape (b, t, r)
    """
    if index is None:
        cross, energy = _shared_products(_Images(observations, phases), references)
    else:
        cross, energy = own_products(observations, phases, references, index)
    return _scores(cross, energy, any_scale)


def _scores(cross: Tensor, energy: Tensor, any_scale: bool) -> Tensor:
    if any_scale:
        return 0.5 * cross.clamp(min=0.0).square() / energy[:, None].clamp(min=1e-12)
    return cross - 0.5 * energy[:, None]


def _shifted(observations: Observations, phases: Tensor) -> Tensor:
    """Each image at each shift, float32, (b, t, 2 p)."""
    return as_real(observations.data[:, None] * phases)


class _Images:
    """Images at all shifts, ready for products with one chunk of references after another."""

    def __init__(self, observations: Observations, phases: Tensor) -> None:
        self.observations = observations
        shifted = _shifted(observations, phases)
        self.shape, self.left = shifted.shape[:2], left_factor(shifted.flatten(0, 1))


def _shared_products(images: _Images, references: Tensor) -> tuple[Tensor, Tensor]:
    """``Re<A e^{-2 pi i k t}, P_R>`` (b, t, r) and ``<W, |P_R|^2>`` (b, r), references (r, p) being shared."""
    cross = product(images.left, as_real(references)).unflatten(0, images.shape)
    return cross, images.observations.weight @ (references.real.square() + references.imag.square()).T


@dataclass(frozen=True, slots=True)
class Best:
    """The best poses of each image so far, and the sum over all seen.

    Attributes
    ----------
    score : Tensor, float32, shape (b, k)
        Log-likelihood, best first.
    shift, rotation : Tensor, int64, shape (b, k)
        Indices.
    log_sum : Tensor, float32, shape (b,)
        Logarithm of the sum of the likelihoods of all poses seen.
    """

    score: Tensor
    shift: Tensor
    rotation: Tensor
    log_sum: Tensor


def joined(parts: Sequence[Best]) -> Best:
    """Those of all images, given those of some after those of others, equally many poses of each."""
    return Best(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Best)))


def search(
    observations: Observations,
    phases: Tensor,
    reference_chunks: list[Tensor],
    keep: int,
    *,
    index: Tensor | None = None,
    prior: Tensor | None = None,
    any_scale: bool = False,
) -> Best:
    """Score all poses, chunk by chunk of references, never holding more than one chunk's scores.

    Parameters
    ----------
    observations : Observations
    phases : Tensor, complex64, shape (t, p)
    reference_chunks : list of Tensor, complex64, shape (r_i, p)
        Numbered through.
    keep : int
        Poses kept an image.
    index : Tensor, int64, shape (b, r), optional
        Rows of the only chunk that are each image's own references; rotations then count within a row of it.
    prior : Tensor, shape (b, t), optional
        Logarithm of the prior of each image's shifts.
    """
    best: Best | None = None
    first = 0
    if index is None:
        products = partial(_shared_products, _Images(observations, phases))
    else:
        products = partial(own_products, observations, phases, index=index)
    for references in reference_chunks:
        cross, energy = products(references)
        n_references = energy.shape[1]
        values, places, log_sum = _best_scores(cross, energy, prior, keep, any_scale)
        found = Best(values, places // n_references, places % n_references + first, log_sum)
        best = found if best is None else _merged(best, found, keep)
        first += n_references
    if best is None:
        raise ValueError("no references")
    return best


def _best_scores(
    cross: Tensor, energy: Tensor, prior: Tensor | None, keep: int, any_scale: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Best scores, their places in (t, r), and the logarithm of the sum of all likelihoods."""
    if has_triton(cross.device):
        from cryoseg_dist.kernels.matching_triton import best_scores_triton

        return best_scores_triton(cross, energy, prior, keep, any_scale)
    score = _scores(cross, energy, any_scale)
    if prior is not None:
        score += prior[..., None]
    flat = score.flatten(1)
    top = flat.topk(min(keep, flat.shape[1]), dim=1)
    return top.values, top.indices, torch.logsumexp(flat, dim=1)


def _merged(a: Best, b: Best, keep: int) -> Best:
    score = torch.cat((a.score, b.score), dim=1)
    top = score.topk(min(keep, score.shape[1]), dim=1)
    return Best(
        top.values,
        torch.cat((a.shift, b.shift), dim=1).gather(1, top.indices),
        torch.cat((a.rotation, b.rotation), dim=1).gather(1, top.indices),
        torch.logaddexp(a.log_sum, b.log_sum),
    )


def significant(score: Tensor, log_sum: Tensor, share: float) -> Tensor:
    """How many of the poses, best first, hold ``share`` of the posterior; at least one.

    Parameters
    ----------
    score : Tensor, shape (b, k)
        Best first.
    log_sum : Tensor, shape (b,)

    Returns
    -------
    Tensor, int64, shape (b,)
    """
    held = torch.exp(score - log_sum[:, None]).cumsum(dim=1)
    return (held < share).sum(dim=1).add(1).clamp(max=score.shape[1])
