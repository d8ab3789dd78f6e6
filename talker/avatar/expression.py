"""Predict facial expressions from speech with a linear map, fitted before training on images.

The mapping from speech to mouth decides how well an avatar follows new speech, but it is hard to
learn from images: a minute of video shows only about 1,500 mouths, which a network memorizes. A
ridge regression from the speech window to the tracked expression is fast and generalizes at least
as well as AudioNet, the convolutional encoder of the AD-NeRF family (docs/notes/quality.md).

Short clips can use a prior from other speakers (`SpeechPrior`, which `talker prior` fits). Every
clip has its own principal components of speech and of expressions, so maps of different clips
cannot be compared directly. The prior therefore uses quantities that all speakers share: principal
components of the encoder's features, and displacements of the points of the face mesh. Because all
conversions are linear, the prior is a linear map for each speaker, too.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn import functional as F

from talker.clip import WINDOW, load_arrays
from talker.core.parallel import one_thread
from talker.core.ridge import CrossValidated, Ridge, fit_cross_validated
from talker.data import layout
from talker.data.formats import read_expression_basis
from talker.data.layout import Folder, speech_file, speech_statistics
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.landmarks68 import mouth_opening

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
OPENING_PRIOR_WIDTH = 3.0
"""The same for the mouth opening. It changes faster than the other components: for m, b and p, the
lips close for about 100 ms."""
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
    expression: Float[np.ndarray, "T E"], eye: Float[np.ndarray, "T 2"]
) -> ExpressionComponents:
    """Return the principal components of tracked expressions.

    The part that follows the blinks and the brows is removed: speech cannot predict it, and these
    are inputs of the avatar.

    Args:
        expression: [T, E], which does not depend on the head pose, unlike the shape of the mouth in
            the image.
        eye: eye closure and raise of the brows [T, 2].
    """
    upper, centered = (
        values - values.mean(0)
        for values in (torch.from_numpy(array).double() for array in (eye, expression))
    )
    centered -= upper @ (torch.linalg.pinv(upper) @ centered)
    _, sizes, axes = torch.linalg.svd(centered, full_matrices=False)
    missing = max(0, EXPRESSIONS - len(axes))
    scores = F.pad(centered @ axes[:EXPRESSIONS].T, (0, missing))
    scores = (scores * len(centered) ** 0.5 / sizes[0].clamp_min(1e-9)).float()
    return ExpressionComponents(scores, F.pad(axes[:EXPRESSIONS], (0, 0, 0, missing)))


def expression_targets(
    expression: Float[np.ndarray, "T E"], eye: Float[np.ndarray, "T 2"]
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
    opening: Float[Tensor, "N"] | None = None,
) -> tuple[float, float]:
    """Set the weights of `layer` by ridge regression with cross-validated strength.

    The penalty is a prior: steps far from the center of the window and components of little
    variance are expected to matter less (`weight_prior`). The pauses of a recording do not show
    what silence should look like: people open their mouths during pauses to breathe or to continue
    speaking. Whole windows of silence with the face at rest are therefore added to the training
    data.

    The opening of the mouth is fitted by itself, with its own prior, strength and amplitude, so
    that the lips close where the real lips do. Its target is the square root of the opening: a
    difference between closed and slightly open lips is more visible than the same difference
    between open lips. The map stays linear, because the predicted expression is shifted along the
    direction in which the expression changes with the opening.

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
            (`SpeechPrior`). The penalty is then on the difference from this map, if
            this predicts held-out stretches better.
        opening: mouth opening of the same frames [N], in any unit, not negative. None fits the
            opening like the rest of the expression.

    Returns:
        The ridge strength, and the correlation between the first component and its prediction on
        held-out stretches.
    """
    x, y = windows.cpu().double().numpy(), targets.cpu().double().numpy()
    scale = np.ones(x.shape[2]) if speech_scale is None else speech_scale.cpu().double().numpy()
    answer = None
    if silence is not None and rest is not None:
        answer = silence.cpu().double().numpy(), rest.cpu().double().numpy()
    fitted = _fit(x, y, weight_prior(scale), answer, other_speakers, amplitude)
    if opening is not None:
        mean = y.mean(0)
        axis, direction, scores = _opening_scores(y - mean, opening.cpu().double().numpy())
        column = axis[:, None]
        known = other_speakers and Ridge(
            other_speakers.weight @ column, (other_speakers.bias - mean) @ column
        )
        at_rest = answer and (answer[0], (answer[1] - mean) @ column)
        prior = weight_prior(scale, OPENING_PRIOR_WIDTH)
        alone = _fit(x, scores[:, None], prior, at_rest, known, amplitude)
        others = np.eye(len(axis)) - np.outer(axis, direction)
        fitted = CrossValidated(
            Ridge(
                fitted.ridge.weight @ others + alone.ridge.weight * direction,
                mean + (fitted.ridge.bias - mean) @ others + alone.ridge.bias * direction,
            ),
            fitted.strength,
            mean + (fitted.held_out - mean) @ others + alone.held_out * direction,
        )
    layer.weight.copy_(torch.from_numpy(fitted.ridge.weight.T))
    layer.bias.copy_(torch.from_numpy(fitted.ridge.bias))
    with np.errstate(invalid="ignore"):
        correlation = np.corrcoef(fitted.held_out[:, 0], y[:, 0])[0, 1]
    return fitted.strength, float(correlation)


def _opening_scores(
    deviations: Float[np.ndarray, "N D"], opening: Float[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D"], Float[np.ndarray, "N"]]:
    """Return how expressions and the mouth opening are related, and the target for the opening.

    Args:
        deviations: expressions minus their mean [N, D].
        opening: mouth opening [N].

    Returns:
        The axis [D], whose product with a deviation is the opening that linear regression finds;
        the deviation per opening [D], whose product with the axis is 1; and the square root of the
        opening [N], shifted and scaled to the mean 0 and the variance of the opening that the
        expressions contain. All are 0 if they contain none.
    """
    axis = np.linalg.lstsq(deviations, opening - opening.mean(), rcond=None)[0]
    contained = deviations @ axis
    root = np.sqrt(opening)
    root -= root.mean()
    if contained.std() * root.std() == 0:
        return np.zeros_like(axis), np.zeros_like(axis), np.zeros_like(root)
    direction = deviations.T @ contained / (contained @ contained)
    return axis, direction, root * contained.std() / root.std()


def _fit(
    windows: Float[np.ndarray, "N 16 C"],
    y: Float[np.ndarray, "N D"],
    prior: Float[np.ndarray, "F"],
    silence: tuple[np.ndarray, np.ndarray] | None,
    other_speakers: Ridge | None,
    amplitude: float,
) -> CrossValidated:
    """Fit targets to flattened windows; the arguments are those of `fit_speech_to_expression`.

    Args:
        windows: [N, 16, C].
        y: targets [N, D].
        prior: output of `weight_prior`.
        silence: features of silence [C] and the targets of silence [D].
        other_speakers: map from flattened windows to targets.
        amplitude: how far the prediction is amplified.
    """
    x = windows.reshape(len(windows), -1) * prior
    extra = None
    if silence is not None:
        count = max(1, round(SILENCE_WEIGHT * len(x)))
        window = np.tile(silence[0], windows.shape[1]) * prior
        extra = np.tile(window, (count, 1)), np.tile(silence[1], (count, 1))
    fitted = fit_cross_validated(x, y, STRENGTHS, extra)
    if other_speakers is not None:
        known = Ridge(other_speakers.weight / prior[:, None], other_speakers.bias)
        alternative = _fit_toward(known, x, y, extra)
        if _error(alternative, y) < _error(fitted, y):
            fitted = alternative
    spread = fitted.held_out.std(0)
    gain = np.divide(y.std(0), spread, out=np.ones_like(spread), where=spread > 0)
    gain = 1 + amplitude * (gain.clip(1, MAX_GAIN) - 1)
    mean = y.mean(0)
    ridge = Ridge(
        prior[:, None] * fitted.ridge.weight * gain, mean + gain * (fitted.ridge.bias - mean)
    )
    return CrossValidated(ridge, fitted.strength, mean + gain * (fitted.held_out - mean))


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


def weight_prior(speech_scale: np.ndarray, width: float = PRIOR_WIDTH) -> np.ndarray:
    """Return the expected magnitude of each weight of the linear map, with mean square 1.

    Features are multiplied by it before the ridge regression, which then penalizes the weights of
    distant steps and of small components more.

    Args:
        speech_scale: standard deviation of each component before it was whitened [C].
        width: width of the prior in steps; see `PRIOR_WIDTH`.

    Returns:
        [16 C], in the order of flattened windows.
    """
    distance = np.arange(WINDOW) - (WINDOW - 1) / 2
    near = np.exp(-0.5 * (distance / width) ** 2)
    prior = np.outer(near, speech_scale).ravel()
    return prior / np.sqrt(np.mean(prior**2))


@dataclass(frozen=True)
class Speaker:
    """Speech and expressions of one clip: N training frames, C speech components, P mesh points."""

    windows: np.ndarray
    """[N, 16, C], speech windows"""
    silence: np.ndarray
    """[C], features of a pause"""
    directions: np.ndarray
    """[C, D], deviation of the encoder's features from their mean for a speech component of 1"""
    expressions: np.ndarray
    """[N, 10], scores of `expression_components`"""
    rest: np.ndarray
    """[10], expression of a closed mouth"""
    mesh_axes: np.ndarray
    """[10, 3 P], displacement of the mesh for each component, orthonormal or zero"""
    encoder: str
    """the encoder and its settings, which must be the same for all speakers"""
    identity: str
    """hash of the clip's speech windows, by which a clip is recognized"""

    @classmethod
    def of(cls, data: Dataset, encoder: str) -> "Speaker":
        """Read the training frames of a dataset.

        Raises:
            UserError: the speech features have no statistics, or the dataset was not tracked with
                `talker track`.
        """
        path = data.folder / speech_statistics(encoder)
        if data.silence is None or data.speech_scale is None:
            raise UserError(
                f"{path} does not exist, but the speech prior needs the statistics of the speech "
                "features. Run `talker speech`, which writes them."
            )
        components, encoder_key = _read_statistics(path, data.speech_scale)
        ids = data.train_ids
        parts = expression_components(data.expression[ids], data.eye[ids])
        basis = read_expression_basis(data.folder / layout.TRACK_PARAMS)
        if len(basis) != data.expression.shape[1]:
            raise UserError(
                f"{data.folder / layout.TRACK_PARAMS}: `exp_basis` has {len(basis)} rows, but `exp`"
                f" has {data.expression.shape[1]} coefficients. Run `talker track` again."
            )
        rest = rest_expression(parts.scores, mouth_opening(data.landmarks[ids]))
        return cls(
            windows=data.speech[ids].astype(np.float64),
            silence=data.silence.astype(np.float64),
            directions=components.astype(np.float64) * data.speech_scale[:, None],
            expressions=parts.scores.double().numpy(),
            rest=rest.double().numpy(),
            mesh_axes=parts.axes.numpy() @ basis.reshape(len(basis), -1).astype(np.float64),
            encoder=encoder_key,
            identity=_content_hash(speech_file(data.folder, encoder)),
        )


