"""Avatars for tests: one replays the real heads, so its output is known; one is untrained."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from talker.avatar.gaussians import initial_gaussians, sample_surface
from talker.avatar.model import Avatar, AvatarConfig
from talker.dataset import Dataset
from talker.encoders import Choice, load_encoder
from talker.encoders.features import extract_clip
from talker.media.audio import read_wav


def untrained_avatar(data: Dataset) -> Avatar:
    """Return 3,000 gray Gaussians on the head of `data`."""
    points = sample_surface(data.vertices, data.faces, 3000, np.random.default_rng(0))
    config = AvatarConfig(
        image_size=max(data.height, data.width),
        speech_features=data.speech.shape[-1],
        encoder="hama",
        sh_degree=0,
        plane_resolutions=(8,),
        plane_channels=4,
        features=8,
        heads=2,
        layers=1,
        hidden=8,
    )
    torch.manual_seed(0)
    bounds = torch.from_numpy(np.stack([points.min(0), points.max(0)])).float()
    gaussians = initial_gaussians(points, np.full_like(points, 0.5), sh_degree=0)
    return Avatar(config, gaussians, bounds, torch.from_numpy(data.viewmats))


def save_untrained_avatar(folder: Path, data: Dataset) -> None:
    """Write an avatar folder as `talker train` does, of the encoder mel."""
    model = untrained_avatar(data)
    model.config = dataclasses.replace(model.config, encoder="mel")
    model.save(folder)
    choice = Choice("mel")
    sound = read_wav(data.folder / "aud.wav")
    stats, _ = extract_clip(load_encoder(choice), choice, sound, 90, data.speech.shape[-1])
    stats.save(folder / "speech.npz")


class FakeAvatar(Avatar):
    """Shows the real head of the frame to which the speech window belongs, in any pose. For an
    unknown window, it shows frame 0.

    Args:
        delay: number of frames by which the head is late.
    """

    moves_brows = True

    def __init__(self, dataset: Dataset, delay: int = 0) -> None:
        nn.Module.__init__(self)
        self.device_of = nn.Parameter(torch.zeros(1))
        self.dataset, self.delay = dataset, delay
        self.config = SimpleNamespace(
            image_size=max(dataset.height, dataset.width),
            encoder="hama",
            speech_features=dataset.speech.shape[-1],
        )
        self.batches: list[int] = []

    def shared(self) -> Tensor:
        return self.device_of

    def speech_to_expression(self, windows: Tensor) -> Tensor:
        """Return the number of the frame that each window belongs to, [B, 1]."""
        ids = [self._frame_of(window) for window in windows.numpy()]
        return torch.tensor(ids, dtype=torch.float32)[:, None]

    def render_from_expression(
        self,
        expression: Tensor,
        eye: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        height: int,
        width: int,
        shared: Tensor,
    ) -> tuple[Tensor, Tensor]:
        self.batches.append(len(expression))
        colors, alphas = [], []
        for i in expression[:, 0].int().tolist():
            alpha = self.dataset.head_mask(i)[..., None].astype(np.float32) / 255
            colors.append(self.dataset.frame(i).astype(np.float32) / 255 * alpha)
            alphas.append(alpha)
        return torch.from_numpy(np.stack(colors)), torch.from_numpy(np.stack(alphas))

    def _frame_of(self, window: np.ndarray) -> int:
        distance = np.abs(self.dataset.speech - window).max((1, 2))
        i = int(distance.argmin())
        return max(i - self.delay, 0) if distance[i] < 1e-6 else 0
