"""Training losses of a rendered batch, by Triton kernels on CUDA and numba kernels on the CPU."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from talker.avatar.training_set import BROWS, EYES, MOUTH, Targets
from talker.core.config import NonNegative, validated

TAPS = 11
"""Width in pixels of the Gaussian window of SSIM."""
SIGMA = 1.5
"""Standard deviation in pixels of the Gaussian window of SSIM."""
C1, C2 = 0.01**2, 0.03**2
"""Stabilizers of SSIM for images in 0..1 (Wang et al. 2004)."""
PerceptualNetwork = Callable[[Tensor, Tensor], Tensor]
"""Returns the distances [B] of two batches of images [B, 3, H, W] in -1..1, as LPIPS does."""


@validated
class LossWeights:
    """Weights of the terms of the training loss."""

    l1: NonNegative = 0.8
    """Weight of the mean absolute difference between the composited image and its target."""
    ssim: NonNegative = 0.2
    """Weight of 1 - SSIM, computed between the composited image and its target."""
    lips: NonNegative = 0.4
    """Weight of the mean absolute difference inside the bounding box of the lips."""
    eyes: NonNegative = 0.4
    """Weight of the mean absolute difference inside the squares around the eyes."""
    brows: NonNegative = 0.2
    """Weight of the mean absolute difference inside the squares around the brows."""
    alpha: NonNegative = 0.4
    """Weight of the mean absolute difference between the rendered alpha and the head mask."""
    perceptual: NonNegative = 0.2
    """Weight of the distance that the perceptual network measures. It has no effect if the option
    `perceptual` is not set."""


def compute_loss(
    rgb: Float[Tensor, "B H W 3"],
    alpha: Float[Tensor, "B H W 1"],
    targets: Targets,
    weights: LossWeights,
    perceptual: PerceptualNetwork | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss of a rendered batch, and its terms by the names of their weights.

    The target is the frame inside the head mask and the background outside of it. Alpha is
    supervised with the mask directly, which suppresses Gaussians that only copy the background.

    Args:
        rgb: [B, H, W, 3], premultiplied.
        alpha: [B, H, W, 1].
    """
    if rgb.is_cuda:
        from talker.avatar.kernels.losses_triton import PixelTerms
    else:
        from talker.avatar.kernels.losses_cpu import PixelTerms
    image, target, terms = PixelTerms.apply(rgb, alpha, *targets)
    l1, alpha_l1, regions = terms[0], terms[1], terms[2:]
    parts = {
        "l1": l1,
        "ssim": 1 - ssim(image, target),
        "lips": regions[MOUTH],
        "eyes": regions[EYES].mean(),
        "brows": regions[BROWS].mean(),
        "alpha": alpha_l1,
    }
    if weights.perceptual and perceptual is not None:
        pair = (2 * x.permute(0, 3, 1, 2) - 1 for x in (image, target))
        parts["perceptual"] = perceptual(*pair).mean()
    total = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
    return total, parts


def pixel_terms(
    rgb: Float[Tensor, "B H W 3"], alpha: Float[Tensor, "B H W 1"], targets: Targets
) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W 3"], Float[Tensor, "7"]]:
    """Compose a rendered batch with its background and compare it with its target, pixel by pixel.

    This is the plain torch version of `PixelTerms` in `losses_triton` and `losses_cpu`.

    Args:
        rgb: [B, H, W, 3], premultiplied.
        alpha: [B, H, W, 1].

    Returns:
        Composed image and target [B, H, W, 3], and [7]: the mean absolute differences of all
        pixels, between alpha and mask, and of the pixels in the boxes of each region.
    """
    mask = targets.mask[..., None].to(rgb) / 255
    background = targets.background.to(rgb) / 255
    target = torch.lerp(background, targets.frame.to(rgb) / 255, mask)
    image = rgb + (1 - alpha) * background
    abs_diff = (image - target).abs().mean(-1)
    height, width = mask.shape[1:3]
    columns = torch.arange(width, device=mask.device)
    rows = torch.arange(height, device=mask.device)
    terms = [abs_diff.mean(), (alpha - mask).abs().mean()]
    for boxes in targets.regions.unbind(1):
        x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
        in_rows, in_columns = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
        inside = (in_rows[:, :, None] & in_columns[:, None]).to(rgb)
        terms.append((abs_diff * inside).sum() / inside.sum().clamp_min(1))
    return image, target, torch.stack(terms)


def ssim(image: Float[Tensor, "B H W C"], target: Float[Tensor, "B H W C"]) -> Float[Tensor, ""]:
    """Return the mean SSIM of images [B, H, W, C] in 0..1; `target` gets no gradient.

    Wang et al. 2004, with a Gaussian window of 11 x 11 pixels and sigma 1.5. As in 3DGS, images are
    padded with zeros.
    """
    offsets = torch.arange(TAPS, dtype=image.dtype, device=image.device) - TAPS // 2
    window = torch.softmax(-0.5 * (offsets / SIGMA) ** 2, dim=0)
    if image.is_cuda:
        from talker.avatar.kernels.losses_triton import MeanSsim as OnGpu

        return OnGpu.apply(image, target, window, C1, C2)
    from talker.avatar.kernels.losses_cpu import MeanSsim

    return MeanSsim.apply(image, target, window)


def ssim_by_convolution(
    image: Float[Tensor, "B H W C"], target: Float[Tensor, "B H W C"], window: Float[Tensor, "taps"]
) -> Float[Tensor, ""]:
    """Return the mean SSIM as `ssim` does, in plain torch, for a window [TAPS] that sums to 1."""
    x, y = image.permute(0, 3, 1, 2), target.detach().permute(0, 3, 1, 2)
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    kernel = window.expand(moments.shape[1], 1, -1)
    moments = F.conv2d(moments, kernel[..., None], padding=(TAPS // 2, 0), groups=len(kernel))
    moments = F.conv2d(moments, kernel[..., None, :], padding=(0, TAPS // 2), groups=len(kernel))
    mx, my, xx, yy, xy = moments.chunk(5, dim=1)
    luminance = (2 * mx * my + C1) / (mx * mx + my * my + C1)
    structure = (2 * (xy - mx * my) + C2) / (xx - mx * mx + yy - my * my + C2)
    return (luminance * structure).mean()
