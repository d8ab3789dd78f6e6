"""Draw projected Gaussians on an NVIDIA GPU with the kernels of rasterize.cu.

They draw the same images as `gsplat.rasterize_to_pixels`, in less time, and their gradients are
bitwise reproducible. NVRTC, which comes with PyTorch, compiles them at first use; nvcc is not
needed.
"""

import functools
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from importlib.resources import files
from typing import Any, Generic, TypeVar

import torch
from cuda.core import (
    Device,
    Kernel,
    LaunchConfig,
    ObjectCode,
    Program,
    ProgramOptions,
    Stream,
    launch,
)
from torch import Tensor
from torch.autograd.function import once_differentiable

from talker.errors import UserError

Result = TypeVar("Result")

TILE = 16
"""Side length of the tiles in pixels, as in rasterize.cu."""
CHUNK = 256
"""Threads of the kernels that process splats, as in rasterize.cu."""
DRAWING_THREADS = 128
"""Threads of the kernels that process tiles, as in rasterize.cu."""
ROW = 12
"""Values of a packed splat, and of the gradients of an entry of a list, with padding."""
MAX_ENTRIES = 2**31 - 1
"""Largest total length of the lists."""
SPARE = 1.25
"""Length of the lists that a CUDA graph has memory for, relative to their length at its capture."""
_reserve: ContextVar[Callable[[Tensor], int]] = ContextVar("_reserve", default=int)
"""Maps the total length of the lists to the length that memory is allocated for."""
_graphs_lock = threading.Lock()
"""Held by the thread that runs `Graphs`: torch allows one capture at a time in a process, and all
`Graphs` share a stream."""


