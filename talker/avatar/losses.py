"""Structural similarity as a loss: torch's convolution on CUDA, OpenCV's separable filter on the CPU."""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TAPS, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
KERNEL = cv2.getGaussianKernel(TAPS, SIGMA, cv2.CV_32F)[:, 0]


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean SSIM of images [B, H, W, C] in 0..1 (Wang et al. 2004): 11 x 11 Gaussian, sigma 1.5.

    As in 3DGS the images are taken to be 0 beyond their border. `target` gets no gradient.
    """
    target = target.detach()
    if not image.is_cuda:
        return _Ssim.apply(image, target)
    mean_x, mean_y, xx, yy, xy = (
        _blur(x) for x in (image, target, image * image, target * target, image * target)
    )
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * (xy - mean_x * mean_y) + C2) / (xx - mean_x**2 + yy - mean_y**2 + C2)
    return (luminance * structure).mean()


def _blur(x: Tensor) -> Tensor:
    kernel = torch.from_numpy(KERNEL).to(x)
    planes = x.permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    planes = F.conv2d(planes, kernel.view(1, 1, 1, TAPS), padding=(0, TAPS // 2))
    planes = F.conv2d(planes, kernel.view(1, 1, TAPS, 1), padding=(TAPS // 2, 0))
    return planes[:, 0].unflatten(0, (len(x), -1)).permute(0, 2, 3, 1)


def _filter(images: np.ndarray) -> np.ndarray:
    """Blur [B, H, W, C] with zeros beyond the border; this map is its own adjoint."""
    blurred = np.empty_like(images)
    for source, result in zip(images, blurred, strict=True):
        cv2.sepFilter2D(source, -1, KERNEL, KERNEL, result, borderType=cv2.BORDER_CONSTANT)
    return blurred


class _Ssim(torch.autograd.Function):
    """Mean SSIM with its gradient in closed form: eight filters instead of ten convolutions."""

    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor) -> Tensor:  # noqa: ANN001
        x, y = image.detach().numpy(), target.numpy()
        mean_x, mean_y, xx, yy, xy = map(_filter, (x, y, x * x, y * y, x * y))
        a1, a2 = 2 * mean_x * mean_y + C1, 2 * (xy - mean_x * mean_y) + C2
        b1, b2 = mean_x**2 + mean_y**2 + C1, xx - mean_x**2 + yy - mean_y**2 + C2
        score = a1 * a2 / (b1 * b2)
        by_xy = 2 * a1 / (b1 * b2)
        by_xx = -score / b2
        by_mean = 2 * mean_y * (a2 - a1) / (b1 * b2) + 2 * mean_x * score * (1 / b2 - 1 / b1)
        gradient = _filter(by_mean) + 2 * x * _filter(by_xx) + y * _filter(by_xy)
        ctx.save_for_backward(torch.from_numpy(gradient / score.size))
        return image.new_tensor(score.mean(dtype=np.float64))

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        (gradient,) = ctx.saved_tensors
        return scale * gradient, None
