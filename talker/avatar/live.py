"""Render a few frames at a time with low latency.

Values that are the same for all frames are computed once. On a GPU, the network runs as a CUDA
graph, because Python takes longer to launch its hundred kernels than the GPU takes to run them for
a single frame.
"""

from functools import partial

import torch
from torch import Tensor

from talker.avatar.expression import EXPRESSIONS
from talker.avatar.model import Avatar
from talker.avatar.rasterize import Splats, rasterize
from talker.avatar.renderer import HeadRenderer


def live_avatar(avatar: Avatar, batch: int) -> HeadRenderer:
    """Return the renderer with the lowest latency on the avatar's device, for `batch` frames."""
    if next(avatar.parameters()).is_cuda:
        return LiveAvatar(avatar, batch)
    with torch.inference_mode():
        return partial(avatar.eval().render_from_expression, shared=avatar.shared())


class LiveAvatar:
    """Renders up to `batch` frames per call on CUDA, as `Avatar.render_from_expression` does.

    Calls must not overlap: they share the memory of the graph.
    """

    def __init__(self, avatar: Avatar, batch: int = 1) -> None:
        device = avatar.device
        self.inputs = (
            torch.zeros(batch, EXPRESSIONS, device=device),
            torch.zeros(batch, 2, device=device),
            torch.eye(4, device=device).repeat(batch, 1, 1),
        )
        with torch.no_grad():
            self.shared = avatar.eval().shared()  # the graph reads it where it is in memory
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles and allocates before the capture
                for _ in range(3):
                    avatar.deform(*self.inputs, self.shared)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            # other sessions may use the GPU in their threads meanwhile
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.splats = avatar.deform(*self.inputs, self.shared)

    @torch.no_grad()
    def __call__(
        self, expression: Tensor, eye: Tensor, viewmats: Tensor, Ks: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        count = len(eye)
        for static, given in zip(self.inputs, (expression, eye, viewmats), strict=True):
            static[:count].copy_(given)
        self.graph.replay()
        splats = Splats(*(part[:count] for part in self.splats))
        rendered = rasterize(splats, viewmats, Ks, width, height)
        return rendered.rgb, rendered.alpha
