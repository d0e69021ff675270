"""Zernike polynomials and beam tilt against their definitions."""

import math

import torch

from cryoseg_dist.kernels.aberrations import antisymmetric_phase, even_order, odd_order, symmetric_phase, zernike
from cryoseg_dist.kernels.ctf import wavelength


def test_orders_are_relions() -> None:
    assert [odd_order(i) for i in range(7)] == [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3), (5, -5)]
    assert [even_order(i) for i in range(9)] == [
        (0, 0),
        (2, -2),
        (2, 0),
        (2, 2),
        (4, -4),
        (4, -2),
        (4, 0),
        (4, 2),
        (4, 4),
    ]


def test_polynomials_have_their_closed_forms() -> None:
    r = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    phi = torch.linspace(-3, 3, 11, dtype=torch.float64)[None]
    y, x = r * phi.sin(), r * phi.cos()
    for (n, m), expected in {
        (1, -1): r * phi.sin(),
        (2, 0): (2 * r**2 - 1) + 0 * phi,
        (2, -2): r**2 * (2 * phi).sin(),
        (3, 1): (3 * r**3 - 2 * r) * phi.cos(),
        (4, 2): (4 * r**4 - 3 * r**2) * (2 * phi).cos(),
        (6, 0): (20 * r**6 - 30 * r**4 + 12 * r**2 - 1) + 0 * phi,
    }.items():
        torch.testing.assert_close(zernike(n, m, y, x), expected)


def test_they_are_orthogonal_on_the_disc() -> None:
    axis = torch.linspace(-1, 1, 801, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = x * x + y * y <= 1
    orders = [even_order(i) for i in range(9)] + [odd_order(i) for i in range(6)]
    values = torch.stack([zernike(n, m, y, x)[inside] for n, m in orders])
    gram = values @ values.T / inside.sum()
    of = torch.outer(gram.diag(), gram.diag()).sqrt()
    assert float((gram / of - torch.eye(len(orders))).abs().max()) < 0.02


def test_beam_tilt_is_coma_and_shift() -> None:
    y, x = torch.randn((2, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    microscope = {"voltage": 300.0, "spherical_aberration": 2.7}
    tilted = antisymmetric_phase(y, x, (1.6, -1.2), (), **microscope)
    scale = -2.7 * 2e4 * math.pi * wavelength(300.0) ** 2 / 3.0
    a, b = scale * 1.6, scale * -1.2
    polynomials = antisymmetric_phase(y, x, (0.0, 0.0), (2 * b, 2 * a, 0.0, b, a, 0.0), **microscope)
    torch.testing.assert_close(tilted, polynomials)
    both = antisymmetric_phase(y, x, (1.6, -1.2), (2 * b, 2 * a, 0.0, b, a, 0.0), **microscope)
    torch.testing.assert_close(both, 2 * tilted)


def test_nothing_gives_nothing() -> None:
    y, x = torch.randn((2, 9))
    assert float(symmetric_phase(y, x, ()).abs().max()) == 0.0
    assert float(antisymmetric_phase(y, x, (0.0, 0.0), (), voltage=300.0, spherical_aberration=2.7).abs().max()) == 0.0
