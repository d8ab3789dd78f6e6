"""Building blocks of the network: tri-plane features and attention to condition tokens.

`network_inputs` gives the weights of an attention block the form that the fused kernel of
`kernels.deform_triton` needs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from talker.avatar.gaussians import Gaussians

AXES = ((0, 1), (0, 2), (1, 2))
"""Coordinates that span the three planes of a tri-plane."""

GEOMETRY = 16
"""Number of columns for mean (3), quaternion (4), scale (3) and opacity (1), with padding."""
HARMONICS = 16
"""Number of columns for the spherical harmonics of one color channel, with padding."""


class TriPlane(nn.Module):
    """Features [G, channels * len(resolutions)] of points [G, 3] in the box `bounds` [2, 3].

    The bilinear samples of the XY, XZ and YZ planes are multiplied, and the products of all
    resolutions are concatenated (K-Planes, Fridovich-Keil et al., CVPR 2023). Points outside of the
    box get the features of its border.
    """

    bounds: Tensor

    def __init__(
        self, bounds: Float[Tensor, "2 3"], resolutions: tuple[int, ...], channels: int
    ) -> None:
        super().__init__()
        self.register_buffer("bounds", bounds)
        self.planes = nn.ParameterList(
            nn.Parameter(torch.empty(3, channels, side, side).uniform_(0.1, 0.5))
            for side in resolutions
        )
        self.out_features = channels * len(resolutions)

    def forward(self, points: Float[Tensor, "G 3"]) -> Float[Tensor, "G {self.out_features}"]:
        low, high = self.bounds
        unit = ((points - low) / (high - low) * 2 - 1).unbind(-1)
        grid = torch.stack([torch.stack([unit[a], unit[b]], -1) for a, b in AXES])
        features = []
        for plane in self.planes.parameters():
            xy, xz, yz = _sampled(plane, grid)
            features.append(xy * xz * yz)
        return torch.cat(features, dim=-1)


def _sampled(
    planes: Float[Tensor, "N C S S"], points: Float[Tensor, "N G 2"]
) -> Float[Tensor, "N G C"]:
    """Return bilinear samples of N planes at points in -1..1; the border continues outside."""
    if planes.is_cuda:
        return gather_samples(planes, points)
    grid = points[:, None]
    samples = F.grid_sample(planes, grid, padding_mode="border", align_corners=True)
    return samples[:, :, 0].mT


def gather_samples(
    planes: Float[Tensor, "N C S S"], points: Float[Tensor, "N G 2"]
) -> Float[Tensor, "N G C"]:
    """Return the samples of `F.grid_sample`, whose gradient on CUDA is added up in random order.

    On the CPU, this takes three times as long.
    """
    count, channels, side, _ = planes.shape
    position = ((points + 1) / 2 * (side - 1)).clamp(0, side - 1)
    corner = position.detach().long().clamp(0, side - 2)
    right, down = (position - corner).unbind(-1)
    left, up = 1 - right, 1 - down
    weights = torch.stack([left * up, right * up, left * down, right * down], dim=-1)
    plane = torch.arange(count, device=planes.device)[:, None]
    first = corner[..., 0] + side * (corner[..., 1] + side * plane)
    cells = torch.stack([first, first + 1, first + side, first + side + 1], dim=-1)
    samples = F.embedding_bag(
        cells.flatten(0, 1),
        planes.permute(0, 2, 3, 1).reshape(-1, channels),
        per_sample_weights=weights.flatten(0, 1),
        mode="sum",
    )
    return samples.unflatten(0, (count, -1))


class TokenAttention(nn.Module):
    """A post-norm transformer block in which Gaussians attend to tokens (GaussianTalker 3.2).

    It maps x [B, G, D] (or [1, G, D]) and tokens [B, N, D] to [B, G, D]. The Gaussians' queries are
    the same in every frame and a frame has only four tokens, so the value and output projections
    are applied to the tokens instead of to the Gaussians.
    """

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.out_proj = nn.Linear(features, features)
        self.norm1 = nn.LayerNorm(features)
        self.linear1 = nn.Linear(features, 2 * features)
        self.linear2 = nn.Linear(2 * features, features)
        self.norm2 = nn.LayerNorm(features)

    def project_tokens(
        self, tokens: Float[Tensor, "B N D"]
    ) -> tuple[Float[Tensor, "B {self.heads} N width"], Float[Tensor, "B {self.heads} N D"]]:
        """Return the tokens' keys [B, H, N, D / H] and output-projected values [B, H, N, D]."""
        key = self.key(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        value = self.value(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out_proj = self.out_proj.weight.unflatten(-1, (self.heads, -1))
        return key, torch.einsum("bhnw,ohw->bhno", value, out_proj)

    def scaled_query(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Return the queries of x, both [..., D], divided by the square root of a head's width."""
        return self.query(x) * (x.shape[-1] // self.heads) ** -0.5

    def weights(
        self,
        x: Float[Tensor, "#B G D"],
        key: Float[Tensor, "B {self.heads} N width"],
    ) -> Float[Tensor, "B G {self.heads} N"]:
        """Return the attention weight of each Gaussian for each token; the weights sum to 1."""
        query = self.scaled_query(x).unflatten(-1, (self.heads, -1)).expand(len(key), -1, -1, -1)
        return torch.softmax(torch.einsum("bghw,bhnw->bghn", query, key), dim=-1)

    def forward(
        self, x: Float[Tensor, "#B G D"], tokens: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B G D"]:
        key, value = self.project_tokens(tokens)
        weights = self.weights(x, key)
        attended = torch.einsum("bghn,bhno->bgo", weights, value) + self.out_proj.bias
        x = self.norm1(x + attended)
        return self.norm2(x + self.linear2(torch.relu(self.linear1(x))))


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
    """Inputs of the fused kernels that are the same for all frames."""

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
    """Prepare the inputs of the fused kernels from the network's layers and features [G, D]."""
    flat = [
        *(gaussians.means, gaussians.quats, gaussians.scales),
        *(gaussians.opacities[:, None], gaussians.sh.flatten(1)),
    ]
    weights = Weights(
        linear1=block.linear1.weight.T.contiguous(),
        linear1_bias=block.linear1.bias,
        linear2=block.linear2.weight.T.contiguous(),
        linear2_bias=block.linear2.bias,
        hidden=hidden.weight.T.contiguous(),
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
