"""Render a few frames at a time with low latency.

Values that are the same for all frames are computed once. On a GPU, each call replays CUDA graphs,
because Python takes longer to launch the dozens of kernels than the GPU takes to run them for a
single frame.
"""

from functools import partial

import torch
from torch import Tensor

from talker.avatar.model import Avatar
from talker.avatar.rasterize import as_graphs
from talker.avatar.renderer import HeadRenderer


def live_avatar(avatar: Avatar, batch: int) -> HeadRenderer:
    """Return the renderer with the lowest latency on the avatar's device, for `batch` frames."""
    if next(avatar.parameters()).is_cuda:
        return LiveAvatar(avatar, batch)
    with torch.inference_mode():
        return partial(avatar.eval().render_from_expression, shared=avatar.shared())


class LiveAvatar:
    """Renders up to `batch` frames per call on CUDA, as `Avatar.render_from_expression` does.

    Calls must not overlap, and each of them overwrites the images of the previous one. The first
    two calls for an image size are slow.

    Raises:
        ValueError: a call has more than `batch` frames.
    """

    def __init__(self, avatar: Avatar, batch: int = 1) -> None:
        self.avatar, self.batch = avatar.eval(), batch
        with torch.no_grad():
            self.shared = avatar.shared()  # the graphs read it where it is in memory
        self.resize(0, 0)

    def resize(self, height: int, width: int) -> None:
        """Render images of `height` x `width` pixels from now on."""
        self.size = height, width
        # This has no reference to `self`, so that its memory is released together with `self`.
        render = partial(
            self.avatar.render_from_expression, height=height, width=width, shared=self.shared
        )
        self.render_batch = as_graphs(render)

    @torch.no_grad()
    def __call__(
        self, expression: Tensor, eye: Tensor, viewmats: Tensor, Ks: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        count = len(eye)
        if count > self.batch:
            raise ValueError(f"{count} frames were given, but at most {self.batch} are possible.")
        if self.size != (height, width):
            self.resize(height, width)
        given = expression, eye, viewmats, Ks
        if count < self.batch:  # the graphs render a whole batch, so the last frame is repeated
            rows = torch.arange(self.batch, device=eye.device).clamp(max=count - 1)
            given = tuple(tensor[rows] for tensor in given)
        rgb, alpha = self.render_batch(*given)
        return rgb[:count], alpha[:count]
