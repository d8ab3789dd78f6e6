"""A slow, plain torch renderer: the truth that the fast rasterisers are tested against."""

import torch
from torch import Tensor


def render(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """One image of G Gaussians, rgb [H,W,3] and alpha [H,W,1], in the precision of the inputs."""
    x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    tx = (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x) * z
    ty = (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y) * z
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], dim=-1
    ).view(-1, 2, 3)
    w, i, j, k = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    columns = [
        *(1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)),
        *(2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)),
        *(2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)),
    ]
    axes = torch.stack(columns, dim=-1).view(-1, 3, 3) * scales[:, None, :]
    half = jacobian @ viewmat[:3, :3] @ axes
    covariance = half @ half.mT + 0.3 * torch.eye(2, dtype=means.dtype)
    conic = torch.linalg.inv(covariance)
    mean2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    rows, cols = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    pixels = torch.stack(torch.meshgrid(cols, rows, indexing="xy"), dim=-1).to(means.dtype)
    rgb, transmittance = torch.zeros(height, width, 3, dtype=means.dtype), torch.ones(height, width)
    transmittance, done = transmittance.to(means.dtype), torch.zeros(height, width, dtype=bool)
    for g in torch.argsort(z.detach(), stable=True):
        if z[g] < 0.01:
            continue
        d = pixels - mean2d[g]
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", d, conic[g], d)
        alpha = (opacities[g] * torch.exp(-sigma)).clamp(max=0.999)
        visible = (alpha >= 1 / 255) & ~done
        done |= visible & (transmittance * (1 - alpha) <= 1e-4)
        alpha = torch.where(visible & ~done, alpha, 0)
        rgb = rgb + (alpha * transmittance)[..., None] * colors[g]
        transmittance = transmittance * (1 - alpha)
    return rgb, 1 - transmittance[..., None]
