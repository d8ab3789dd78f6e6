"""The tri-plane against its definition."""

import torch

from talker.avatar.triplane import TriPlane

BOUNDS = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])


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
