"""Token attention against torch's multi-head attention, the tri-plane against its definition."""

import torch
from torch import nn
from torch.nn import functional as F

from talker.avatar.blocks import TokenAttention, TriPlane, gather_samples

BOUNDS = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])


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
        reference.out_proj.load_state_dict(block.out_proj.state_dict())
    x = x.expand(len(tokens), -1, -1)
    x = block.norm1(x + reference(x, tokens, tokens)[0])
    return block.norm2(x + block.linear2(torch.relu(block.linear1(x))))


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


def test_product_of_the_three_plane_samples() -> None:
    planes = TriPlane(BOUNDS, (5,), channels=2)
    with torch.no_grad():
        for axis_pair in range(3):
            planes.planes[0][axis_pair] = torch.arange(25.0).view(5, 5) + axis_pair
    # Node 1, 2, 3 of x, y, z in a grid of 5 nodes: columns follow the first axis of a plane.
    x, y, z = 1, 2, 3
    point = BOUNDS[0] + torch.tensor([x, y, z]) / 4 * (BOUNDS[1] - BOUNDS[0])
    expected = (5 * y + x) * (5 * z + x + 1) * (5 * z + y + 2)
    torch.testing.assert_close(planes(point[None]), torch.full((1, 2), float(expected)))


def test_halfway_is_the_mean() -> None:
    torch.manual_seed(0)
    planes = TriPlane(BOUNDS, (3,), channels=4)
    with torch.no_grad():
        planes.planes[0][1:] = 1.0
    low, middle = torch.tensor([[-1.0, 0.0, 0.0]]), torch.tensor([[-0.5, 0.0, 0.0]])
    high = torch.tensor([[0.0, 0.0, 0.0]])
    torch.testing.assert_close(planes(middle), (planes(low) + planes(high)) / 2)


def test_points_outside_take_the_border() -> None:
    planes = TriPlane(BOUNDS, (4, 8), channels=2)
    outside, border = torch.tensor([[9.0, 0.3, 0.2]]), torch.tensor([[1.0, 0.3, 0.2]])
    torch.testing.assert_close(planes(outside), planes(border))
    assert planes(border).shape == (1, planes.out_features) == (1, 4)


def test_gathered_samples_are_those_of_grid_sample() -> None:
    torch.manual_seed(0)
    planes = torch.rand(3, 8, 16, 16, dtype=torch.float64, requires_grad=True)
    points = (
        2.6 * torch.rand(3, 500, 2, dtype=torch.float64) - 1.3
    ).requires_grad_()  # some outside
    expected = F.grid_sample(planes, points[:, None], padding_mode="border", align_corners=True)
    expected, found = expected[:, :, 0].mT, gather_samples(planes, points)
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(found)
    gradients = [torch.autograd.grad(x, (planes, points), pull) for x in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
