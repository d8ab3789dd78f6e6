"""From speech to facial expression: a linear map, fitted before any image is rendered.

The mapping from speech to mouth decides how well an avatar follows new speech, and images are a
poor teacher for it: a minute of video shows about 1,500 mouths, which a network memorizes. A ridge
regression from the speech window to the tracked expression takes a moment and generalizes at least
as well as AudioNet, the convolutional encoder of the AD-NeRF family (docs/speech.md).
"""

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn import functional as F

from talker.core.parallel import one_thread

WINDOW = 16
"""Number of speech slots (20 ms each) in the window of a frame."""
EXPRESSIONS = 10
"""Number of expression components that speech predicts."""
FOLDS = 5
"""Number of stretches of the training frames that cross-validation holds out in turn."""
GAP = 16
"""Frames left out between training and test stretches, because their windows overlap."""
CLOSED_SHARE = 0.1
"""Fraction of the frames, those with the least open mouth, whose mean is the face at rest."""
CLOSING_FACTOR = 1.2
"""Factor of the expression at rest: an avatar does not follow its expression in full, and with 1
its lips stay slightly apart in silence."""
SILENCE_WEIGHT = 1.0
"""Weight of silence in the fit, relative to the weight of all training frames."""
STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Regularization strengths of the ridge regression that cross-validation chooses from."""


class SpeechToExpression(nn.Linear):
    """A linear map from speech windows [B, 16, C] to expressions [B, 10]."""

    def __init__(self, speech_features: int) -> None:
        super().__init__(WINDOW * speech_features, EXPRESSIONS)

    def forward(self, windows: Float[Tensor, "B 16 C"]) -> Float[Tensor, "B 10"]:
        return super().forward(windows.flatten(1))


@one_thread()
def expression_targets(
    expression: Float[np.ndarray, "T E"], eye: Float[np.ndarray, "T"]
) -> Float[Tensor, "T 10"]:
    """Return the principal components [T, 10] of tracked expressions; the first has unit variance.

    The part that follows the blinks is removed: speech cannot predict it, and the avatar gets it
    from the eye token. Fewer components than 10 are filled up with zeros.

    Args:
        expression: [T, E], free of head pose, unlike the shape of the mouth in the image.
        eye: eye closure [T].
    """
    blink, centered = (
        values - values.mean(0)
        for values in (torch.from_numpy(array).double() for array in (eye, expression))
    )
    centered -= torch.outer(blink, blink @ centered) / (blink @ blink).clamp_min(1e-9)
    _, sizes, axes = torch.linalg.svd(centered, full_matrices=False)
    scores = F.pad(centered @ axes[:EXPRESSIONS].T, (0, max(0, EXPRESSIONS - len(axes))))
    return (scores * len(centered) ** 0.5 / sizes[0].clamp_min(1e-9)).float()


def rest_expression(
    targets: Float[Tensor, "N 10"], opening: Real[np.ndarray, "N"]
) -> Float[Tensor, "10"]:
    """Return the expression [10] of a closed mouth.

    Args:
        targets: expressions [N, 10].
        opening: mouth opening [N] of the same frames, in any unit.
    """
    closed = opening <= np.quantile(opening, CLOSED_SHARE)
    return CLOSING_FACTOR * targets[torch.from_numpy(np.flatnonzero(closed))].mean(0)


@torch.no_grad()
def fit_speech_to_expression(
    layer: SpeechToExpression,
    windows: Float[Tensor, "N 16 C"],
    targets: Float[Tensor, "N 10"],
    silence: Float[Tensor, "C"] | None = None,
    rest: Float[Tensor, "10"] | None = None,
) -> tuple[float, float]:
    """Set the weights of `layer` by ridge regression with cross-validated strength.

    The pauses of a recording do not show what silence should look like: people open their mouth
    there to breathe and to go on. Whole windows of silence with the face at rest are therefore
    added to the training data.

    Args:
        windows: speech windows of the training frames [N, 16, C], in temporal order.
        targets: output of `expression_targets` for the same frames [N, 10].
        silence: speech features of a pause [C]; None adds no silence.
        rest: output of `rest_expression`, needed with `silence`.

    Returns:
        The ridge strength, and the correlation between the first component and its prediction on
        held-out stretches.
    """
    x, y = windows.flatten(1).double(), targets.double()
    extra_x, extra_y = x[:0], y[:0]
    if silence is not None and rest is not None:
        count = max(1, round(SILENCE_WEIGHT * len(x)))
        extra_x = silence.to(x).repeat(windows.shape[1]).expand(count, -1)
        extra_y = rest.to(y).expand(count, -1)

    def fit(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        return _ridge(torch.cat([x, extra_x]), torch.cat([y, extra_y]), strength)

    predicted = {strength: torch.empty_like(y) for strength in STRENGTHS}
    for test in torch.arange(len(x), device=x.device).tensor_split(FOLDS):
        keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        keep[max(int(test[0]) - GAP, 0) : int(test[-1]) + 1 + GAP] = False
        for strength in STRENGTHS:
            weight, bias = fit(x[keep], y[keep], strength)
            predicted[strength][test] = x[test] @ weight + bias
    best = min(STRENGTHS, key=lambda strength: float((predicted[strength] - y).square().mean()))
    weight, bias = fit(x, y, best)
    layer.weight.copy_(weight.T)
    layer.bias.copy_(bias)
    correlation = torch.corrcoef(torch.stack([predicted[best][:, 0], y[:, 0]]))[0, 1]
    return best, float(correlation)


def _ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Return weights [F, D] and bias [D] of the ridge regression from x [N, F] to y [N, D]."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    square = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(square, x.T @ y)
    return weight, mean_y - mean_x @ weight
