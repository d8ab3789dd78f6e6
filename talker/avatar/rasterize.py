"""Render 3D Gaussians to premultiplied color and alpha, on an NVIDIA GPU or on the CPU.

The device of the tensors selects the backend. All backends render the same image with the same
constants. On a GPU, gsplat projects the Gaussians, and the kernels of rasterize.cu draw them. If
these kernels cannot be compiled, gsplat draws, too. On the CPU, numba kernels do both.
"""

import functools
import logging
import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from talker.core.compiler import gsplat_compilers
from talker.errors import UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TILE_SIZE = 16
"""Side length of gsplat's tiles in pixels; other values are not tested."""


class Splats(NamedTuple):
    """G Gaussians of B images, ready to be rendered."""

    means: Tensor
    """[B, G, 3], centers in the world"""
    quats: Tensor
    """[B, G, 4], rotations wxyz, of any norm but 0"""
    scales: Tensor
    """[B, G, 3], standard deviations along the axes, in the unit of the means"""
    opacities: Tensor
    """[B, G], 0..1"""
    colors: Tensor
    """[B, G, 3], colors seen from this view: spherical harmonics are already evaluated"""


class Rasterized(NamedTuple):
    """B rendered images of H x W pixels and G Gaussians each."""

    rgb: Tensor
    """[B, H, W, 3], color times alpha; composite it as rgb + (1 - alpha) * background"""
    alpha: Tensor
    """[B, H, W, 1], 0..1"""
    means2d: Tensor
    """[B, G, 2], projected centers in pixels, part of the graph for densification"""
    radii: Tensor
    """int [B, G], half the extent in pixels, along x or the larger one; 0: not visible"""


def rasterize(
    splats: Splats,
    viewmats: Shaped[Tensor, "B 4 4"],
    Ks: Shaped[Tensor, "B 3 3"],
    width: int,
    height: int,
) -> Rasterized:
    """Render a batch of images, each with its own Gaussians.

    The method is that of Kerbl et al. (2023), as implemented in gsplat 1.5.3.
    All tensors are float32 and on one device, which selects the backend.

    Args:
        viewmats: [B, 4, 4] world to camera, OpenCV axes; gets no gradient.
        Ks: [B, 3, 3] intrinsics in pixels, pixel centers at +0.5; get no gradient.
        width: width of the images in pixels.
        height: height of the images in pixels.

    Raises:
        TypeError: a tensor is not float32.
    """
    tensors = (*splats, viewmats, Ks)
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        raise TypeError(
            f"All tensors must be float32, but their types are {[str(t.dtype) for t in tensors]}."
        )
    backend = _rasterize_gpu if viewmats.is_cuda else _rasterize_cpu
    return backend(*splats, viewmats, Ks, width, height)


def _rasterize_cpu(*arguments) -> Rasterized:
    from talker.avatar.kernels.rasterize_cpu import rasterize_cpu

    return Rasterized(*rasterize_cpu(*arguments))


@functools.cache
def _compiled_gsplat() -> ModuleType:
    """Return gsplat, whose kernels are compiled at first use.

    Raises:
        UserError: the kernels cannot be compiled.
    """
    with gsplat_compilers():
        import gsplat
        from gsplat.cuda import _backend
    if _backend._C is None:
        raise UserError(
            "gsplat could not compile its CUDA kernels. Fix the error that the compiler printed "
            "above, and run the same command again."
        )
    return gsplat


@functools.cache
def _draw_projected() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the function that draws projected Gaussians on a GPU."""
    try:
        from talker.avatar.kernels.rasterize_cuda import compiled, draw_projected

        compiled(torch.cuda.current_device())
    except (ImportError, UserError) as error:
        logger.warning(
            "gsplat draws the images, because the kernels of talker cannot be used (%s). This is "
            "slower, and training twice with the same data gives slightly different avatars. Run "
            "`pip install '.[cuda]'` in the folder of the project to use the kernels of talker.",
            error,
        )
        return draw_with_gsplat
    return draw_projected


def as_graphs(work: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function that does the same as `work`, with fewer launches of kernels on a GPU.

    It is `work` itself if gsplat draws, which waits for the GPU.

    Args:
        work: a function of tensors on a GPU, whose shapes never change. It calls `rasterize` once,
            and does not wait for the GPU. Other tensors that it reads must keep their place in
            memory. Its results are overwritten by the next call.
    """
    if _draw_projected() is draw_with_gsplat:
        return work
    from talker.avatar.kernels.rasterize_cuda import Graphs

    return Graphs(work)


def draw_with_gsplat(
    means2d, radii, depths, conics, opacities, colors, width, height
) -> tuple[Tensor, Tensor]:
    """Draw projected Gaussians as `rasterize_cuda.draw_projected` does."""
    gsplat = _compiled_gsplat()
    across, down = math.ceil(width / TILE_SIZE), math.ceil(height / TILE_SIZE)
    _, tile_ids, splat_ids = gsplat.isect_tiles(means2d, radii, depths, TILE_SIZE, across, down)
    offsets = gsplat.isect_offset_encode(tile_ids, len(depths), across, down)
    return gsplat.rasterize_to_pixels(
        means2d, conics, colors, opacities, width, height, TILE_SIZE, offsets, splat_ids
    )


def _rasterize_gpu(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height
) -> Rasterized:
    """Call the steps of gsplat's `rasterization`, keeping means2d [B, G, 2] in the graph.

    That function returns means2d as [B, 1, G, 2]; a view of it without the camera axis would get
    no gradient.
    """
    radii, means2d, depths, conics, _ = _compiled_gsplat().fully_fused_projection(
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
    projected = means2d, radii, depths, conics, opacities, colors
    rgb, alpha = _draw_projected()(*projected, width, height)
    return Rasterized(rgb, alpha, means2d, radii[..., 0])
