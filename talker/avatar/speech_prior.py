"""Teach the speech encoder the subject's mouth before any picture is rendered.

The speech encoder alone decides how well the mouth follows unheard speech, and pictures are a slow
teacher for it: a minute of video holds only some 1,500 mouths. Fitted first to the mouth shapes
that the landmarks show, with noise on its input, it generalises within seconds of training.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talker.avatar.speech_encoder import SpeechEncoder, speech_context
from talker.head.landmarks68 import INNER_LIPS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE

COMPONENTS = 10
CHIN = slice(6, 11)


def mouth_shapes(landmarks: np.ndarray) -> np.ndarray:
    """Lips and chin, free of head roll, position and size: [T, 68, 2] -> [T, 50].

    Coordinates relative to the midpoint between the outer eye corners, in units of their distance.
    """
    right, left = landmarks[:, RIGHT_EYE.start], landmarks[:, LEFT_EYE.start + 3]
    axis = left - right
    scale = np.linalg.norm(axis, axis=-1)[:, None, None]
    x, y = np.moveaxis(axis[:, None] / scale, -1, 0)
    points = np.concatenate([landmarks[:, part] for part in (CHIN, OUTER_LIPS, INNER_LIPS)], axis=1)
    points = (points - ((right + left) / 2)[:, None]) / scale
    turned = np.stack(
        [points[..., 0] * x + points[..., 1] * y, points[..., 1] * x - points[..., 0] * y], axis=-1
    )
    return turned.reshape(len(landmarks), -1)


def mouth_targets(landmarks: np.ndarray) -> Tensor:
    """The principal components of mouth shapes [T, 10]; the first has unit variance."""
    shapes = mouth_shapes(landmarks)
    shapes = shapes - shapes.mean(0)
    _, sizes, axes = np.linalg.svd(shapes, full_matrices=False)
    scores = shapes @ axes[:COMPONENTS].T
    return torch.from_numpy(scores * np.sqrt(len(shapes)) / sizes[0]).float()


def fit_speech_encoder(
    encoder: SpeechEncoder,
    windows: Tensor,
    ids: Tensor,
    targets: Tensor,
    steps: int,
    generator: torch.Generator,
    batch: int = 256,
    noise: float = 0.3,
    dropout: float = 0.3,
    learning_rate: float = 2e-3,
) -> Iterator[float]:
    """Train `encoder` so that a linear map of its token gives the mouth shape; yield the losses.

    Args:
        windows: all speech windows [T, 16, C].
        ids: training frames [N].
        targets: mouth shapes of the training frames [N, 10].
    """
    width = encoder.out[-1].out_features
    readout = nn.Linear(width, targets.shape[1]).to(windows.device)
    optimiser = torch.optim.AdamW(
        [*encoder.parameters(), *readout.parameters()], lr=learning_rate, weight_decay=1e-2
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(windows.device)

    for _ in range(steps):
        rows = torch.randint(len(ids), (batch,), generator=generator).to(ids.device)
        context = speech_context(windows, ids[rows])
        context = context + noise * random(*context.shape)
        keep = torch.rand(batch, width, generator=generator).to(windows.device) >= dropout
        token = encoder(context) * keep / (1 - dropout)
        loss = F.mse_loss(readout(token), targets[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        yield loss.item()
