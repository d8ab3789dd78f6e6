"""A few frames at a time, again and again: what they share is computed once.

On a GPU their network is replayed as one CUDA graph: a single frame keeps the GPU busy for less
time than Python takes to launch its hundred kernels.
"""

from functools import partial

import torch
from torch import Tensor

from talker.avatar.model import Avatar
from talker.avatar.rasterize import Splats, rasterize
from talker.avatar.renderer import Draw


def live_avatar(avatar: Avatar, batch: int) -> Draw:
    """What renders up to `batch` frames a call soonest on the avatar's device."""
    if next(avatar.parameters()).is_cuda:
        return LiveAvatar(avatar, batch)
    with torch.inference_mode():
        return partial(avatar.eval(), shared=avatar.shared())


class LiveAvatar:
    """Renders up to `batch` frames a call, as `Avatar.forward` does, on CUDA without gradients.

    One call at a time: they share the memory of the graph.
    """

    def __init__(self, avatar: Avatar, batch: int = 1) -> None:
        channels, device = avatar.config.speech_features, avatar.canonical["means"].device
        self.inputs = (
            torch.zeros(batch, 8, 16, channels, device=device),
            torch.zeros(batch, device=device),
            torch.eye(4, device=device).repeat(batch, 1, 1),
        )
        with torch.no_grad():
            self.shared = avatar.eval().shared()  # the recording reads it from where it lies
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles and allocates before the recording
                for _ in range(3):
                    avatar.spoken(self.shared, *self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.splats = avatar.spoken(self.shared, *self.inputs)

    @torch.no_grad()
    def __call__(
        self, speech: Tensor, eye: Tensor, viewmats: Tensor, Ks: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        count = len(eye)
        for mine, given in zip(self.inputs, (speech, eye, viewmats), strict=True):
            mine[:count].copy_(given)
        self.graph.replay()
        splats = Splats(*(part[:count] for part in self.splats))
        drawn = rasterize(splats, viewmats, Ks, width, height)
        return drawn.rgb, drawn.alpha
