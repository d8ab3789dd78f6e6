"""Losses of rendered images and their gradients on the CPU, as numba kernels.

For the mean structural similarity, an image row with its channels is treated as one vector. The
vertical blur adds whole rows; the horizontal blur adds the row to itself, shifted by whole pixels.
Only three maps of slopes are kept for the backward pass.
"""

import numpy as np
import torch
from torch import Tensor

from talker.avatar import losses
from talker.avatar.kernels.jit import inlined, kernel, run
from talker.avatar.losses import TAPS

f32 = np.float32
index = np.uint64  # signed indices would be tested for wrap-around in the inner loops
C1, C2 = f32(losses.C1), f32(losses.C2)
RADIUS = TAPS // 2


@inlined
def _along(window, channels, padded, blurred):
    """Blur a padded row [W C + 2 RADIUS C] along its pixels: [W C]."""
    step = index(channels)
    for j in range(index(len(blurred))):
        total = f32(0)
        for k in range(index(TAPS)):
            total += window[k] * padded[j + k * step]
        blurred[j] = total


@kernel
def _forward(task, n_tasks, image, target, channels, window, sums, slopes):
    n_batch, height, row = image.shape
    pad = RADIUS * channels
    down = np.zeros((4, row + 2 * pad), f32)
    x_row, y_row, squares_row, xy_row = down[:, pad : pad + row]
    both = np.empty((4, row), f32)
    for i in range(task * n_batch * height // n_tasks, (task + 1) * n_batch * height // n_tasks):
        b, line = i // height, i % height
        down[:, pad : pad + row] = 0
        for near in range(max(0, line - RADIUS), min(height, line + RADIUS + 1)):
            w = window[near - line + RADIUS]
            image_row, target_row = image[b, near], target[b, near]
            for j in range(row):
                x, y = image_row[j], target_row[j]
                wx, wy = w * x, w * y
                x_row[j] += wx
                y_row[j] += wy
                squares_row[j] += wx * x + wy * y
                xy_row[j] += wx * y
        for q in range(4):
            _along(window, channels, down[q], both[q])
        total = f32(0)
        for j in range(row):
            mx, my = both[0, j], both[1, j]
            a1, b1 = 2 * mx * my + C1, mx * mx + my * my + C1
            a2 = f32(2) * (both[3, j] - mx * my) + C2
            b2 = both[2, j] - mx * mx - my * my + C2
            inverse = f32(1) / (b1 * b2)
            value = a1 * a2 * inverse
            total += value
            slopes[b, 0, line, j] = f32(2) * (
                my * (a2 - a1) * inverse + value * mx * (b1 - b2) * inverse
            )
            slopes[b, 1, line, j] = -value * b1 * inverse
            slopes[b, 2, line, j] = f32(2) * a1 * inverse
        sums[b, line] = total


@kernel
def _backward(task, n_tasks, image, target, channels, window, slopes, scale, gradient):
    n_batch, height, row = image.shape
    pad = RADIUS * channels
    down = np.zeros((3, row + 2 * pad), f32)
    both = np.empty((3, row), f32)
    for i in range(task * n_batch * height // n_tasks, (task + 1) * n_batch * height // n_tasks):
        b, line = i // height, i % height
        for q in range(3):
            sum_row = down[q, pad : pad + row]
            sum_row[:] = 0
            for near in range(max(0, line - RADIUS), min(height, line + RADIUS + 1)):
                w, slope = window[near - line + RADIUS], slopes[b, q, near]
                for j in range(row):
                    sum_row[j] += w * slope[j]
            _along(window, channels, down[q], both[q])
        for j in range(row):
            x, y = image[b, line, j], target[b, line, j]
            gradient[b, line, j] = scale * (both[0, j] + f32(2) * x * both[1, j] + y * both[2, j])


class MeanSsim(torch.autograd.Function):
    """Mean SSIM of float32 image and target [B,H,W,C]; `window` [TAPS] sums to 1."""

    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor, window: Tensor) -> Tensor:
        batch, height, width, channels = image.shape
        rows = (batch, height, width * channels)
        arrays = tuple(x.detach().contiguous().numpy().reshape(rows) for x in (image, target))
        sums = np.empty((batch, height), f32)
        slopes = np.empty((batch, 3, height, width * channels), f32)
        run(_forward, *arrays, channels, window.numpy(), sums, slopes)
        ctx.saved = (arrays, window.numpy(), slopes, image.shape)
        return torch.tensor(sums.sum(dtype=np.float64) / image.numel(), dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v_mean: Tensor) -> tuple[Tensor, None, None]:
        arrays, window, slopes, shape = ctx.saved
        gradient = np.empty_like(arrays[0])
        scale = f32(v_mean.item() / gradient.size)
        run(_backward, *arrays, shape[-1], window, slopes, scale, gradient)
        return torch.from_numpy(gradient).reshape(shape), None, None


@kernel
def _pixels_forward(
    task, n_tasks, rgb, alpha, frame, background, mask, regions, image, target, sums
):
    n_batch, height, width = mask.shape
    difference = np.empty(width, f32)
    for i in range(task * n_batch * height // n_tasks, (task + 1) * n_batch * height // n_tasks):
        b, y = i // height, i % height
        total = total_alpha = f32(0)
        for x in range(width):
            covered = f32(mask[b, y, x]) / f32(255)
            difference[x] = 0
            for c in range(3):
                behind = f32(background[b, y, x, c]) / f32(255)
                wanted = behind + covered * (f32(frame[b, y, x, c]) / f32(255) - behind)
                composed = rgb[b, y, x, c] + (f32(1) - alpha[b, y, x, 0]) * behind
                image[b, y, x, c], target[b, y, x, c] = composed, wanted
                difference[x] += abs(composed - wanted) / f32(3)
            total += difference[x]
            total_alpha += abs(alpha[b, y, x, 0] - covered)
        sums[b, y, 0], sums[b, y, 1] = total, total_alpha
        for r in range(regions.shape[1]):
            box = regions[b, r]
            sums[b, y, 2 + r] = 0
            if box[1] <= y < box[3]:
                sums[b, y, 2 + r] = difference[box[0] : box[2]].sum()


@kernel
def _pixels_backward(
    task, n_tasks, image, target, alpha, background, mask, regions, v_image, weights, v_rgb, v_alpha
):
    n_batch, height, width = mask.shape
    weight = np.empty(width, f32)
    for i in range(task * n_batch * height // n_tasks, (task + 1) * n_batch * height // n_tasks):
        b, y = i // height, i % height
        weight[:] = weights[0]
        for r in range(regions.shape[1]):
            box = regions[b, r]
            if box[1] <= y < box[3]:
                weight[box[0] : box[2]] += weights[2 + r]
        for x in range(width):
            through = f32(0)
            for c in range(3):
                sign = np.sign(image[b, y, x, c] - target[b, y, x, c])
                v = v_image[b, y, x, c] + weight[x] / f32(3) * sign
                v_rgb[b, y, x, c] = v
                through += v * f32(background[b, y, x, c]) / f32(255)
            sign = np.sign(alpha[b, y, x, 0] - f32(mask[b, y, x]) / f32(255))
            v_alpha[b, y, x, 0] = weights[1] * sign - through


class PixelTerms(torch.autograd.Function):
    """`losses.pixel_terms` for float32; takes the fields of `Targets` as separate arguments."""

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
        given = (rgb, alpha, frame, background, mask, regions)
        arrays = [x.detach().contiguous().numpy() for x in given]
        image, target = np.empty_like(arrays[0]), np.empty_like(arrays[0])
        sums = np.empty((*mask.shape[:2], 2 + regions.shape[1]), f32)
        run(_pixels_forward, *arrays, image, target, sums)
        sides = (regions[..., 2:] - regions[..., :2]).clamp_min(0)
        inside = sides.prod(-1).sum(0).clamp_min(1)
        pixels = torch.cat([inside.new_tensor([mask.numel()] * 2), inside]).numpy()
        ctx.saved = (image, target, arrays[1], *arrays[3:], pixels)
        terms = (sums.sum((0, 1), dtype=np.float64) / pixels).astype(f32)
        image, target = torch.from_numpy(image), torch.from_numpy(target)
        ctx.mark_non_differentiable(target)
        return image, target, torch.from_numpy(terms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v_image: Tensor, _, v_terms: Tensor) -> tuple[Tensor | None, ...]:
        *arrays, pixels = ctx.saved
        weights = (v_terms.numpy() / pixels).astype(f32)
        v_rgb, v_alpha = np.empty_like(arrays[0]), np.empty_like(arrays[2])
        v_image = v_image.contiguous()
        run(_pixels_backward, *arrays, v_image.numpy(), weights, v_rgb, v_alpha)
        return torch.from_numpy(v_rgb), torch.from_numpy(v_alpha), None, None, None, None
