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
    """What the kernel reads of `Blendshapes`, in the order in which it reads it."""

    mean: Float[Tensor, "P G"]
    """[P, G], mean parameters"""
    shapes: Float[Tensor, "14 K G"]
    """[14, K, G] in half precision, K padded with zeros to a multiple of `STEP`"""


@triton.jit
def _parameter(weights, shapes, mean, p, frames, real, rows, inside, K, B, G, STEP: tl.constexpr):
    """Return the parameter p [FRAMES, M] of a block of Gaussians in a block of frames."""
    k = tl.arange(0, STEP)
    total = tl.zeros((frames.shape[0], rows.shape[0]), tl.float32)
    for start in range(0, K, STEP):
        w = tl.load(weights + frames[:, None] * K + start + k, real[:, None], 0.0)
        at = (p * K + start + k).to(tl.int64)[:, None] * G + rows
        total += tl.dot(w, tl.load(shapes + at, inside[None, :], 0.0))
    return total + tl.load(mean + p * G + rows, inside, 0.0)


@triton.jit
def _blend(
    weights, shapes, mean, points, camera, means, quats, scales, opacities, colors,
    B, G, K, HARMONICS: tl.constexpr, FRAMES: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    frames = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    rows = tl.program_id(1) * M + tl.arange(0, M)
    real, inside = frames < B, rows < G
    here = real[:, None] & inside
    at = frames.to(tl.int64)[:, None] * G + rows
    for p in tl.static_range(11):
        value = _parameter(
            weights, shapes, mean, p, frames, real, rows, inside, K, B, G, STEP
        )  # fmt: skip
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
        constant = _parameter(
            weights, shapes, mean, 11 + c, frames, real, rows, inside, K, B, G, STEP
        )  # fmt: skip
        color = harmonic(x, y, z, 0) * constant + 0.5
        for k in tl.static_range(1, HARMONICS):
            sh = tl.load(mean + (11 + 3 * k + c) * G + rows, inside, 0.0)
            color += harmonic(x, y, z, k) * sh
        tl.store(colors + at * 3 + c, tl.maximum(color, 0.0), here)


def blendshape_inputs(
    mean: Float[Tensor, "G P"], shapes: Float[Tensor, "K G 14"]
) -> BlendshapeInputs:
    """Return the fields of `Blendshapes` in the layout of the kernel."""
    padded = F.pad(shapes, (0, 0, 0, 0, 0, -len(shapes) % STEP))
    return BlendshapeInputs(
        mean.float().T.contiguous(), padded.half().permute(2, 0, 1).contiguous()
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
    parameters, count = mean.shape
    frames, padded = len(weights), shapes.shape[1]
    given = F.pad(weights, (0, padded - weights.shape[1])).half()
    outputs = tuple(mean.new_empty(frames, count, *shape) for shape in ((3,), (4,), (3,), (), (3,)))
    _blend[(triton.cdiv(frames, FRAMES), triton.cdiv(count, GAUSSIANS))](
        given.contiguous(), shapes, mean, points.contiguous(), centers.contiguous(), *outputs,
        frames, count, padded, HARMONICS=(parameters - 11) // 3,
        FRAMES=FRAMES, M=GAUSSIANS, STEP=STEP, num_warps=4,
    )  # fmt: skip
    return outputs
