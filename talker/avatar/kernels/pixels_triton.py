"""What a rendered batch costs pixel by pixel, and its gradient: two Triton kernels.

The twin of `losses.pixel_terms` in plain torch, whose forty passes over the images wait for memory.
The pyramid's box filters never look beyond a cell of 16 x 16 pixels, so a block has all that its
levels need.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from talker.avatar.kernels.constants import LEVELS

LINES, COLUMNS = 16, 16
"""of a block, multiples of the coarsest cell"""


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, 0.0) - tl.where(x < 0, 1.0, 0.0)


@triton.jit
def _cells(x, Y: tl.constexpr, X: tl.constexpr):
    """The sums [Y / 2, X / 2] of cells of 2 x 2."""
    return tl.sum(tl.sum(tl.reshape(x, (Y // 2, 2, X // 2, 2)), 3), 1)


@triton.jit
def _spread(x, Y: tl.constexpr, X: tl.constexpr):
    """[Y / 2, X / 2] repeated to [Y, X]."""
    apart = tl.reshape(x, (Y // 2, 1, X // 2, 1))
    return tl.reshape(tl.broadcast_to(apart, (Y // 2, 2, X // 2, 2)), (Y, X))


@triton.jit
def _halve(rest, there, Y: tl.constexpr, X: tl.constexpr):
    """The means of what is there of 2 x 2, whether any is, and the band that they lack."""
    count = _cells(there, Y, X)
    coarse = _cells(rest, Y, X) / tl.maximum(count, 1.0)
    return coarse, tl.minimum(count, 1.0), there * (rest - _spread(coarse, Y, X))


@triton.jit
def _raise(slope, band, there, share, Y: tl.constexpr, X: tl.constexpr):
    """The gradient of `_halve`, `slope` being that of the means, with that of the band's L1."""
    own = share * _sign(band)
    up = (slope - _cells(own, Y, X)) / tl.maximum(_cells(there, Y, X), 1.0)
    return there * (own + _spread(up, Y, X))


@triton.jit
def _l1(x):
    return tl.sum(tl.sum(tl.abs(x), 1), 0)


