"""Inputs of the fused kernel of `kernels.deform_triton`, made from the layers of the network."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from talker.avatar.blocks import TokenAttention
from talker.avatar.gaussians import Gaussians

GEOMETRY = 16
"""Number of columns for mean (3), quaternion (4), scale (3) and opacity (1), with padding."""
HARMONICS = 16
"""Number of columns for the spherical harmonics of one color channel, with padding."""


class Weights(NamedTuple):
    """Weights with D features, F feed-forward units and H hidden units; matrices are [in, out]."""

    linear1: Tensor
    """[D, F]"""
    linear1_bias: Tensor
    """[F]"""
    linear2: Tensor
    """[F, D]"""
    linear2_bias: Tensor
    """[D]"""
    hidden: Tensor
    """[D, H]"""
    hidden_bias: Tensor
    """[H]"""
    heads: Tensor
    """[H, 64]: geometry, then 16 harmonics of red, of green, of blue"""
    norm1: Tensor
    """[2, D], weight and bias"""
    norm2: Tensor
    """[2, D]"""


class NetworkInputs(NamedTuple):
    """Inputs of `deform` that are the same for all frames."""

    x: Tensor
    """[G, D], to which attention is added; the bias of its output is included."""
    query: Tensor
    """[G, D], scaled queries."""
    base: Tensor
    """[G, 64], canonical parameters plus the bias of the heads, in the order of `Weights.heads`."""
    weights: Weights
    """D, F and H are powers of 2, D from 16 to 64, H from 16 to 128."""


def network_inputs(
    features: Float[Tensor, "G D"],
    gaussians: Gaussians,
    block: TokenAttention,
    hidden: nn.Linear,
    heads: nn.Linear,
) -> NetworkInputs:
    """Prepare the inputs of `deform` from the network's layers and features [G, D]."""
    flat = [
        *(gaussians.means, gaussians.quats, gaussians.scales),
        *(gaussians.opacities[:, None], gaussians.sh.flatten(1)),
    ]
    weights = Weights(
        linear1=block.linear1.weight.T,
        linear1_bias=block.linear1.bias,
        linear2=block.linear2.weight.T,
        linear2_bias=block.linear2.bias,
        hidden=hidden.weight.T,
        hidden_bias=hidden.bias,
        heads=_in_columns(heads.weight.T),
        norm1=torch.stack([block.norm1.weight, block.norm1.bias]),
        norm2=torch.stack([block.norm2.weight, block.norm2.bias]),
    )
    base = _in_columns(torch.cat(flat, dim=-1) + heads.bias)
    return NetworkInputs(
        features + block.out_proj.bias, block.scaled_query(features), base, weights
    )


def _in_columns(values: Float[Tensor, "N columns"]) -> Float[Tensor, "N 64"]:
    """Bring geometry and harmonics [N, 11 + 3 K] into the order of `Weights.heads`, [N, 64]."""
    geometry, sh = values[:, :11], values[:, 11:].unflatten(-1, (-1, 3)).transpose(1, 2)
    geometry = F.pad(geometry, (0, GEOMETRY - geometry.shape[-1]))
    return torch.cat([geometry, F.pad(sh, (0, HARMONICS - sh.shape[-1])).flatten(1)], dim=-1)
