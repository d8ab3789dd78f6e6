"""SSIM against its definition; the CPU's closed-form gradient against torch's convolution."""

import numpy as np
import torch

from talker.avatar import losses
from talker.avatar.losses import ssim


def images(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(2, 30, 26, 3, generator=generator)
    image = (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    return image.requires_grad_(), target


def by_convolution(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    blurred = [losses._blur(x) for x in (image, target, image**2, target**2, image * target)]
    mean_x, mean_y, xx, yy, xy = blurred
    top = (2 * mean_x * mean_y + losses.C1) * (2 * (xy - mean_x * mean_y) + losses.C2)
    spread = xx - mean_x**2 + yy - mean_y**2 + losses.C2
    return (top / ((mean_x**2 + mean_y**2 + losses.C1) * spread)).mean()


def test_equals_the_definition_pixel_by_pixel() -> None:
    image, target = images(0)
    window = np.outer(losses.KERNEL, losses.KERNEL)[..., None]
    x, y = (np.pad(a[0].detach().numpy(), ((5, 5), (5, 5), (0, 0))) for a in (image, target))
    scores = []
    for row in range(30):
        for column in range(26):
            px, py = (a[row : row + 11, column : column + 11] for a in (x, y))
            mx, my = (window * px).sum((0, 1)), (window * py).sum((0, 1))
            vx, vy = (window * px**2).sum((0, 1)) - mx**2, (window * py**2).sum((0, 1)) - my**2
            cov = (window * px * py).sum((0, 1)) - mx * my
            top = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
            scores.append(top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    np.testing.assert_allclose(ssim(image[:1], target[:1]).item(), np.mean(scores), rtol=1e-4)


def test_gradient_equals_that_of_the_convolutions() -> None:
    image, target = images(1)
    value, reference = ssim(image, target), by_convolution(image, target)
    torch.testing.assert_close(value, reference)
    (gradient,) = torch.autograd.grad(value, image)
    (expected,) = torch.autograd.grad(reference, image)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-3)


def test_is_one_for_the_same_image_and_less_for_another() -> None:
    image, target = images(2)
    assert abs(ssim(target, target) - 1) < 1e-6
    assert ssim(image, target) < 0.95
