"""Spatial-audio attention: Gaussians ask the few condition tokens of a frame (GaussianTalker 3.2).

Queries come from the tri-plane and do not change between frames; a frame brings four tokens only,
so the value and output projections are applied to the tokens, not to the Gaussians.
"""

import torch
from torch import Tensor, nn


class TokenAttention(nn.Module):
    """One post-norm block: x [B, G, D] (or [1, G, D]), tokens [B, N, D] -> [B, G, D]."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.merge = nn.Linear(features, features)
        self.norm_attended = nn.LayerNorm(features)
        self.feed_forward = nn.Sequential(
            nn.Linear(features, 2 * features), nn.ReLU(), nn.Linear(2 * features, features)
        )
        self.norm_out = nn.LayerNorm(features)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        features, heads = x.shape[-1], self.heads
        width = features // heads
        query = self.query(x).unflatten(-1, (heads, width))
        key = self.key(tokens).unflatten(-1, (heads, width))
        value = self.value(tokens).unflatten(-1, (heads, width))
        merge = self.merge.weight.view(features, heads, width)
        merged = torch.einsum("bnhw,ohw->bhno", value, merge)
        scores = torch.einsum("bghw,bnhw->bghn", query.expand(len(tokens), -1, -1, -1), key)
        weights = torch.softmax(scores * width**-0.5, dim=-1)
        attended = torch.einsum("bghn,bhno->bgo", weights, merged) + self.merge.bias
        x = self.norm_attended(x + attended)
        return self.norm_out(x + self.feed_forward(x))
