"""From speech windows to an expression a frame: a linear map, and AudioNet where it is wanted.

The published encoder hands its features to the network as they are. A minute of video is learnt by
heart that way, and unheard speech lands between the features: here the network sees ten numbers
that mean the expression of the face. The linear map is fitted first (talker.avatar.speech_prior).
AudioNet corrects it where training is told to teach the encoder too (`rates.speech`; a minute of
speech it learns by heart). It has no say in silence, where the linear map alone closes the mouth.
"""

import torch
from torch import Tensor, nn

CONTEXT = 8
"""Frames [i - 4, i + 4) inform frame i."""
WINDOW = 16
HIDDEN = 32


def speech_context(windows: Tensor, ids: Tensor) -> Tensor:
    """The windows around each frame: windows [T, 16, C], ids [B] -> [B, 8, 16, C].

    Before the first and after the last frame the edge window is repeated.
    """
    offsets = torch.arange(-CONTEXT // 2, CONTEXT // 2, device=ids.device)
    return windows[(ids[:, None] + offsets).clamp(0, len(windows) - 1)]


class SpeechEncoder(nn.Module):
    """[B, 8, 16, C] -> expressions [B, out_features]; `corrected`: AudioNet has its say."""

    silence: Tensor
    """[C], the features of a pause"""

    def __init__(self, in_features: int, out_features: int, corrected: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(WINDOW * in_features, out_features)
        self.register_buffer("silence", torch.zeros(in_features))
        self.audio_net = AudioNet(in_features, out_features) if corrected else None

    def forward(self, context: Tensor) -> Tensor:
        told = self.linear(context[:, CONTEXT // 2].flatten(1))
        if self.audio_net is None:
            return told
        silent = self.silence.expand(1, CONTEXT, WINDOW, -1)
        return told + self.audio_net(context) - self.audio_net(silent)


class AudioNet(nn.Module):
    """[B, 8, 16, C] -> [B, out_features], with temporal attention; zero before it learns."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()

        def conv(wide: int, narrow: int) -> list[nn.Module]:
            return [nn.Conv1d(wide, narrow, 3, stride=2, padding=1), nn.LeakyReLU(0.02)]

        self.window = nn.Sequential(
            *conv(in_features, 32), *conv(32, 32), *conv(32, 64), *conv(64, 64), nn.Flatten(),
            nn.Linear(64, 64), nn.LeakyReLU(0.02), nn.Linear(64, HIDDEN),
        )  # fmt: skip

        def smooth(wide: int, narrow: int) -> list[nn.Module]:
            return [nn.Conv1d(wide, narrow, 3, padding=1), nn.LeakyReLU(0.02)]

        self.weight = nn.Sequential(
            *smooth(HIDDEN, 16), *smooth(16, 8), *smooth(8, 4), *smooth(4, 2), *smooth(2, 1),
            nn.Flatten(), nn.Linear(CONTEXT, CONTEXT), nn.Softmax(-1),
        )  # fmt: skip
        last = nn.Linear(64, out_features, bias=False)  # it would cancel out against silence
        nn.init.zeros_(last.weight)
        self.out = nn.Sequential(nn.Linear(HIDDEN, 64), nn.LeakyReLU(0.02), last)

    def forward(self, context: Tensor) -> Tensor:
        embedded = self.window(context.flatten(0, 1).transpose(1, 2)).unflatten(0, (-1, CONTEXT))
        weights = self.weight(embedded.transpose(1, 2))
        return self.out((weights[..., None] * embedded).sum(1))
