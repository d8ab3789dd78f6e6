"""Teach the speech encoder the subject's mouth before any picture is rendered.

The speech encoder alone decides how well the mouth follows unheard speech, and pictures are a slow
teacher for it: a minute of video holds only some 1,500 mouths. Fitted first to the mouth shapes
that the landmarks show, with noise on its input, it generalises within seconds of training.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from talker.avatar.speech_encoder import CONTEXT, SpeechEncoder
from talker.head.landmarks68 import INNER_LIPS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE

MOUTH_COMPONENTS = 10
CHIN = slice(6, 11)
SEGMENT = 32


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
    scores = shapes @ axes[:MOUTH_COMPONENTS].T
    return torch.from_numpy(scores * np.sqrt(len(shapes)) / sizes[0]).float()


def fit_speech_encoder(
    encoder: SpeechEncoder,
    windows: Tensor,
    ids: Tensor,
    targets: Tensor,
    steps: int,
    generator: torch.Generator,
    segments: int = 16,
    noise: float = 0.4,
    dropout: float = 0.4,
    learning_rate: float = 2e-3,
) -> Iterator[float]:
    """Train `encoder` to tell the shape of the mouth; yield the losses.

    A step hears `segments` stretches of 32 frames, whose windows are shared by their contexts.

    Args:
        windows: all speech windows [T, 16, C].
        ids: training frames [N], ascending.
        targets: mouth shapes of the training frames [N, 10].
    """
    device = windows.device
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=1e-4)
    rows = torch.full((len(windows),), -1, device=device)
    rows[ids] = torch.arange(len(ids), device=device)
    first, last = int(ids[0]), max(int(ids[-1]) + 1 - SEGMENT, int(ids[0]))
    around = torch.arange(-CONTEXT // 2, SEGMENT + CONTEXT // 2 - 1, device=device)

    for _ in range(steps):
        starts = torch.randint(first, last + 1, (segments, 1), generator=generator).to(device)
        heard = windows[(starts + around).clamp(0, len(windows) - 1)]
        heard = heard + noise * torch.randn(heard.shape, generator=generator).to(device)
        embedded = encoder.embed(heard.flatten(0, 1)).unflatten(0, (segments, -1))
        hidden = encoder.attend(embedded.unfold(1, CONTEXT, 1).flatten(0, 1).transpose(1, 2))
        keep = torch.rand(hidden.shape, generator=generator).to(device) >= dropout
        shown = (starts + torch.arange(SEGMENT, device=device)).clamp(max=len(windows) - 1)
        row = rows[shown.flatten()]
        error = encoder.out(hidden * keep / (1 - dropout)) - targets[row]
        loss = error[row >= 0].square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        yield loss.item()
