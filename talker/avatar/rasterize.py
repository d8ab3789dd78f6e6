"""Render 3D Gaussians to premultiplied colour and alpha: gsplat on CUDA, numba on the CPU.

Both backends draw the same image with the same constants; the device of the tensors chooses.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

TILE_SIZE = 16  # of gsplat; others are untested there


class Splats(NamedTuple):
    """G Gaussians of B images, ready to be drawn."""

    means: Tensor  # [B,G,3] centres in the world
    quats: Tensor  # [B,G,4] rotations wxyz, of any norm but 0
    scales: Tensor  # [B,G,3] standard deviations along the axes, in the unit of means
    opacities: Tensor  # [B,G] in 0..1
    colors: Tensor  # [B,G,3] for this view: spherical harmonics are already evaluated


class Rasterized(NamedTuple):
    """What `rasterize` returns, for B images of H x W pixels and G Gaussians each."""

    rgb: Tensor  # [B,H,W,3] colour times alpha, over nothing: composite as rgb + (1 - alpha) * bg
    alpha: Tensor  # [B,H,W,1] in 0..1
    means2d: Tensor  # [B,G,2] pixels, part of the graph: retain_grad() for densification
    radii: Tensor  # [B,G] int, pixels; 0 = not visible


def rasterize(splats: Splats, viewmats: Tensor, Ks: Tensor, width: int, height: int) -> Rasterized:
    """Render a batch of images, each of its own Gaussians (Kerbl et al. 2023, as in gsplat 1.5.3).

    Args:
        viewmats: [B,4,4] world to camera, OpenCV axes; gets no gradient.
        Ks: [B,3,3] intrinsics in pixels, pixel centres at +0.5; get no gradient.
        width, height: of the image in pixels.

    All tensors are float32 (else TypeError) and on one device; it chooses the backend.
    """
    tensors = (*splats, viewmats, Ks)
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        raise TypeError(f"expected float32 tensors, got {[str(t.dtype) for t in tensors]}")
    backend = _rasterize_gsplat if viewmats.is_cuda else _rasterize_cpu
    return backend(*splats, viewmats, Ks, width, height)


def _rasterize_cpu(*arguments) -> Rasterized:
    from talker.avatar.kernels.rasterize_cpu import rasterize_cpu

    return Rasterized(*rasterize_cpu(*arguments))


def _rasterize_gsplat(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height
) -> Rasterized:
    """gsplat's own `rasterization`, taken apart so that means2d [B,G,2] lies in the graph.

    That function returns means2d as [B,1,G,2]; a view of it without the camera axis would get no
    gradient.
    """
    import gsplat

    radii, means2d, depths, conics, _ = gsplat.fully_fused_projection(
        means,
        None,
        quats,
        scales,
        viewmats[:, None].detach(),
        Ks[:, None].detach(),
        width,
        height,
        opacities=opacities.detach(),
    )
    radii, means2d, depths, conics = (
        tensor.squeeze(1) for tensor in (radii, means2d, depths, conics)
    )
    across, down = math.ceil(width / TILE_SIZE), math.ceil(height / TILE_SIZE)
    _, tile_ids, splat_ids = gsplat.isect_tiles(means2d, radii, depths, TILE_SIZE, across, down)
    offsets = gsplat.isect_offset_encode(tile_ids, len(means), across, down)
    rgb, alpha = gsplat.rasterize_to_pixels(
        means2d, conics, colors, opacities, width, height, TILE_SIZE, offsets, splat_ids
    )
    return Rasterized(rgb, alpha, means2d, radii.amax(dim=-1))
