"""Structural similarity against its definition, and the kernels against plain torch.

Without a GPU that of the pixels runs in Triton's interpreter, with TRITON_INTERPRET=1.
"""

import os
from typing import Any

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from talker.avatar.losses import (
    C1,
    C2,
    SIGMA,
    TAPS,
    pixel_terms,
    ssim,
    ssim_by_convolution,
)
from talker.avatar.training_set import Targets

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(*shape, generator=generator)
    return image, (image + 0.2 * torch.randn(*shape, generator=generator)).clamp(0, 1)


def window() -> Tensor:
    offsets = torch.arange(TAPS, dtype=torch.float64) - TAPS // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def test_follows_the_definition():
    image, target = (x.double().numpy()[0, ..., 0] for x in images(1, 30, 41, 1))

    def blur(x):
        return gaussian_filter(x, SIGMA, mode="constant", radius=TAPS // 2)

    mx, my = blur(image), blur(target)
    vx, vy = blur(image**2) - mx**2, blur(target**2) - my**2
    cov = blur(image * target) - mx * my
    expected = (2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))
    found = ssim(*images(1, 30, 41, 1))
    assert found.item() == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 33, 47, 3), (1, 3, 70, 3), (1, 20, 4, 1)])
def test_value_and_gradient_match_plain_torch(shape):
    image, target = images(*shape)
    image.requires_grad_()
    exact = image.detach().double().requires_grad_()
    value, expected = ssim(image, target), ssim_by_convolution(exact, target.double(), window())
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    (3 * value).backward()
    (3 * expected).backward()
    assert image.grad is not None and exact.grad is not None
    assert (image.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm()


def test_an_image_is_most_similar_to_itself():
    image, target = images(1, 32, 32, 3)
    image.requires_grad_()
    same = ssim(image, image)
    assert same.item() == pytest.approx(1, abs=1e-6)
    same.backward()
    assert image.grad is not None and image.grad.abs().max() < 1e-6
    assert ssim(image, target) < 0.95


def test_repeats_bitwise_with_any_number_of_threads():
    image, target = images(2, 40, 40, 3)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = image.clone().requires_grad_()
            value = ssim(leaf, target)
            value.backward()
            runs.append((value, leaf.grad))
    finally:
        torch.set_num_threads(before)
    for value, gradient in runs[1:]:
        assert torch.equal(value, runs[0][0]) and torch.equal(gradient, runs[0][1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_gives_what_the_cpu_gives():
    image, target = images(2, 61, 83, 3)
    here = image.clone().requires_grad_()
    there = image.cuda().requires_grad_()
    expected, found = ssim(here, target), ssim(there, target.cuda())
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    expected.backward()
    found.backward()
    assert here.grad is not None and there.grad is not None
    assert (there.grad.cpu() - here.grad).norm() <= 1e-4 * here.grad.norm()


def on_a_gpu(test):
    return test if INTERPRETED else pytest.mark.gpu(test)


@pytest.mark.parametrize("size", [(64, 96), (37, 51), (3, 5)])
def test_the_kernel_of_pixels_on_the_cpu_is_the_plain_one(size):
    from talker.avatar.kernels.losses_cpu import PixelTerms

    compare_pixel_terms(PixelTerms, "cpu", size)


@on_a_gpu
@pytest.mark.parametrize("size", [(64, 96), (37, 51), (3, 5)])
def test_the_kernel_of_pixels_is_the_plain_one(size):
    from talker.avatar.kernels.losses_triton import PixelTerms

    compare_pixel_terms(PixelTerms, DEVICE, size)


def compare_pixel_terms(kernel: Any, device: str, size: tuple[int, int]) -> None:
    """Values and gradients agree for any weights of the terms and the composed image."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.rand(2, *size, *shape, generator=generator)

    frame, background, mask = ((255 * made(*n)).byte() for n in ((3,), (3,), ()))
    regions = torch.tensor(
        [
            [[1, 1, size[1] - 1, 2], [0, 0, 2, 2], [1, 0, 4, 3], [0, 0, 1, 2], [2, 0, 3, 3]],
            [[0, 2, 3, 3], [2, 1, 3, 3], [0, 0, 1, 1], [1, 2, 2, 3], [1, 0, 5, 1]],
        ]
    )
    weights, pull = torch.rand(7, generator=generator), made(3)
    outcomes = []
    given = made(3), made(1)
    for place, kind, terms in (
        ("cpu", torch.float64, pixel_terms),
        (device, torch.float32, lambda *x: kernel.apply(*x[:2], *x[2])),
    ):
        rgb, alpha = (x.to(place, kind).requires_grad_() for x in given)
        targets = Targets(*(x.to(place) for x in (frame, background, mask, regions)))
        image, target, values = terms(rgb, alpha, targets)
        loss = (values * weights.to(values)).sum() + (image * pull.to(image)).mean()
        gradients = torch.autograd.grad(loss, [rgb, alpha])
        outcomes.append((image, target, values, *gradients))
    for expected, found in zip(*outcomes, strict=True):
        assert (found.cpu() - expected).norm() <= 1e-5 * expected.norm()