@triton.jit
def _bands(rest0, there0, share0, share1, share2, share3, share4, Y: tl.constexpr, X: tl.constexpr):
    """`losses.bands` of a block and its gradient; share k is one over the values of level k."""
    rest1, there1, band0 = _halve(rest0, there0, Y, X)
    rest2, there2, band1 = _halve(rest1, there1, Y // 2, X // 2)
    rest3, there3, band2 = _halve(rest2, there2, Y // 4, X // 4)
    rest4, _, band3 = _halve(rest3, there3, Y // 8, X // 8)
    value = share0 * _l1(band0) + share1 * _l1(band1) + share2 * _l1(band2)
    value += share3 * _l1(band3) + share4 * _l1(rest4)
    slope = _raise(share4 * _sign(rest4), band3, there3, share3, Y // 8, X // 8)
    slope = _raise(slope, band2, there2, share2, Y // 4, X // 4)
    slope = _raise(slope, band1, there1, share1, Y // 2, X // 2)
    return value, _raise(slope, band0, there0, share0, Y, X)


@triton.jit
def _pixels(alpha, mask, lips, H, W, Y: tl.constexpr, X: tl.constexpr):
    """Where this block's pixels [Y, X] lie, which there are, which show lips, alphas and masks."""
    y = tl.program_id(1) * Y + tl.arange(0, Y)[:, None]
    x = tl.program_id(0) * X + tl.arange(0, X)[None, :]
    frame = tl.program_id(2).to(tl.int64)
    at = frame * H * W + y * W + x
    inside = (y < H) & (x < W)
    box = lips + 4 * frame
    speaks = (x >= tl.load(box)) & (y >= tl.load(box + 1))
    speaks = speaks & (x < tl.load(box + 2)) & (y < tl.load(box + 3))
    seen = tl.load(alpha + at, inside, 0.0)
    covered = tl.load(mask + at, inside, 0).to(tl.float32) / 255
    return at, inside, speaks, seen, covered


@triton.jit
def _colour(rgb, frame, background, at, inside, seen, covered):
    """One channel of the composed image, of its target and of the background."""
    behind = tl.load(background + at, inside, 0).to(tl.float32) / 255
    wanted = tl.load(frame + at, inside, 0).to(tl.float32) / 255
    image = tl.load(rgb + at, inside, 0.0) + (1 - seen) * behind
    return image, behind + covered * (wanted - behind), behind


@triton.jit
def _compare(
    rgb, alpha, frame, background, mask, lips, speaking, image_out, target_out, sums, H, W,
    share0, share1, share2, share3, share4, Y: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    """`sums` [blocks, 4] gets a block's part of the terms; `speaking` [1] pixels show lips."""
    at, inside, speaks, seen, covered = _pixels(alpha, mask, lips, H, W, Y, X)
    there = inside.to(tl.float32)
    apart, detail = tl.zeros((Y, X), tl.float32), 0.0
    for channel in tl.static_range(3):
        here = 3 * at + channel
        image, target, _ = _colour(rgb, frame, background, here, inside, seen, covered)
        tl.store(image_out + here, image, inside)
        tl.store(target_out + here, target, inside)
        difference = there * (image - target)
        apart += tl.abs(difference)
        value, _ = _bands(difference, there, share0, share1, share2, share3, share4, Y, X)
        detail += value
    block = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    sums += 4 * (block + tl.program_id(0))
    tl.store(sums, share0 * _l1(apart))
    tl.store(sums + 1, _l1(tl.where(speaks, apart, 0.0)) / (3 * tl.load(speaking)))
    tl.store(sums + 2, 3 * share0 * _l1(there * (seen - covered)))
    tl.store(sums + 3, detail)


@triton.jit
def _pull(
    rgb, alpha, frame, background, mask, lips, speaking, image_grad, terms_grad,
    rgb_grad, alpha_grad, H, W,
    share0, share1, share2, share3, share4, Y: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    at, inside, speaks, seen, covered = _pixels(alpha, mask, lips, H, W, Y, X)
    there = inside.to(tl.float32)
    flat = share0 * tl.load(terms_grad)
    flat += tl.where(speaks, tl.load(terms_grad + 1) / (3 * tl.load(speaking)), 0.0)
    seen_grad = 3 * share0 * tl.load(terms_grad + 2) * _sign(seen - covered)
    detail = tl.load(terms_grad + 3)
    for channel in tl.static_range(3):
        here = 3 * at + channel
        image, target, behind = _colour(rgb, frame, background, here, inside, seen, covered)
        difference = there * (image - target)
        _, slope = _bands(difference, there, share0, share1, share2, share3, share4, Y, X)
        gradient = tl.load(image_grad + here, inside, 0.0)
        gradient += flat * _sign(difference) + detail * slope
        tl.store(rgb_grad + here, gradient, inside)
        seen_grad -= gradient * behind
    tl.store(alpha_grad + at, seen_grad, inside)


class PixelTerms(torch.autograd.Function):
    """`losses.pixel_terms` on CUDA."""

    @staticmethod
    def forward(
        ctx,
        rgb: Tensor,
        alpha: Tensor,
        frame: Tensor,
        background: Tensor,
        mask: Tensor,
        lips: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide, high = (lips[:, 2:] - lips[:, :2]).unbind(1)
        speaking = (wide * high).sum(0, keepdim=True).clamp_min(1).float()
        inputs = [x.contiguous() for x in (rgb, alpha, frame, background, mask, lips, speaking)]
        batch, height, width, _ = rgb.shape
        image, target = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
        sums = rgb.new_empty(batch * math.prod(_blocks(height, width)), 4)
        _launch(_compare, [*inputs, image, target, sums])
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(target)
        return image, target, sums.sum(0)

    @staticmethod
    def backward(ctx, image_grad: Tensor, _, terms_grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        found = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
        _launch(_pull, [*inputs, image_grad.contiguous(), terms_grad.contiguous(), *found])
        return *found, None, None, None, None


def _blocks(height: int, width: int) -> tuple[int, int]:
    return triton.cdiv(width, COLUMNS), triton.cdiv(height, LINES)


def _launch(kernel, tensors: list[Tensor]) -> None:
    batch, height, width, channels = tensors[0].shape
    cells = (2**level for level in range(LEVELS + 1))
    shares = [1 / (batch * channels * math.ceil(height / c) * math.ceil(width / c)) for c in cells]
    kernel[(*_blocks(height, width), batch)](
        *tensors, height, width, *shares, Y=LINES, X=COLUMNS, num_warps=1
    )
