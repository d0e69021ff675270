"""The kernels against double precision."""

import torch

from cryoseg_dist.kernels.accumulator import empty_accumulator
from cryoseg_dist.kernels.insertion_torch import insert_torch
from cryoseg_dist.kernels.matching import Observations, own_products, search
from cryoseg_dist.kernels.microscope import Microscope
from cryoseg_dist.kernels.slices import disc_pixels, prepare_volume, project_pixels
from cryoseg_dist.kernels.so3 import random_rotations
from cryoseg_dist.kernels.weighing import weigh
from cryoseg_dist.schema.optics import Optics
from tests.benchmarks.gpu.measuring import DEVICE, columns_of, generator, relative, tell


def check() -> None:
    """Each kernel against double precision on the processor, on fresh numbers."""
    from cryoseg_dist.kernels.insertion_triton import insert_triton
    from cryoseg_dist.kernels.slices_triton import project_triton

    for size, padding in ((48, 2), (48, 1), (33, 2)):
        g = generator(size + padding)
        ky, kx = disc_pixels(size, size / 2)
        b, q = 60, 90
        images = torch.randn((b, len(ky)), generator=g, dtype=torch.complex64)
        weights = torch.rand((b, len(ky)), generator=g)
        which = torch.randint(0, b, (q,), generator=g)
        rotations, shifts = random_rotations(q, g).float(), 4.0 * torch.randn((q, 2), generator=g)
        share = torch.rand(q, generator=g)
        given = (images, weights, which, rotations, shifts, share, ky, kx)
        m = size * padding
        exact = torch.zeros((m, m, m // 2 + 1, 3), dtype=torch.float64)
        upcast = [t.to(torch.complex128) if t.is_complex() else t.double() for t in given[:2]]
        insert_torch(exact, *upcast, which, rotations.double(), shifts.double(), share.double(), ky, kx, size, padding)
        onto = [t.to(DEVICE) for t in given]
        for name, apart in (("vector additions", 4), ("single additions", 3)):
            total = torch.zeros((m, m, m // 2 + 1, apart), device=DEVICE)[..., :3]
            insert_triton(total, *onto, size, padding)
            tell("check", f"insertion {size} px padding {padding}, {name}", error=relative(total, exact))
        again = []
        for _ in range(6):
            total = empty_accumulator(size, padding, DEVICE)
            insert_triton(total, *onto, size, padding)
            again.append(total.contiguous().cpu())
        tell("check", "insertion repeated, spread", spread=max(relative(t, again[0]) for t in again[1:]))
        total = empty_accumulator(size, padding, DEVICE)
        insert_torch(total, *onto, size, padding)
        tell("check", "insertion by tensor operations", error=relative(total, exact))
        volume = prepare_volume(torch.randn((size, size, size), generator=g), padding)
        wanted = project_pixels(volume, rotations, ky, kx, padding)
        got = project_triton(volume.to(DEVICE), rotations.to(DEVICE), ky.to(DEVICE), kx.to(DEVICE), padding)
        tell("check", f"slices {size} px padding {padding}", error=relative(got, wanted))
    for size in (128, 127):
        g = generator(size)
        ky, kx = disc_pixels(size, size / 2)
        groups = (
            Optics(1.2, 300.0, 2.7, 0.1, (0.1, -0.2), (0.0, 0.0, 0.2, 0.1), (0.0, 0.1, 0.1, -0.1)),
            Optics(1.2, 200.0, 1.4, 0.07),
        )
        columns = torch.cat((columns_of(40), torch.randint(0, 2, (40, 1), generator=g).float()), dim=1)
        images = torch.randn((40, size, size), generator=g)
        inverse = torch.rand(len(ky), generator=g) + 0.5
        data, weights = weigh(images, Microscope(groups, size, ky, kx), columns, inverse, ky, kx)
        there = [t.to(DEVICE) for t in (inverse, ky, kx)]
        got, got_weights = weigh(images.to(DEVICE), Microscope(groups, size, *there[1:]), columns, *there)
        tell("check", f"weighing {size} px", error=relative(got, data), weights=relative(got_weights, weights))
    g = generator(5)
    ky, kx = disc_pixels(64, 24)
    b, t, r, n = 9, 37, 200, 300
    data, references = (torch.randn((k, len(ky)), generator=g, dtype=torch.complex64) for k in (b, n))
    weight, prior = torch.rand((b, len(ky)), generator=g), torch.randn((b, t), generator=g)
    phases = torch.polar(torch.ones(b, t, len(ky)), 6.28 * torch.rand((b, t, len(ky)), generator=g))
    index = torch.randint(0, n, (b, r), generator=g)
    exact = own_products(
        Observations(data.to(torch.complex128), weight.double()),
        phases.to(torch.complex128),
        references.to(torch.complex128),
        index,
    )
    there = [x.to(DEVICE) for x in (data, weight, phases, references, index)]
    got = own_products(Observations(*there[:2]), *there[2:])
    tell("check", "products with own references", cross=relative(got[0], exact[0]), energy=relative(got[1], exact[1]))
    for any_scale in (False, True):
        exact_best = search(Observations(data, weight), phases[0], [references], 64, prior=prior, any_scale=any_scale)
        best = search(
            Observations(*there[:2]), there[2][0], [there[3]], 64, prior=prior.to(DEVICE), any_scale=any_scale
        )
        same = (best.rotation.cpu() == exact_best.rotation) & (best.shift.cpu() == exact_best.shift)
        tell(
            "check",
            f"best of a search{', any scale' if any_scale else ''}",
            score=relative(best.score, exact_best.score),
            log_sum=relative(best.log_sum, exact_best.log_sum),
            same_places=float(same.float().mean()),
        )
