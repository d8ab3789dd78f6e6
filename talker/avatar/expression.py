"""Predict facial expressions from speech with a linear map, fitted before training on images.

The mapping from speech to mouth decides how well an avatar follows new speech, but it is hard to
learn from images: a minute of video shows only about 1,500 mouths, which a network memorizes. A
ridge regression from the speech window to the tracked expression is fast and generalizes at least
as well as AudioNet, the convolutional encoder of the AD-NeRF family (docs/notes/quality.md).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn import functional as F

from talker.clip import WINDOW
from talker.core.parallel import one_thread
from talker.core.ridge import CrossValidated, Ridge, fit_cross_validated

EXPRESSIONS = 10
"""Number of expression components that speech predicts."""
CLOSED_SHARE = 0.1
"""Fraction of the frames that count as closed, which are those with the least open mouth. Their
mean is the face at rest."""
CLOSING_FACTOR = 1.2
"""Factor by which the expression at rest is multiplied. An avatar does not follow its expression
fully, and with a factor of 1 its lips would stay slightly apart in silence."""
SILENCE_WEIGHT = 1.0
"""Weight of silence in the fit, relative to the weight of all training frames."""
PRIOR_WIDTH = 5.0
"""Width of the prior on the weights, in steps of 20 ms. The expected magnitude of a weight falls
with the distance of its step from the center of the window, like a Gaussian with this standard
deviation."""
STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Regularization strengths of the ridge regression that cross-validation chooses from."""
STRENGTHS_TOWARD_PRIOR = (*STRENGTHS, 30_000.0, 100_000.0, 300_000.0, 1_000_000.0)
"""The same with a prior from other speakers. With the largest ones, the prior is used unchanged."""
MAX_GAIN = 1.5
"""Largest factor by which the predicted expression is amplified."""


class SpeechToExpression(nn.Linear):
    """A linear map from speech windows [B, 16, C] to expressions [B, 10]."""

    def __init__(self, speech_features: int) -> None:
        super().__init__(WINDOW * speech_features, EXPRESSIONS)

    def forward(self, windows: Float[Tensor, "B 16 C"]) -> Float[Tensor, "B 10"]:
        return super().forward(windows.flatten(1))


class ExpressionComponents(NamedTuple):
    """The principal components of tracked expressions."""

    scores: Float[Tensor, "T 10"]
    """[T, 10], the first has unit variance; if there are fewer than 10 components, the others are
    zero"""
    axes: Float[Tensor, "10 E"]
    """[10, E], orthonormal directions, or zero"""


@one_thread()
def expression_components(
    expression: Float[np.ndarray, "T E"], eye: Float[np.ndarray, "T"]
) -> ExpressionComponents:
    """Return the principal components of tracked expressions.

    The part that follows the blinks is removed: speech cannot predict it, and the avatar gets it
    from the eye token.

    Args:
        expression: [T, E], which does not depend on the head pose, unlike the shape of the mouth in
            the image.
        eye: eye closure [T].
    """
    blink, centered = (
        values - values.mean(0)
        for values in (torch.from_numpy(array).double() for array in (eye, expression))
    )
    centered -= torch.outer(blink, blink @ centered) / (blink @ blink).clamp_min(1e-9)
    _, sizes, axes = torch.linalg.svd(centered, full_matrices=False)
    missing = max(0, EXPRESSIONS - len(axes))
    scores = F.pad(centered @ axes[:EXPRESSIONS].T, (0, missing))
    scores = (scores * len(centered) ** 0.5 / sizes[0].clamp_min(1e-9)).float()
    return ExpressionComponents(scores, F.pad(axes[:EXPRESSIONS], (0, 0, 0, missing)))


