"""The losses of a rendered batch and their gradients as Triton kernels, two for each loss.

They compute the same as `losses.pixel_terms` and `losses.ssim_by_convolution` in plain torch, which
are limited by memory bandwidth because they pass over the images many times.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXEL_BLOCK = (16, 16)
"""Rows and columns of pixels that a block of the pixel kernels covers."""
SSIM_BLOCK = (16, 64)
"""Rows and columns that a block of the SSIM kernels covers; a column is a channel of a pixel."""
CHANNELS = 3
"""Color channels of an image."""


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, 0.0) - tl.where(x < 0, 1.0, 0.0)


@triton.jit
def _l1(x):
    return tl.sum(tl.sum(tl.abs(x), 1), 0)


@triton.jit
def _load_pixels(alpha, mask, H, W, Y: tl.constexpr, X: tl.constexpr):
    """Load the alphas and masks of this block's pixels [Y, X].

    Returns the rows, columns and offsets of the pixels, whether they are inside the image, their
    alphas and their masks.
    """
    y = tl.program_id(1) * Y + tl.arange(0, Y)[:, None]
    x = tl.program_id(0) * X + tl.arange(0, X)[None, :]
    frame = tl.program_id(2).to(tl.int64)
    at = frame * H * W + y * W + x
    inside = (y < H) & (x < W)
    opacity = tl.load(alpha + at, inside, 0.0)
    covered = tl.load(mask + at, inside, 0).to(tl.float32) / 255
    return y, x, at, inside, opacity, covered


@triton.jit
def _in_region(regions, region: tl.constexpr, y, x, REGIONS: tl.constexpr):
    """Return which of the pixels at y [Y, 1] and x [1, X] are inside the box of a region."""
    box = regions + 4 * (REGIONS * tl.program_id(2).to(tl.int64) + region)
    columns = (x >= tl.load(box)) & (x < tl.load(box + 2))
    return columns & (y >= tl.load(box + 1)) & (y < tl.load(box + 3))


@triton.jit
def _compose(rgb, frame, background, at, inside, opacity, covered):
    """Return one channel of the composed image, of its target and of the background."""
    behind = tl.load(background + at, inside, 0).to(tl.float32) / 255
    real = tl.load(frame + at, inside, 0).to(tl.float32) / 255
    image = tl.load(rgb + at, inside, 0.0) + (1 - opacity) * behind
    return image, behind + covered * (real - behind), behind


@triton.jit
def _pixels_forward(
    rgb, alpha, frame, background, mask, regions, pixels, image_out, target_out, sums, H, W, share,
    Y: tl.constexpr, X: tl.constexpr, REGIONS: tl.constexpr,
):  # fmt: skip
    """Write images and targets, and this block's part of the terms to a row of `sums`.

    `pixels` [REGIONS] are the numbers of pixels in the boxes of each region, and `share` is
    1 / (number of color values). `sums` is [blocks, 2 + REGIONS].
    """
    y, x, at, inside, opacity, covered = _load_pixels(alpha, mask, H, W, Y, X)
    there = inside.to(tl.float32)
    abs_diff = tl.zeros((Y, X), tl.float32)
    for channel in tl.static_range(3):
        here = 3 * at + channel
        image, target, _ = _compose(rgb, frame, background, here, inside, opacity, covered)
        tl.store(image_out + here, image, inside)
        tl.store(target_out + here, target, inside)
        abs_diff += there * tl.abs(image - target)
    block = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    sums += (2 + REGIONS) * (block + tl.program_id(0))
    tl.store(sums, share * _l1(abs_diff))
    tl.store(sums + 1, 3 * share * _l1(there * (opacity - covered)))
    for region in tl.static_range(REGIONS):
        in_region = _in_region(regions, region, y, x, REGIONS)
        total = _l1(tl.where(in_region, abs_diff, 0.0))
        tl.store(sums + 2 + region, total / (3 * tl.load(pixels + region)))


@triton.jit
def _pixels_backward(
    rgb, alpha, frame, background, mask, regions, pixels, image_grad, terms_grad,
    rgb_grad, alpha_grad, H, W, share, Y: tl.constexpr, X: tl.constexpr, REGIONS: tl.constexpr,
):  # fmt: skip
    y, x, at, inside, opacity, covered = _load_pixels(alpha, mask, H, W, Y, X)
    slope = tl.zeros((Y, X), tl.float32) + share * tl.load(terms_grad)
    for region in tl.static_range(REGIONS):
        in_region = _in_region(regions, region, y, x, REGIONS)
        weight = tl.load(terms_grad + 2 + region) / (3 * tl.load(pixels + region))
        slope += tl.where(in_region, weight, 0.0)
    opacity_grad = 3 * share * tl.load(terms_grad + 1) * _sign(opacity - covered)
    for channel in tl.static_range(3):
        here = 3 * at + channel
        image, target, behind = _compose(rgb, frame, background, here, inside, opacity, covered)
        gradient = tl.load(image_grad + here, inside, 0.0) + slope * _sign(image - target)
        tl.store(rgb_grad + here, gradient, inside)
        opacity_grad -= gradient * behind
    tl.store(alpha_grad + at, opacity_grad, inside)


class PixelTerms(torch.autograd.Function):
    """`losses.pixel_terms` on CUDA; takes the fields of `Targets` as separate arguments."""

    @staticmethod
    def forward(
        ctx,
        rgb: Tensor,
        alpha: Tensor,
        frame: Tensor,
        background: Tensor,
        mask: Tensor,
        regions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        width, height = (regions[..., 2:] - regions[..., :2]).unbind(-1)
        pixels = (width * height).sum(0).clamp_min(1).float()
        inputs = [x.contiguous() for x in (rgb, alpha, frame, background, mask, regions, pixels)]
        image, target = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
        sums = rgb.new_empty(math.prod(_pixel_grid(rgb)), 2 + regions.shape[1])
        _launch_pixels(_pixels_forward, [*inputs, image, target, sums])
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(target)
        return image, target, sums.sum(0)

    @staticmethod
    def backward(ctx, image_grad: Tensor, _, terms_grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        outputs = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
        gradients = image_grad.contiguous(), terms_grad.contiguous()
        _launch_pixels(_pixels_backward, [*inputs, *gradients, *outputs])
        return *outputs, None, None, None, None


def _pixel_grid(rgb: Tensor) -> tuple[int, int, int]:
    batch, height, width, _ = rgb.shape
    return triton.cdiv(width, PIXEL_BLOCK[1]), triton.cdiv(height, PIXEL_BLOCK[0]), batch


def _launch_pixels(kernel, tensors: list[Tensor]) -> None:
    _, height, width, _ = tensors[0].shape
    rows, columns = PIXEL_BLOCK
    share = 1 / tensors[0].numel()
    kernel[_pixel_grid(tensors[0])](
        *tensors, height, width, share,
        Y=rows, X=columns, REGIONS=tensors[5].shape[1], num_warps=1,
    )  # fmt: skip


@triton.jit
def _position(H, W, Y: tl.constexpr, X: tl.constexpr):
    """Return rows [Y, 1] and columns [1, X] of this block, and the offset of its image [H, W]."""
    y = tl.program_id(1) * Y + tl.arange(0, Y)[:, None]
    x = tl.program_id(0) * X + tl.arange(0, X)[None, :]
    return y, x, tl.program_id(2).to(tl.int64) * H * W


@triton.jit
def _weights(window, line, y, TAPS: tl.constexpr):
    """Return the weights with which an image row `line` contributes to the rows y [Y, 1]."""
    tap = line - y + TAPS // 2
    return tl.load(window + tap, (tap >= 0) & (tap < TAPS), 0.0)


@triton.jit
def _ssim_forward(
    image, target, window, total, by_mean, by_square, by_product, H, W, C1, C2,
    STEP: tl.constexpr, TAPS: tl.constexpr, Y: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    """Add this block's SSIM to `total` and write the three slopes that the gradient needs.

    Each image row is blurred horizontally once and then added to the rows of the block with the
    weights of the window, so that the moments stay in registers.
    """
    y, x, start = _position(H, W, Y, X)
    mx = tl.zeros((Y, X), tl.float32)
    my, xx, yy, xy = mx, mx, mx, mx
    first = tl.program_id(1) * Y - TAPS // 2
    for line in range(first, first + Y + TAPS - 1):
        a1 = tl.zeros((1, X), tl.float32)
        b1, aa, bb, ab = a1, a1, a1, a1
        for j in tl.static_range(TAPS):
            column = x + STEP * (j - TAPS // 2)
            there = (line >= 0) & (line < H) & (column >= 0) & (column < W)
            a = tl.load(image + start + line * W + column, there, 0.0)
            b = tl.load(target + start + line * W + column, there, 0.0)
            weight = tl.load(window + j)
            a1 += weight * a
            b1 += weight * b
            aa += weight * a * a
            bb += weight * b * b
            ab += weight * a * b
        share = _weights(window, line, y, TAPS)
        mx += share * a1
        my += share * b1
        xx += share * aa
        yy += share * bb
        xy += share * ab
    above1 = 2 * mx * my + C1
    above2 = 2 * (xy - mx * my) + C2
    below1 = mx * mx + my * my + C1
    below2 = xx - mx * mx + yy - my * my + C2
    scale = 1 / (below1 * below2)
    ssim = above1 * above2 * scale
    here = (y < H) & (x < W)
    tl.atomic_add(total, tl.sum(tl.sum(tl.where(here, ssim, 0.0), 1), 0))
    at = start + y * W + x
    slope = 2 * my * (above2 - above1) * scale - 2 * mx * ssim * (1 / below1 - 1 / below2)
    tl.store(by_mean + at, slope, here)
    tl.store(by_square + at, -ssim / below2, here)
    tl.store(by_product + at, 2 * above1 * scale, here)


@triton.jit
def _ssim_backward(
    image, target, window, by_mean, by_square, by_product, scale, gradient, H, W,
    STEP: tl.constexpr, TAPS: tl.constexpr, Y: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    y, x, start = _position(H, W, Y, X)
    mean = tl.zeros((Y, X), tl.float32)
    square, product = mean, mean
    first = tl.program_id(1) * Y - TAPS // 2
    for line in range(first, first + Y + TAPS - 1):
        mean1 = tl.zeros((1, X), tl.float32)
        square1, product1 = mean1, mean1
        for j in tl.static_range(TAPS):
            column = x + STEP * (j - TAPS // 2)
            there = (line >= 0) & (line < H) & (column >= 0) & (column < W)
            at = start + line * W + column
            weight = tl.load(window + j)
            mean1 += weight * tl.load(by_mean + at, there, 0.0)
            square1 += weight * tl.load(by_square + at, there, 0.0)
            product1 += weight * tl.load(by_product + at, there, 0.0)
        share = _weights(window, line, y, TAPS)
        mean += share * mean1
        square += share * square1
        product += share * product1
    here = (y < H) & (x < W)
    at = start + y * W + x
    a, b = tl.load(image + at, here, 0.0), tl.load(target + at, here, 0.0)
    tl.store(gradient + at, tl.load(scale) * (mean + 2 * a * square + b * product), here)


class MeanSsim(torch.autograd.Function):
    """`losses.ssim` of images [B, H, W, 3] on CUDA with a window [TAPS] that sums to 1."""

    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor, window: Tensor, c1: float, c2: float) -> Tensor:
        image, target = image.contiguous(), target.contiguous()
        total = image.new_zeros(1)
        maps = [torch.empty_like(image) for _ in range(3)]
        _launch_ssim(_ssim_forward, [image, target, window, total, *maps], c1, c2)
        ctx.save_for_backward(image, target, window, *maps)
        return total[0] / image.numel()

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        image, target, window, *maps = ctx.saved_tensors
        gradient = torch.empty_like(image)
        scale = (grad_output / image.numel()).reshape(1)
        _launch_ssim(_ssim_backward, [image, target, window, *maps, scale, gradient])
        return gradient, None, None, None, None


def _launch_ssim(kernel, tensors: list[Tensor], *constants: float) -> None:
    batch, height, width, _ = tensors[0].shape
    rows, columns = SSIM_BLOCK
    grid = (triton.cdiv(CHANNELS * width, columns), triton.cdiv(height, rows), batch)
    kernel[grid](
        *tensors, height, CHANNELS * width, *constants,
        STEP=CHANNELS, TAPS=len(tensors[2]), Y=rows, X=columns, num_warps=2,
    )  # fmt: skip
