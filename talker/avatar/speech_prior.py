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
from torch.nn import functional as F

from talker.avatar.speech_encoder import SpeechEncoder
from talker.core.parallel import one_thread

EXPRESSIONS = 10
FOLDS = 5
GAP = 16
"""frames left out between training and test, because their windows overlap"""
CLOSED = 0.1
"""part of the frames, those with the least open mouths, whose mean is the face at rest"""
PRESSED = 1.2
"""factor of that mean: an avatar follows its expression not in full (on a clip of 45 s its lips
stood 0.0044 eye distances apart at 1, 0.0028 at 1.15; those of the real frames 0.0028)"""
PAUSES = 1.0
"""weight of silence beside that of all training frames"""
STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)


@one_thread()
def expression_targets(expression: np.ndarray, eye: np.ndarray) -> Tensor:
    """The principal components of expressions [T, E]: [T, 10]; the first has unit variance.

    What follows the blinks `eye` [T] is taken out, for speech cannot tell it and the avatar hears
    it from the eye token: on a clip of 45 s the fourth component was mostly the blink (0.74).

    The tracker's expressions are free of head pose, unlike the mouth in the picture: on a clip of
    45 s speech told their first component with a correlation of 0.70 on left-out stretches, that
    of the pictured mouth with 0.28.
    """
    blink, centred = (
        values - values.mean(0)
        for values in (torch.from_numpy(array).double() for array in (eye, expression))
    )
    centred -= torch.outer(blink, blink @ centred) / (blink @ blink).clamp_min(1e-9)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    scores = F.pad(centred @ axes[:EXPRESSIONS].T, (0, max(0, EXPRESSIONS - len(axes))))
    return (scores * len(centred) ** 0.5 / sizes[0].clamp_min(1e-9)).float()


def rest_expression(targets: Tensor, opening: np.ndarray) -> Tensor:
    """The expression of a closed mouth [10]: targets [N, 10], mouth opening [N] in any unit."""
    closed = opening <= np.quantile(opening, CLOSED)
    return PRESSED * targets[torch.from_numpy(np.flatnonzero(closed))].mean(0)


@torch.no_grad()
def fit_speech_encoder(
    encoder: SpeechEncoder,
    windows: Tensor,
    targets: Tensor,
    silence: Tensor | None = None,
    rest: Tensor | None = None,
) -> tuple[float, float]:
    """Set the linear part of `encoder` by ridge regression.

    A speaker's pauses do not tell what silence should look like: on a clip of 45 s the mouth was
    wider open in the quietest tenth of the frames than on average, to breathe and to go on. So
    silence is taught as such: whole windows of it, with the face at rest. That cost the first
    component 0.02 of 0.70 in correlation, and helped the held-out lips (0.59 to 0.61).

    Args:
        windows: speech windows of the training frames [N, 16, C], in the order of time.
        targets: of `expression_targets`, for the same frames [N, 10].
        silence: the features of a pause [C]; None teaches nothing of it.
        rest: of `rest_expression`, needed with `silence`.

    Returns:
        The ridge strength and the correlation of the first component, left-out stretches together.
    """
    x, y = windows.flatten(1).double(), targets.double()
    taught = x[:0], y[:0]
    if silence is not None and rest is not None:
        encoder.silence.copy_(silence)
        count = max(1, round(PAUSES * len(x)))
        taught = (
            silence.to(x).repeat(windows.shape[1]).expand(count, -1),
            rest.to(y).expand(count, -1),
        )

    def fit(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        return _ridge(torch.cat([x, taught[0]]), torch.cat([y, taught[1]]), strength)

    told = {strength: torch.empty_like(y) for strength in STRENGTHS}
    for test in torch.arange(len(x), device=x.device).tensor_split(FOLDS):
        keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        keep[max(int(test[0]) - GAP, 0) : int(test[-1]) + 1 + GAP] = False
        for strength in STRENGTHS:
            weight, bias = fit(x[keep], y[keep], strength)
            told[strength][test] = x[test] @ weight + bias
    best = min(STRENGTHS, key=lambda strength: float((told[strength] - y).square().mean()))
    weight, bias = fit(x, y, best)
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
