"""Multi-resolution tri-plane: a feature for each point of the head's box (K-planes, CVPR 2023).

Per scale the bilinear samples of the XY, XZ and YZ planes are multiplied; scales are concatenated.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AXES = ((0, 1), (0, 2), (1, 2))


class TriPlane(nn.Module):
    """Features [G, channels * len(resolutions)] of points [G, 3] in the box `bounds` [2, 3]."""

    bounds: Tensor

    def __init__(self, bounds: Tensor, resolutions: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.register_buffer("bounds", bounds)
        self.planes = nn.ParameterList(
            nn.Parameter(torch.empty(3, channels, side, side).uniform_(0.1, 0.5))
            for side in resolutions
        )
        self.out_features = channels * len(resolutions)

    def forward(self, points: Tensor) -> Tensor:
        low, high = self.bounds
        unit = ((points - low) / (high - low) * 2 - 1).unbind(-1)
        grid = torch.stack([torch.stack([unit[a], unit[b]], -1) for a, b in AXES])[:, None]
        features = []
        for plane in self.planes.parameters():
            sampled = F.grid_sample(plane, grid, padding_mode="border", align_corners=True)
            xy, xz, yz = sampled[:, :, 0]
            features.append((xy * xz * yz).T)
        return torch.cat(features, dim=-1)
