"""Spherical harmonics have their defining properties and agree with gsplat."""

import numpy as np
import pytest
import torch

from talker.avatar.gaussians import C0, evaluate_sh, sh_basis


def quadrature() -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and weights that integrate polynomials of degree 15 over the sphere exactly."""
    z, weights = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * 2 * np.pi / 16
    z, phi = np.repeat(z, 16), np.tile(phi, 8)
    radius = np.sqrt(1 - z**2)
    directions = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=-1)
    return torch.from_numpy(directions), torch.from_numpy(np.repeat(weights, 16) * 2 * np.pi / 16)


def test_harmonics_are_orthonormal():
    directions, weights = quadrature()
    basis = sh_basis(directions, 16)
    gram = basis.T @ (basis * weights[:, None])
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_degree_is_the_beginning_of_the_next(count):
    directions, _ = quadrature()
    assert torch.equal(sh_basis(directions, count), sh_basis(directions, 16)[:, :count])


def test_signs_and_order_are_those_of_3dgs():
    axes = torch.eye(3, dtype=torch.float64)
    linear = sh_basis(axes, 4)[:, 1:]
    c = 0.4886025119029199
    assert torch.allclose(linear, torch.tensor([[0, 0, -c], [-c, 0, 0], [0, c, 0]]).double())
    signs = sh_basis(torch.full((3,), 3**-0.5, dtype=torch.float64), 16)[4:].sign()
    # xy, yz, 3zz-1, xz, xx-yy, y(3xx-yy), xyz, y(5zz-1), z(5zz-3), x(5zz-1), z(xx-yy), x(xx-3yy)
    assert signs[[0, 1, 3, 5, 6, 7, 8, 9, 11]].tolist() == [1, -1, -1, -1, 1, -1, -1, -1, 1]


def test_color_is_gray_for_zero_and_never_negative():
    directions = torch.nn.functional.normalize(torch.randn(2, 5, 3), dim=-1)
    sh = torch.zeros(5, 16, 3)
    assert torch.equal(evaluate_sh(sh, directions), torch.full((2, 5, 3), 0.5))
    sh[:, 0] = (torch.tensor([0.1, 0.6, -0.3]) - 0.5) / C0
    expected = torch.tensor([0.1, 0.6, 0.0]).expand(2, 5, 3)
    assert torch.allclose(evaluate_sh(sh, directions), expected, atol=1e-6)


def test_other_numbers_of_coefficients_are_refused():
    with pytest.raises(ValueError, match="not 5"):
        evaluate_sh(torch.zeros(1, 5, 3), torch.zeros(1, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gsplat_evaluates_the_same():
    import gsplat

    sh, directions = torch.randn(50, 16, 3).cuda(), torch.randn(50, 3).cuda()
    found = gsplat.spherical_harmonics(3, directions, sh)
    expected = evaluate_sh(sh, torch.nn.functional.normalize(directions, dim=-1))
    assert torch.allclose((found + 0.5).clamp_min(0), expected, atol=1e-5)
