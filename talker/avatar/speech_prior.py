"""How much of the face's expression the speech can tell, fitted before any picture is rendered.

The mapping from speech to mouth decides how well the avatar follows unheard speech, and pictures
are a poor teacher for it: a minute of video holds some 1,500 mouths, which a network learns by
heart. A ridge regression from the speech window to the tracked expression, its strength chosen by
cross-validation over time, takes a moment and generalised at least as well: on a clip of 45 s its
correlation with the lip opening was 0.73 (mean of five held-out stretches), that of the published
AudioNet 0.61 to 0.73 (two of those stretches, several settings and seeds).
"""

import numpy as np
import torch
from torch import Tensor

from talker.avatar.speech_encoder import SpeechEncoder

EXPRESSIONS = 10
FOLDS = 5
GAP = 16
"""frames left out between training and test, because their windows overlap"""
STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)


def expression_targets(expression: np.ndarray, eye: np.ndarray) -> Tensor:
    """The principal components of expressions [T, E]: [T, 10]; the first has unit variance.

    What follows the blinks `eye` [T] is taken out, for speech cannot tell it and the avatar hears
    it from the eye token: on a clip of 45 s the fourth component was mostly the blink (0.74).

    The tracker's expressions are free of head pose, unlike the mouth in the picture: on a clip of
    45 s speech told their first component with a correlation of 0.70 on left-out stretches, that
    of the pictured mouth with 0.28.
    """
    blink = eye - eye.mean()
    centred = expression - expression.mean(0)
    centred = centred - np.outer(blink, blink @ centred) / max(blink @ blink, 1e-9)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    scores = np.zeros((len(centred), EXPRESSIONS))
    scores[:, : len(axes)] = (centred @ axes.T)[:, :EXPRESSIONS]
    return torch.from_numpy(scores * np.sqrt(len(centred)) / max(sizes[0], 1e-9)).float()


@torch.no_grad()
def fit_speech_encoder(
    encoder: SpeechEncoder, windows: Tensor, targets: Tensor
) -> tuple[float, float]:
    """Set the linear part of `encoder` by ridge regression.

    Args:
        windows: speech windows of the training frames [N, 16, C], in the order of time.
        targets: of `expression_targets`, for the same frames [N, 10].

    Returns:
        The ridge strength and the correlation of the first component, left-out stretches together.
    """
    x, y = windows.flatten(1).double(), targets.double()
    told = {strength: torch.empty_like(y) for strength in STRENGTHS}
    for test in torch.arange(len(x), device=x.device).tensor_split(FOLDS):
        keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        keep[max(int(test[0]) - GAP, 0) : int(test[-1]) + 1 + GAP] = False
        for strength in STRENGTHS:
            weight, bias = _ridge(x[keep], y[keep], strength)
            told[strength][test] = x[test] @ weight + bias
    best = min(STRENGTHS, key=lambda strength: float((told[strength] - y).square().mean()))
    weight, bias = _ridge(x, y, best)
    encoder.linear.weight.copy_(weight.T)
    encoder.linear.bias.copy_(bias)
    correlation = torch.corrcoef(torch.stack([told[best][:, 0], y[:, 0]]))[0, 1]
    return best, float(correlation)


def _ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights [F, D] and bias [D] that map x [N, F] to y [N, D]."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    square = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(square, x.T @ y)
    return weight, mean_y - mean_x @ weight
