"""A slow renderer in plain torch, the reference for the tests of the fast rasterizers."""

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
    margin: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render one image of G Gaussians in the precision of the inputs: rgb [H,W,3], alpha [H,W,1].

    The third result is `sure`, bool [H,W]: pixels in which every comparison with a threshold
    (smallest and largest alpha, end of a ray) has a relative distance of at least `margin` from the
    threshold.
    """
    x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    beyond_x, beyond_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    tx = (x / z).clamp(-cx / fx - beyond_x, (width - cx) / fx + beyond_x)
    ty = (y / z).clamp(-cy / fy - beyond_y, (height - cy) / fy + beyond_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * tx / z, zero, fy / z, -fy * ty / z], dim=-1)
    w, i, j, k = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        *(1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)),
        *(2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)),
        *(2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)),
    ]
    axes = torch.stack(rows, dim=-1).view(-1, 3, 3) * scales[:, None, :]
    half = jacobian.view(-1, 2, 3) @ viewmat[:3, :3] @ axes
    conics = torch.linalg.inv(half @ half.mT + 0.3 * torch.eye(2, dtype=means.dtype))
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    grid = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    pixels = torch.stack(grid, dim=-1).to(means.dtype)
    rgb = torch.zeros(height, width, 3, dtype=means.dtype)
    through = torch.ones(height, width, dtype=means.dtype)
    done = torch.zeros(height, width, dtype=torch.bool)
    sure = ~done
    for g in torch.argsort(z.detach(), stable=True).tolist():
        if z[g] < 0.01:
            continue
        d = pixels - means2d[g]
        raw = opacities[g] * torch.exp(-0.5 * torch.einsum("hwi,ij,hwj->hw", d, conics[g], d))
        alpha = raw.clamp(max=0.999)
        after = through * (1 - alpha)
        drawn = (alpha >= 1 / 255) & ~done
        for value, limit in ((raw, 1 / 255), (raw, 0.999), (after, 1e-4)):
            sure = sure & (done | ((value / limit - 1).abs() > margin))
        done = done | (drawn & (after <= 1e-4))
        alpha = torch.where(drawn & ~done, alpha, 0)
        rgb = rgb + (alpha * through)[..., None] * colors[g]
        through = through * (1 - alpha)
    return rgb, 1 - through[..., None], sure
