"""Scores of poses against a plain evaluation of chi squared."""

import math

import torch

from cryoseg_dist.kernels.matching import log_likelihood, observe, search, shift_phases, significant
from cryoseg_dist.kernels.slices import disc_pixels

SIZE = 12


def setting() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    ky, kx = disc_pixels(SIZE, 5)
    n = ky.numel()
    images = torch.complex(*(torch.randn((3, n), generator=g) for _ in range(2)))
    references = torch.complex(*(torch.randn((7, n), generator=g) for _ in range(2)))
    ctf = torch.rand((3, n), generator=g) * 2 - 1
    noise = torch.rand(n, generator=g) + 0.5
    shifts = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-2.0, 1.0]])
    return images, references, ctf, noise, shifts, ky, kx


def chi_squared(image: torch.Tensor, reference: torch.Tensor, ctf: torch.Tensor, noise: torch.Tensor) -> float:
    return float(((image - ctf * reference).abs().square().double() / noise.double()).sum())


def test_scores_are_chi_squared_up_to_a_constant_of_the_image() -> None:
    images, references, ctf, noise, shifts, ky, kx = setting()
    scores = log_likelihood(observe(images, ctf, noise), shift_phases(shifts, ky, kx, SIZE), references)
    assert scores.shape == (3, 3, 7)
    for b in range(3):
        constant = 0.5 * float((images[b].abs().square() / noise).sum())
        for t, (sx, sy) in enumerate(shifts.tolist()):
            angle = -2 * math.pi * (kx * sx + ky * sy) / SIZE
            moved = images[b] * torch.polar(torch.ones_like(angle), angle)
            for r in range(7):
                direct = constant - 0.5 * chi_squared(moved, references[r], ctf[b], noise)
                assert abs(direct - float(scores[b, t, r])) < 1e-3


def test_any_scale_is_the_maximum_over_positive_scales() -> None:
    images, references, ctf, noise, shifts, ky, kx = setting()
    observed = observe(images, ctf, noise)
    phases = shift_phases(shifts, ky, kx, SIZE)
    free = log_likelihood(observed, phases, references, any_scale=True)
    tried = torch.stack([log_likelihood(observed, phases, s * references) for s in torch.linspace(0, 2, 401)])
    torch.testing.assert_close(free, tried.max(dim=0).values, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(
        free, log_likelihood(observed, phases, 17.0 * references, any_scale=True), atol=1e-4, rtol=1e-4
    )


def test_search_in_chunks_equals_search_at_once() -> None:
    images, references, ctf, noise, shifts, ky, kx = setting()
    observed = observe(images, ctf, noise)
    phases = shift_phases(shifts, ky, kx, SIZE)
    whole = search(observed, phases, [references], keep=6)
    parts = search(observed, phases, list(references.split(2)), keep=6)
    torch.testing.assert_close(whole.score, parts.score)
    assert torch.equal(whole.shift, parts.shift)
    assert torch.equal(whole.rotation, parts.rotation)
    torch.testing.assert_close(whole.log_sum, parts.log_sum)
    every = log_likelihood(observed, phases, references)
    torch.testing.assert_close(whole.log_sum, every.flatten(1).logsumexp(1))
    best = every.flatten(1).argmax(dim=1)
    assert torch.equal(whole.shift[:, 0] * 7 + whole.rotation[:, 0], best)


def test_significant_poses_hold_the_share() -> None:
    weights = torch.tensor([[0.6, 0.3, 0.06, 0.04], [0.9995, 0.0003, 0.0001, 0.0001]])
    count = significant(weights.log(), torch.zeros(2), 0.95)
    assert count.tolist() == [3, 1]