@dataclass(frozen=True)
class SpeechPrior:
    """Linear maps from speech to displacements of the face mesh, fitted to S speakers.

    There are S + 1 maps: one for each speaker that is fitted to all others, and one that is fitted
    to all of them. A clip that the prior was fitted to thus gets a prior from the others.
    """

    encoder: str
    """the encoder and its settings"""
    speakers: np.ndarray
    """[S], hashes of the clips; see `Speaker.identity`"""
    speech_axes: np.ndarray
    """[D, K], maps features of the encoder to components of variance 1"""
    modes: np.ndarray
    """[M, 3 P], orthonormal displacements of the mesh"""
    weight: np.ndarray
    """[S + 1, 16 K, M]; the last map is fitted to all speakers"""
    bias: np.ndarray
    """[S + 1, M]"""
    strength: float
    """chosen regularization strength"""
    correlations: np.ndarray
    """[S], correlation between the first expression component of each speaker and its prediction by
    the map that is fitted to the others; nan if there is only one speaker"""

    def map_of(self, speaker: Speaker) -> Ridge:
        """Return the map from flattened windows [N, 16 C] of a speaker to expressions [N, 10].

        Raises:
            UserError: the speaker's features are from another encoder, or the mesh differs.
        """
        if speaker.encoder != self.encoder:
            raise UserError(
                f"The speech prior was fitted with the speech features of {self.encoder}, but "
                f"this clip has features of {speaker.encoder}. Fit the prior again with `talker "
                "prior`, or change the options of `talker speech`."
            )
        if speaker.mesh_axes.shape[1] != self.modes.shape[1]:
            raise UserError(
                f"The speech prior was fitted with a face mesh of {self.modes.shape[1] // 3} "
                f"points, but this clip has {speaker.mesh_axes.shape[1] // 3}. Fit the prior again "
                "with `talker prior`."
            )
        known = np.flatnonzero(self.speakers == speaker.identity)
        row = int(known[0]) if len(known) and len(self.speakers) > 1 else -1
        to_expression = self.modes @ speaker.mesh_axes.T
        return Ridge(
            _through(speaker.directions @ self.speech_axes, self.weight[row]) @ to_expression,
            self.bias[row] @ to_expression,
        )

    def save(self, path: Path) -> None:
        """Write the prior as an .npz file."""
        with open(path, "wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "SpeechPrior":
        """Read a prior.

        Raises:
            UserError: the file is missing or damaged, or was not written by `talker prior`.
        """
        if not path.exists():
            raise UserError(
                f"{path} does not exist. Write it with `talker prior`, or remove the option "
                "`speech_prior`."
            )
        try:
            arrays = load_arrays(path)
            prior = cls(
                encoder=str(arrays["encoder"]),
                speakers=arrays["speakers"],
                speech_axes=arrays["speech_axes"],
                modes=arrays["modes"],
                weight=arrays["weight"],
                bias=arrays["bias"],
                strength=float(arrays["strength"]),
                correlations=arrays["correlations"],
            )
            prior._check()
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a file that `talker prior` wrote ({error}).") from error
        return prior

    def _check(self) -> None:
        """Raise ValueError if the shapes of the arrays do not fit together."""
        (speakers,), (_, components) = self.speakers.shape, self.speech_axes.shape
        modes = len(self.modes)
        shapes = {
            "weight": (speakers + 1, WINDOW * components, modes),
            "bias": (speakers + 1, modes),
            "correlations": (speakers,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} does not have the shape {list(shape)}")
        for name in ("speech_axes", "modes", "weight", "bias"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} has values that are not finite")


def _through(
    conversion: Float[np.ndarray, "C K"], weight: Float[np.ndarray, "F M"]
) -> Float[np.ndarray, "G M"]:
    """Return weights [16 C, M] of own components from weights [16 K, M] of shared ones."""
    components, modes = conversion.shape[1], weight.shape[1]
    own = conversion @ weight.reshape(WINDOW, components, modes)
    return own.reshape(-1, modes)


def _read_statistics(path: Folder, scale: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the speech components [C, D], and the encoder with all settings that matter.

    Raises:
        UserError: the file is not complete.
    """
    arrays = load_arrays(path)
    names = ("encoder", "layer", "look_ahead", "sha256")
    if missing := [name for name in ("components", *names) if name not in arrays]:
        raise UserError(f"{path} has no array '{missing[0]}'. Run `talker speech` again.")
    components = arrays["components"]
    if components.ndim != 2 or len(components) != len(scale) or not np.isfinite(components).all():
        raise UserError(
            f"{path} has an array 'components' of shape {list(components.shape)}. It must have one "
            f"row of finite numbers for each of the {len(scale)} speech components. Run `talker "
            "speech` again."
        )
    encoder, layer, look_ahead, checksum = (str(arrays[name]) for name in names)
    return components, f"{encoder} (layer {layer}, look_ahead {look_ahead}, {checksum[:12]})"


def _content_hash(path: Folder) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
