"""Add blendshapes, activate the Gaussians and evaluate their colors in one Triton kernel.

The kernel computes the same as `Blendshapes.gaussians` and `to_view` in plain torch, which write
all spherical harmonics of all frames to memory. Here, a block of Gaussians of `FRAMES` frames stays
in registers until the values that the rasterizer reads are complete. There is no backward kernel.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from talker.avatar.kernels.deform_triton import harmonic

FRAMES = 16
"""Frames per block, the smallest number of rows of a matrix product in Triton."""
GAUSSIANS = 64
"""Gaussians per block."""
STEP = 16
"""Blendshapes per matrix product; their number is padded to a multiple of it."""


class BlendshapeInputs(NamedTuple):
    """What the kernel reads of `Blendshapes`, in blocks of `GAUSSIANS` Gaussians, padded with 0."""

    mean: Float[Tensor, "blocks P 64"]
    """[blocks, P, GAUSSIANS], mean parameters"""
    shapes: Float[Tensor, "blocks 14 K 64"]
    """[blocks, 14, K, GAUSSIANS] in half precision, K is a multiple of `STEP`"""


@triton.jit
def _parameter(weights, shapes, mean, p, frames, real, K, M: tl.constexpr, STEP: tl.constexpr):
    """Return the parameter p [FRAMES, M] of a block of Gaussians in a block of frames."""
    k, column = tl.arange(0, STEP), tl.arange(0, M)
    total = tl.zeros((frames.shape[0], M), tl.float32) + tl.load(mean + p * M + column)
    for start in range(0, K, STEP):
        w = tl.load(weights + frames[:, None] * K + start + k, real[:, None], 0.0)
        total += tl.dot(w, tl.load(shapes + (p * K + start + k)[:, None] * M + column))
    return total


@triton.jit
def _blend(
    weights, shapes, mean, points, camera, means, quats, scales, opacities, colors,
    B, G, K, HARMONICS: tl.constexpr, FRAMES: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    frames = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    column = tl.arange(0, M)
    rows = block * M + column
    real, inside = frames < B, rows < G
    here = real[:, None] & inside
    at = frames.to(tl.int64)[:, None] * G + rows
    shapes += block.to(tl.int64) * 14 * K * M
    mean += block.to(tl.int64) * (11 + 3 * HARMONICS) * M
    for p in tl.static_range(11):
        value = _parameter(weights, shapes, mean, p, frames, real, K, M, STEP)
        if p < 3:
            tl.store(means + at * 3 + p, value, here)
        elif p < 7:
            tl.store(quats + at * 4 + p - 3, value, here)
        elif p < 10:
            tl.store(scales + at * 3 + p - 7, tl.exp(value), here)
        else:
            tl.store(opacities + at, tl.sigmoid(value), here)

    x = tl.load(points + rows * 3, inside, 0.0) - tl.load(camera + frames * 3, real, 0.0)[:, None]
    y = (
        tl.load(points + rows * 3 + 1, inside, 0.0)
        - tl.load(camera + frames * 3 + 1, real, 0.0)[:, None]
    )
    z = (
        tl.load(points + rows * 3 + 2, inside, 0.0)
        - tl.load(camera + frames * 3 + 2, real, 0.0)[:, None]
    )
    scale = 1 / tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)
    x, y, z = x * scale, y * scale, z * scale
    for c in tl.static_range(3):
        constant = _parameter(weights, shapes, mean, 11 + c, frames, real, K, M, STEP)
        color = harmonic(x, y, z, 0) * constant + 0.5
        for k in tl.static_range(1, HARMONICS):
            color += harmonic(x, y, z, k) * tl.load(mean + (11 + 3 * k + c) * M + column)
        tl.store(colors + at * 3 + c, tl.maximum(color, 0.0), here)


def blendshape_inputs(
    mean: Float[Tensor, "G P"], shapes: Float[Tensor, "K G 14"]
) -> BlendshapeInputs:
    """Return the fields of `Blendshapes` in the layout of the kernel."""
    missing = -len(mean) % GAUSSIANS
    mean = F.pad(mean, (0, 0, 0, missing)).unflatten(0, (-1, GAUSSIANS))
    shapes = F.pad(shapes, (0, 0, 0, missing, 0, -len(shapes) % STEP)).half()
    shapes = shapes.unflatten(1, (-1, GAUSSIANS))
    return BlendshapeInputs(
        mean.transpose(1, 2).contiguous(), shapes.permute(1, 3, 0, 2).contiguous()
    )


def deform(
    shared: BlendshapeInputs,
    weights: Float[Tensor, "B K"],
    points: Float[Tensor, "G 3"],
    centers: Float[Tensor, "B 3"],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Deform G Gaussians for B frames.

    Args:
        weights: [B, K], weights of the blendshapes.
        points: [G, 3], positions that the viewing directions are computed from.
        centers: [B, 3], world positions of the cameras.

    Returns:
        means [B, G, 3], quats [B, G, 4], scales [B, G, 3], opacities [B, G] and colors [B, G, 3]
        as `rasterize` takes them.
    """
    mean, shapes = shared
    frames, count, padded = len(weights), len(points), shapes.shape[2]
    given = F.pad(weights, (0, padded - weights.shape[1])).half()
    outputs = tuple(mean.new_empty(frames, count, *shape) for shape in ((3,), (4,), (3,), (), (3,)))
    _blend[(triton.cdiv(frames, FRAMES), triton.cdiv(count, GAUSSIANS))](
        given.contiguous(), shapes, mean, points.contiguous(), centers.contiguous(), *outputs,
        frames, count, padded, HARMONICS=(mean.shape[1] - 11) // 3,
        FRAMES=FRAMES, M=GAUSSIANS, STEP=STEP, num_warps=4,
    )  # fmt: skip
    return outputs