def draw_projected(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """Draw B images of G projected Gaussians each.

    Args:
        means2d: [B, G, 2], centers in pixels.
        radii: int32 [B, G, 2], half the sides of the bounding boxes in pixels; 0: not visible.
        depths: [B, G], distances from the plane of the camera.
        conics: [B, G, 3], inverse covariances xx, xy and yy.
        opacities: [B, G], 0..1.
        colors: [B, G, 3].
        width: width of the images in pixels, at most 1,024 tiles.
        height: height of the images in pixels.

    Returns:
        rgb [B, H, W, 3] and alpha [B, H, W, 1], as `rasterize` does. The centers, conics, opacities
        and colors get gradients.

    Raises:
        UserError: the Gaussians cover too many tiles.
    """
    with torch.cuda.device(depths.device):
        return _Draw.apply(means2d, radii, depths, conics, opacities, colors, width, height)


class _Lists:
    """Lists of the splats of each tile, sorted by depth.

    Args:
        projected: the tensors that `draw_projected` takes, in the same order and contiguous.
        width: width of the images in pixels.
        height: height of the images in pixels.
    """

    def __init__(self, projected: tuple[Tensor, ...], width: int, height: int) -> None:
        depths = projected[2]
        self.images, self.gaussians = depths.shape
        self.width, self.height = width, height
        self.across, self.down = math.ceil(width / TILE), math.ceil(height / TILE)
        self.chunks = math.ceil(self.gaussians / CHUNK)
        tiles = self.across * self.down
        integers = functools.partial(torch.empty, dtype=torch.int32, device=depths.device)
        self.splats = depths.new_empty(self.images, self.gaussians, ROW)
        keys = torch.empty_like(depths)
        packed = self.splats, keys, keys.numel()
        _launch("pack_splats", (math.ceil(keys.numel() / CHUNK), 1), CHUNK, *projected, *packed)
        self.order = keys.sort(dim=1, stable=True).indices
        self.counts = integers((self.images, self.chunks, tiles))
        self.launch_on_splats("count_splats", self.counts)
        totals = integers((self.images, tiles))
        grid = math.ceil(tiles / CHUNK), self.images
        _launch("scan_chunks", grid, CHUNK, self.counts, totals, self.chunks, tiles)
        ends = totals.flatten().cumsum(0)
        length = _reserve.get()(ends[-1])
        if length > MAX_ENTRIES:
            raise UserError(
                f"The Gaussians of {self.images} images cover {length:,} tiles of 16x16 pixels in "
                "all, which is too many to draw at once. Use a smaller batch."
            )
        self.ends = ends.int()
        self.entries = integers(length)
        self.launch_on_splats("list_splats", self.counts, self.ends, self.entries)

    def launch_on_splats(self, name: str, *arguments: Tensor) -> None:
        """Launch a kernel that processes the sorted splats in chunks."""
        shape = self.gaussians, self.across, self.down
        grid = self.chunks, self.images
        _launch(name, grid, CHUNK, self.splats, self.order, *arguments, *shape)

    def launch_on_tiles(self, name: str, *arguments: Tensor) -> None:
        """Launch a kernel that processes the list of each tile."""
        shape = self.gaussians, self.width, self.height, self.across
        grid = self.across * self.down, self.images
        lists = self.splats, self.entries, self.ends
        _launch(name, grid, DRAWING_THREADS, *lists, *arguments, *shape)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means2d, radii, depths, conics, opacities, colors, width: int, height: int
    ) -> tuple[Tensor, Tensor]:
        parts = means2d, radii, depths, conics, opacities, colors
        projected = tuple(part.contiguous() for part in parts)
        lists = _Lists(projected, width, height)
        rgb = depths.new_empty(lists.images, height, width, 3)
        alpha = depths.new_empty(lists.images, height, width, 1)
        if any(ctx.needs_input_grad):
            transmittances = torch.empty_like(alpha)
            lasts = torch.empty_like(alpha, dtype=torch.int32)
            lists.launch_on_tiles("draw_for_training", rgb, alpha, transmittances, lasts)
            ctx.lists = lists
            ctx.save_for_backward(*projected[3:5], transmittances, lasts)
        else:
            lists.launch_on_tiles("draw", rgb, alpha)
        return rgb, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rgb_gradient: Tensor, alpha_gradient: Tensor) -> tuple:
        lists: _Lists = ctx.lists
        conics, opacities, transmittances, lasts = ctx.saved_tensors
        entries = conics.new_empty(len(lists.entries), ROW)
        drawn = torch.empty_like(lists.ends)
        incoming = rgb_gradient.contiguous(), alpha_gradient.contiguous()
        given = transmittances, lasts, *incoming
        lists.launch_on_tiles("draw_backward", *given, entries, drawn)
        centers = conics.new_empty(*opacities.shape, 2)
        others = torch.empty_like(conics), torch.empty_like(opacities), torch.empty_like(conics)
        given = lists.counts, lists.ends, drawn, entries, conics, opacities
        lists.launch_on_splats("add_gradients", *given, centers, *others)
        return centers, None, None, *others, None, None


