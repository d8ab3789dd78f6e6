"""Mean structural similarity and its gradient on the CPU, as two passes of numba kernels.

An image row with its channels is treated as one vector. The vertical blur adds whole rows; the
horizontal blur adds the row to itself, shifted by whole pixels. Only three maps of slopes are kept
for the backward pass.
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
    down = np.zeros((5, row + 2 * pad), f32)
    x_row, y_row, xx_row, yy_row, xy_row = down[:, pad : pad + row]
    both = np.empty((5, row), f32)
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
                xx_row[j] += wx * x
                yy_row[j] += wy * y
                xy_row[j] += wx * y
        for q in range(5):
            _along(window, channels, down[q], both[q])
        total = f32(0)
        for j in range(row):
            mx, my = both[0, j], both[1, j]
            a1, b1 = 2 * mx * my + C1, mx * mx + my * my + C1
            a2 = f32(2) * (both[4, j] - mx * my) + C2
            b2 = both[2, j] - mx * mx + both[3, j] - my * my + C2
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