def expression_targets(
    expression: Float[np.ndarray, "T E"], eye: Float[np.ndarray, "T"]
) -> Float[Tensor, "T 10"]:
    """Return the scores [T, 10] of `expression_components`, which speech is to predict."""
    return expression_components(expression, eye).scores


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
    speech_scale: Float[Tensor, "C"] | None = None,
    silence: Float[Tensor, "C"] | None = None,
    rest: Float[Tensor, "10"] | None = None,
    amplitude: float = 0.0,
    other_speakers: Ridge | None = None,
) -> tuple[float, float]:
    """Set the weights of `layer` by ridge regression with cross-validated strength.

    The penalty is a prior: steps far from the center of the window and components of little
    variance are expected to matter less (`weight_prior`). The pauses of a recording do not show
    what silence should look like: people open their mouths during pauses to breathe or to continue
    speaking. Whole windows of silence with the face at rest are therefore added to the training
    data.

    Args:
        windows: speech windows of the training frames [N, 16, C], in temporal order.
        targets: output of `expression_targets` for the same frames [N, 10].
        speech_scale: standard deviations of the components before they were whitened [C]; None
            treats all components equally.
        silence: speech features of a pause [C]; None adds no silence.
        rest: output of `rest_expression`, needed with `silence`.
        amplitude: 0 keeps the least-squares prediction, 1 amplifies each component about its mean
            to the standard deviation of its target, by `MAX_GAIN` at most.
        other_speakers: the map that other speakers suggest, from flattened windows to expressions
            (`talker.avatar.speech_prior`). The penalty is then on the difference from this map, if
            this predicts held-out stretches better.

    Returns:
        The ridge strength, and the correlation between the first component and its prediction on
        held-out stretches.
    """
    if speech_scale is None:
        speech_scale = torch.ones(windows.shape[2])
    prior = weight_prior(speech_scale.cpu().double().numpy())
    x = windows.flatten(1).cpu().double().numpy() * prior
    y = targets.cpu().double().numpy()
    extra = None
    if silence is not None and rest is not None:
        count = max(1, round(SILENCE_WEIGHT * len(x)))
        window = silence.cpu().double().repeat(windows.shape[1]).numpy() * prior
        extra = np.tile(window, (count, 1)), np.tile(rest.cpu().double().numpy(), (count, 1))
    fitted = fit_cross_validated(x, y, STRENGTHS, extra)
    if other_speakers is not None:
        known = Ridge(other_speakers.weight / prior[:, None], other_speakers.bias)
        alternative = _fit_toward(known, x, y, extra)
        if _error(alternative, y) < _error(fitted, y):
            fitted = alternative
    spread = fitted.held_out.std(0)
    gain = np.divide(y.std(0), spread, out=np.ones_like(spread), where=spread > 0)
    gain = 1 + amplitude * (gain.clip(1, MAX_GAIN) - 1)
    weight, mean = prior[:, None] * fitted.ridge.weight * gain, y.mean(0)
    bias = mean + gain * (fitted.ridge.bias - mean)
    layer.weight.copy_(torch.from_numpy(weight.T))
    layer.bias.copy_(torch.from_numpy(bias))
    with np.errstate(invalid="ignore"):
        correlation = np.corrcoef(fitted.held_out[:, 0], y[:, 0])[0, 1]
    return fitted.strength, float(correlation)


def _fit_toward(
    known: Ridge, x: np.ndarray, y: np.ndarray, extra: tuple[np.ndarray, np.ndarray] | None
) -> CrossValidated:
    """Fit a ridge regression whose penalty is on the difference from a `known` map."""
    expected = known.predict(x)
    if extra is not None:
        extra = extra[0], extra[1] - known.predict(extra[0])
    fitted = fit_cross_validated(x, y - expected, STRENGTHS_TOWARD_PRIOR, extra)
    ridge = Ridge(known.weight + fitted.ridge.weight, known.bias + fitted.ridge.bias)
    return CrossValidated(ridge, fitted.strength, expected + fitted.held_out)


def _error(fitted: CrossValidated, y: np.ndarray) -> float:
    """Return the mean squared error of the predictions for held-out stretches."""
    return float(np.square(fitted.held_out - y).mean())


def weight_prior(speech_scale: np.ndarray) -> np.ndarray:
    """Return the expected magnitude of each weight of the linear map, with mean square 1.

    Features are multiplied by it before the ridge regression, which then penalizes the weights of
    distant steps and of small components more.

    Args:
        speech_scale: standard deviation of each component before it was whitened [C].

    Returns:
        [16 C], in the order of flattened windows.
    """
    distance = np.arange(WINDOW) - (WINDOW - 1) / 2
    near = np.exp(-0.5 * (distance / PRIOR_WIDTH) ** 2)
    prior = np.outer(near, speech_scale).ravel()
    return prior / np.sqrt(np.mean(prior**2))
