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
        self.feed_in = nn.Linear(features, 2 * features)
        self.feed_out = nn.Linear(2 * features, features)
        self.norm_out = nn.LayerNorm(features)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, H, N, D / H] and values after the output projection [B, H, N, D] of tokens."""
        key = self.key(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        value = self.value(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        merge = self.merge.weight.unflatten(-1, (self.heads, -1))
        return key, torch.einsum("bhnw,ohw->bhno", value, merge)

    def ask(self, x: Tensor) -> Tensor:
        """Scaled queries [..., D] of x."""
        return self.query(x) * (x.shape[-1] // self.heads) ** -0.5

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        key, merged = self.project(tokens)
        query = self.ask(x).unflatten(-1, (self.heads, -1)).expand(len(tokens), -1, -1, -1)
        weights = torch.softmax(torch.einsum("bghw,bhnw->bghn", query, key), dim=-1)
        attended = torch.einsum("bghn,bhno->bgo", weights, merged) + self.merge.bias
        x = self.norm_attended(x + attended)
        return self.norm_out(x + self.feed_out(torch.relu(self.feed_in(x))))
