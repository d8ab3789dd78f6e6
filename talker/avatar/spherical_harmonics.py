"""Real spherical harmonics up to degree 3: a Gaussian's colour by the direction it is seen from."""

import torch
from torch import Tensor

C0 = 0.28209479177387814  # the constant harmonic
MAX_DEGREE = 3


def evaluate_sh(sh: Tensor, directions: Tensor) -> Tensor:
    """Colours [..., 3] in 0..inf of coefficients [..., K, 3], K = 1, 4, 9 or 16.

    Args:
        sh: coefficients in the order and with the signs of 3DGS and gsplat; 0 is middle grey.
        directions: unit vectors [..., 3] from the camera to the Gaussian, in the world.

    Raises:
        ValueError: K is not a square up to 16.
    """
    basis = sh_basis(directions, sh.shape[-2])
    return ((basis[..., None] * sh).sum(dim=-2) + 0.5).clamp_min(0)


def sh_basis(directions: Tensor, count: int) -> Tensor:
    """The first `count` harmonics [..., count] at unit vectors [..., 3] (Sloan, JCGT 2013)."""
    if count not in (1, 4, 9, 16):
        raise ValueError(f"expected 1, 4, 9 or 16 coefficients, got {count}")
    x, y, z = directions.unbind(dim=-1)
    values = [torch.full_like(x, C0)]
    if count > 1:
        c = 0.4886025119029199
        values += [-c * y, c * z, -c * x]
    if count > 4:
        c = 1.0925484305920792
        values += [c * x * y, -c * y * z, 0.31539156525252005 * (3 * z * z - 1)]
        values += [-c * x * z, c / 2 * (x * x - y * y)]
    if count > 9:
        c3, c2, c1 = 0.5900435899266435, 1.445305721320277, 0.4570457994644658
        values += [-c3 * y * (3 * x * x - y * y), 2 * c2 * x * y * z, -c1 * y * (5 * z * z - 1)]
        values += [0.3731763325901154 * z * (5 * z * z - 3), -c1 * x * (5 * z * z - 1)]
        values += [c2 * z * (x * x - y * y), -c3 * x * (x * x - 3 * y * y)]
    return torch.stack(values, dim=-1)
