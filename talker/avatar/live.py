"""One frame after the other on a GPU: the network of a frame is replayed as one CUDA graph.

A single frame keeps the GPU busy for less time than Python takes to launch its hundred kernels.
"""

import torch
from torch import Tensor

from talker.avatar.model import Avatar
from talker.avatar.rasterize import rasterize


class LiveAvatar:
    """Renders `batch` frames a call, as `Avatar.forward` does, on CUDA without gradients."""

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
        for mine, given in zip(self.inputs, (speech, eye, viewmats), strict=True):
            mine.copy_(given)
        self.graph.replay()
        drawn = rasterize(self.splats, viewmats, Ks, width, height)
        return drawn.rgb, drawn.alpha
