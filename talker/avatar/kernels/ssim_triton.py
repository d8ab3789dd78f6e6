"""Mean SSIM and its gradient in two Triton kernels: moments stay in registers.

A block walks down its columns: each line is blurred across once and added, with the weights of the
window, to the output lines that it touches. No blurred image is written but the three maps that
the gradient needs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LINES, COLUMNS = 16, 64  # of a block; a column is one channel of one pixel
CHANNELS = 3


@triton.jit
def _position(H, W, Y: tl.constexpr, X: tl.constexpr):
    """Lines [Y, 1] and columns [1, X] of this block, and where its image [H, W] begins."""
    y = tl.program_id(1) * Y + tl.arange(0, Y)[:, None]
    x = tl.program_id(0) * X + tl.arange(0, X)[None, :]
    return y, x, tl.program_id(2).to(tl.int64) * H * W


@triton.jit
def _weights(window, line, y, TAPS: tl.constexpr):
    """What a line gives to the lines y [Y, 1]."""
    tap = line - y + TAPS // 2
    return tl.load(window + tap, (tap >= 0) & (tap < TAPS), 0.0)


@triton.jit
def _compare(
    image, target, window, total, by_mean, by_square, by_product, H, W, C1, C2,
    STEP: tl.constexpr, TAPS: tl.constexpr, Y: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
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
def _pull(
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
    """`talker.avatar.losses.ssim` of images [B, H, W, 3] with a window [TAPS] that sums to 1."""

    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor, window: Tensor, c1: float, c2: float) -> Tensor:
        image, target = image.contiguous(), target.contiguous()
        batch, height, width, _ = image.shape
        total = image.new_zeros(1)
        maps = [torch.empty_like(image) for _ in range(3)]
        _launch(_compare, [image, target, window, total, *maps], batch, height, width, (c1, c2))
        ctx.save_for_backward(image, target, window, *maps)
        return total[0] / image.numel()

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        image, target, window, *maps = ctx.saved_tensors
        batch, height, width, _ = image.shape
        gradient = torch.empty_like(image)
        scale = (grad_output / image.numel()).reshape(1)
        _launch(_pull, [image, target, window, *maps, scale, gradient], batch, height, width)
        return gradient, None, None, None, None


def _launch(kernel, tensors, batch, height, width, constants=()) -> None:
    columns = CHANNELS * width
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(height, LINES), batch)
    taps = len(tensors[2])
    kernel[grid](
        *tensors, height, columns, *constants,
        STEP=CHANNELS, TAPS=taps, Y=LINES, X=COLUMNS, num_warps=2,
    )  # fmt: skip
