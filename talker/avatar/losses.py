"""What a rendered batch costs; its structural similarity by Triton on CUDA, by numba on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from talker.avatar.kernels.constants import C1, C2, LEVELS, SIGMA, TAPS
from talker.avatar.training_set import Targets
from talker.core.config import validated

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Distances [B] of images [B, 3, H, W] in -1..1"""


@validated
class LossWeights:
    l1: float = 0.8
    ssim: float = 0.2
    lips: float = 0.4
    """L1 inside the box of the lips"""
    alpha: float = 0.4
    """L1 between the rendered alpha and the head mask"""
    detail: float = 0.2
    """of the network `perceptual`; without one, L1 of the bands of a pyramid"""


def compute_loss(
    rgb: Tensor,
    alpha: Tensor,
    targets: Targets,
    weights: LossWeights,
    perceptual: Perceptual | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a rendered batch rgb [B, H, W, 3], alpha [B, H, W, 1], and its parts.

    The target is the frame inside the head mask and the background outside; alpha is supervised
    directly with the mask, so that Gaussians that only copy the background are pushed away.
    """
    if rgb.is_cuda:
        from talker.avatar.kernels.pixels_triton import PixelTerms

        image, target, terms = PixelTerms.apply(rgb, alpha, *targets)
    else:
        banded = weights.detail != 0 and perceptual is None
        image, target, terms = pixel_terms(rgb, alpha, targets, banded)
    l1, lips, outline, banded_l1 = terms.unbind()
    parts = {"l1": l1, "ssim": 1 - ssim(image, target), "lips": lips, "alpha": outline}
    if weights.detail and perceptual is not None:
        shown, wanted = (2 * x.permute(0, 3, 1, 2) - 1 for x in (image, target))
        parts["detail"] = perceptual(shown, wanted).mean()
    elif weights.detail:
        parts["detail"] = banded_l1
    total = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
    return total, parts


def pixel_terms(
    rgb: Tensor, alpha: Tensor, targets: Targets, banded: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The composed image and its target [B, H, W, 3], and what they cost pixel by pixel.

    Returns:
        image, target, and [4]: mean L1, mean L1 of the pixels in the boxes of the lips, mean L1 of
        alpha, `bands` (0 unless `banded`). In plain torch, the twin of `pixels_triton.PixelTerms`.
    """
    mask = targets.mask[..., None].to(rgb) / 255
    background = targets.background.to(rgb) / 255
    target = torch.lerp(background, targets.frame.to(rgb) / 255, mask)
    image = rgb + (1 - alpha) * background
    difference = image - target
    apart = difference.abs().mean(-1)
    height, width = mask.shape[1:3]
    x0, y0, x1, y1 = targets.lips[:, :, None].unbind(1)
    columns = torch.arange(width, device=mask.device)
    lines = torch.arange(height, device=mask.device)
    between_lines, between_columns = (lines >= y0) & (lines < y1), (columns >= x0) & (columns < x1)
    inside = (between_lines[:, :, None] & between_columns[:, None]).to(rgb)
    terms = (
        apart.mean(),
        (apart * inside).sum() / inside.sum().clamp_min(1),
        (alpha - mask).abs().mean(),
        bands(difference) if banded else difference.new_zeros(()),
    )
    return image, target, torch.stack(terms)


def bands(difference: Tensor) -> Tensor:
    """Mean L1 over the bands of a Laplacian pyramid of image differences [B, H, W, 3].

    Blur costs most in the bands that it empties, where plain L1 hardly sees it (the Lap1 loss of
    Bojanowski et al., ICML 2018, with box filters).
    """
    rest = difference.permute(0, 3, 1, 2)
    total = rest.new_zeros(())
    for _ in range(LEVELS):
        coarse = F.avg_pool2d(rest, 2, ceil_mode=True)
        spread = F.interpolate(coarse, scale_factor=2)[..., : rest.shape[2], : rest.shape[3]]
        total = total + (rest - spread).abs().mean()
        rest = coarse
    return total + rest.abs().mean()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean SSIM of images [B,H,W,C] in 0..1 (Wang et al. 2004): 11 x 11 Gaussian, sigma 1.5.

    As in 3DGS the images are taken to be 0 beyond their border. `target` gets no gradient.
    """
    offsets = torch.arange(TAPS, dtype=image.dtype, device=image.device) - TAPS // 2
    window = torch.softmax(-0.5 * (offsets / SIGMA) ** 2, dim=0)
    if image.is_cuda:
        from talker.avatar.kernels.ssim_triton import MeanSsim as OnGpu

        return OnGpu.apply(image, target, window, C1, C2)
    from talker.avatar.kernels.ssim_cpu import MeanSsim

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
