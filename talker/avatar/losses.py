"""Structural similarity as a loss: Triton kernels on CUDA, numba kernels on the CPU."""

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS, SIGMA = 11, 1.5  # of the Gaussian window, pixels
C1, C2 = 0.01**2, 0.03**2


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean SSIM of images [B,H,W,C] in 0..1 (Wang et al. 2004): 11 x 11 Gaussian, sigma 1.5.

    As in 3DGS the images are taken to be 0 beyond their border. `target` gets no gradient.
    """
    offsets = torch.arange(TAPS, dtype=image.dtype, device=image.device) - TAPS // 2
    window = torch.softmax(-0.5 * (offsets / SIGMA) ** 2, dim=0)
    if image.is_cuda:
        from talker.avatar.ssim_triton import MeanSsim as OnGpu

        return OnGpu.apply(image, target, window, C1, C2)
    from talker.avatar.ssim_cpu import MeanSsim

    return MeanSsim.apply(image, target, window)


def ssim_by_convolution(image: Tensor, target: Tensor, window: Tensor) -> Tensor:
    """`ssim` in plain torch, the twin of the kernels, for a window [TAPS] that sums to 1."""
    x, y = image.permute(0, 3, 1, 2), target.detach().permute(0, 3, 1, 2)
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    kernel = window.expand(moments.shape[1], 1, -1)
    moments = F.conv2d(moments, kernel[..., None], padding=(TAPS // 2, 0), groups=len(kernel))
    moments = F.conv2d(moments, kernel[..., None, :], padding=(0, TAPS // 2), groups=len(kernel))
    mx, my, xx, yy, xy = moments.chunk(5, dim=1)
    luminance = (2 * mx * my + C1) / (mx * mx + my * my + C1)
    structure = (2 * (xy - mx * my) + C2) / (xx - mx * mx + yy - my * my + C2)
    return (luminance * structure).mean()
