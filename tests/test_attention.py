"""The factored token attention against torch's multi-head attention."""

import torch
from torch import nn

from talker.avatar.attention import TokenAttention


def twin(block: TokenAttention, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    features = x.shape[-1]
    reference = nn.MultiheadAttention(features, block.heads, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(
            torch.cat([block.query.weight, block.key.weight, block.value.weight])
        )
        reference.in_proj_bias.copy_(
            torch.cat([block.query.bias, block.key.bias, block.value.bias])
        )
        reference.out_proj.load_state_dict(block.merge.state_dict())
    x = x.expand(len(tokens), -1, -1)
    x = block.norm_attended(x + reference(x, tokens, tokens)[0])
    return block.norm_out(x + block.feed_out(torch.relu(block.feed_in(x))))


def test_equals_multi_head_attention() -> None:
    torch.manual_seed(0)
    block = TokenAttention(16, heads=2).double()
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    tokens = torch.randn(3, 4, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x, tokens), twin(block, x, tokens))


def test_each_token_reaches_each_gaussian() -> None:
    torch.manual_seed(0)
    block = TokenAttention(16, heads=2)
    tokens = torch.randn(1, 4, 16, requires_grad=True)
    out = block(torch.randn(1, 5, 16), tokens)
    for gaussian in range(5):
        (gradient,) = torch.autograd.grad(out[0, gaussian, 0], tokens, retain_graph=True)
        assert (gradient.norm(dim=-1) > 1e-6).all()
