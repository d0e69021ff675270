"""Runs the Triton kernels in Triton's interpreter; prints a relative error a line. Started by ``test_triton_kernels.py``."""

import torch
from test_triton_kernels import GROUPS, exact_sum, images_to_weigh, slices_to_insert

from cryoseg_dist.kernels.insertion_triton import insert_triton
from cryoseg_dist.kernels.matching import Observations, as_real, own_products
from cryoseg_dist.kernels.matching_triton import best_scores_triton, own_products_triton
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels
from cryoseg_dist.kernels.slices_triton import project_triton
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.weighing import weigh
from cryoseg_dist.kernels.weighing_triton import weigh_triton


def tell(name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Print the relative error of ``a``."""
    print(name, float((a - b).abs().square().sum().sqrt() / b.abs().square().sum().sqrt()))


for size, padding in ((10, 2), (10, 1), (9, 2)):
    given = slices_to_insert(size)
    exact = exact_sum(given, size, padding)
    for apart in (3, 4):
        m = size * padding
        total = torch.zeros((m, m, m // 2 + 1, apart))[..., :3]
        insert_triton(total, *given, size, padding, vector=False)
        tell("insertion", total, exact)
    ky, kx = given[-2:]
    g = torch.Generator().manual_seed(size)
    volume, rotations = prepare_volume(torch.randn((size,) * 3, generator=g), padding), random_rotations(5, g).float()
    slices = project_triton(volume, rotations, ky, kx, padding)
    tell("slices", slices, project_pixels(volume, rotations, ky, kx, padding))
    images, columns, inverse = images_to_weigh(size)
    microscope = Microscope(GROUPS, size, ky, kx)
    wanted = weigh(images, microscope, columns, inverse, ky, kx)
    got = weigh_triton(torch.fft.rfft2(images), microscope, columns, inverse, ky, kx, size)
    tell("weighing", got[0], wanted[0])
    tell("weighing", got[1], wanted[1])

for t, r, n in ((20, 70, 9), (3, 5, 20)):
    g = torch.Generator().manual_seed(t)
    ky, kx = disc_pixels(12, 5)
    p = len(ky)
    observed = Observations(torch.randn((4, p), generator=g, dtype=torch.complex64), torch.rand((4, p), generator=g))
    phases = torch.randn((t, p), generator=g, dtype=torch.complex64)
    references = torch.randn((n, p), generator=g, dtype=torch.complex64)
    index = torch.randint(0, n, (4, r), generator=g)
    wanted = own_products(observed, phases, references, index)
    shifted = as_real(observed.data[:, None] * phases)
    for a, b in zip(own_products_triton(shifted, observed.weight, references, index), wanted, strict=True):
        tell("own products", a, b)

for any_scale in (False, True):
    cross, energy = torch.randn((3, 13, 700), generator=g), torch.rand((3, 700), generator=g)
    prior = torch.randn((3, 13), generator=g)
    values, places, log_sum = best_scores_triton(cross, energy, prior, 40, any_scale)
    scores = 0.5 * cross.clamp(min=0.0).square() / energy[:, None] if any_scale else cross - 0.5 * energy[:, None]
    scores = (scores + prior[..., None]).flatten(1)
    top = scores.topk(40)
    tell("best scores", values, top.values)
    tell("places of the best", places.float(), top.indices.float())
    tell("sum of likelihoods", log_sum, scores.logsumexp(1))
