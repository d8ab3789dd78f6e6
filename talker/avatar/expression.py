"""Predict facial expressions from speech with a linear map, fitted before training on images.

The mapping from speech to mouth decides how well an avatar follows new speech, but it is hard to
learn from images: a minute of video shows only about 1,500 mouths, which a network memorizes. A
ridge regression from the speech window to the tracked expression is fast and generalizes at least
as well as AudioNet, the convolutional encoder of the AD-NeRF family (docs/notes/quality.md).
"""

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn import functional as F

from talker.clip import WINDOW
from talker.core.parallel import one_thread
from talker.core.ridge import fit_cross_validated

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
MAX_GAIN = 1.5
"""Largest factor by which the predicted expression is amplified."""


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
    from the eye token. If there are fewer than 10 components, the others are zero.

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
    speech_scale: Float[Tensor, "C"] | None = None,
    silence: Float[Tensor, "C"] | None = None,
    rest: Float[Tensor, "10"] | None = None,
    amplitude: float = 0.0,
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