class Graphs(Generic[Result]):
    """A function of tensors that calls `draw_projected` once, replayed as two CUDA graphs.

    Python takes longer to launch hundreds of small kernels than the GPU takes to run them. The
    first graph ends where the length of the lists is known. The host waits for it, because the
    second graph has memory for lists of a limited length. If they are longer, the function is
    captured again.

    The first call runs the function without graphs, which compiles its kernels. The function must
    not wait for the GPU, and tensors that it reads besides its arguments must keep their place in
    memory. Its results are overwritten by the next call.

    Several threads can have graphs of their own. Their calls wait for each other.

    Args:
        work: the function. Its arguments must have the same shapes in all calls.

    Raises:
        torch.OutOfMemoryError: a call needs more memory than the GPU has, also for the graphs.
    """

    def __init__(self, work: Callable[..., Result]) -> None:
        self.work = work
        self.warm = False
        self.inputs: tuple[Tensor, ...] = ()
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.result: Any = None

    def __call__(self, *given: Tensor) -> Result:
        device = given[0].device
        with _graphs_lock:
            caller, stream = torch.cuda.current_stream(device), _stream_of_graphs(device)
            with torch.inference_mode(False):  # later calls may be outside of the inference mode
                self.inputs = self.inputs or tuple(tensor.clone() for tensor in given)
            for mine, new in zip(self.inputs, given, strict=True):
                mine.copy_(new)
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                result = self._replayed() if self.warm else self.work(*self.inputs)
            caller.wait_stream(stream)
        self.warm = True
        return result

    def _replayed(self) -> Result:
        if self.graphs:
            self.graphs[0].replay()
        if not self.graphs or int(self.length) > self.reserved:
            self._capture()
        self.graphs[1].replay()
        return self.result

    def _capture(self) -> None:
        """Capture both graphs, and replay the first one."""
        self.graphs, self.result = [], None
        torch.cuda.empty_cache()  # the graphs have memory of their own
        before = _reserve.set(self._reserve_in_second)
        try:
            self._begin()
            self.result = self.work(*self.inputs)
            self.graphs[1].capture_end()
        except BaseException as error:
            for graph in self.graphs[-1:]:
                with suppress(RuntimeError):  # the error may have ended the capture
                    graph.capture_end()
            self.graphs, self.result = [], None
            if isinstance(error, RuntimeError) and "out of memory" in str(error):
                # CUDA also allocates memory for the graph itself, outside of torch's allocator
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        finally:
            _reserve.reset(before)

    def _begin(self, **pool: Any) -> None:
        graph = torch.cuda.CUDAGraph()
        # torch before 2.11 creates tensors here that graphs outside of the inference mode write to
        with torch.inference_mode(False):
            # other threads may use the GPU meanwhile, such as those that copy training images
            graph.capture_begin(**pool, capture_error_mode="thread_local")
        self.graphs.append(graph)

    def _reserve_in_second(self, length: Tensor) -> int:
        """Replay the first graph to learn the length of the lists, and begin the second one."""
        (first,) = self.graphs
        first.capture_end()
        first.replay()
        self.length, now = length, int(length)
        # a length above the maximum stays as it is, and is refused
        self.reserved = min(math.ceil(SPARE * now), max(MAX_ENTRIES, now))
        self._begin(pool=first.pool())
        return self.reserved


@functools.cache
def _stream_of_graphs(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which all `Graphs` of a device run.

    torch has 32 streams of each priority, and gives them out again after that. Nothing else in
    talker has a high priority, so no other work is captured by accident. cuBLAS has a workspace for
    each stream, which torch never releases.
    """
    return torch.cuda.Stream(device, priority=-1)


def _launch(name: str, grid: tuple[int, int], block: int, *arguments: Tensor | int) -> None:
    """Launch a kernel with `block` threads per block on the current stream of PyTorch."""
    if 0 in grid:
        return
    values = [part.data_ptr() if isinstance(part, Tensor) else part for part in arguments]
    stream = _stream(torch.cuda.current_stream().cuda_stream)
    kernel = _kernel(name, torch.cuda.current_device())
    launch(stream, LaunchConfig(grid=grid, block=block), kernel, *values)


@functools.cache
def _stream(handle: int) -> Stream:
    return Stream.from_handle(handle)


@functools.cache
def _kernel(name: str, device: int) -> Kernel:
    return compiled(device).get_kernel(name)


@functools.cache
def compiled(device: int) -> ObjectCode:
    """Compile rasterize.cu for a GPU.

    Raises:
        UserError: NVRTC is missing, or does not know the GPU.
    """
    source = files("talker.avatar.kernels").joinpath("rasterize.cu").read_text(encoding="utf-8")
    try:
        target = Device(device)
        target.set_current()
        options = ProgramOptions(std="c++17", arch=f"sm_{target.arch}", use_fast_math=True)
        return Program(source, code_type="c++", options=options).compile("cubin")
    except Exception as error:  # cuda-core has no common class for its errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"rasterize.cu could not be compiled: {reason}") from error
