"""Learn a prior on the map from speech to expression from the clips of several speakers.

    talker prior --data data/anna data/ben data/carl --prior prior.npz
    talker train --data data/me --speech-prior prior.npz ...

People move their mouths in similar ways when they say the same thing. A prior from other speakers
therefore improves the mouth of an avatar that is trained on a short clip. If the clip belongs to
the same speakers, it gets the prior of the others.

The speakers differ in the mean of their features and in the size of their motion. Both are removed:
features are relative to the mean of the clip, and expressions are divided by the standard deviation
of their largest component.

The file contains no images and no audio, but it is computed from the faces and voices of these
people. Share it only if they agree.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from talker.avatar.expression import Speaker, SpeechPrior, weight_prior
from talker.clip import WINDOW
from talker.core.config import DEFAULT_ENCODER, validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.core.ridge import Ridge
from talker.dataset import Dataset
from talker.errors import UserError

logger = logging.getLogger(__name__)

SIZE = 64
"""Size in pixels to which images would be scaled; the prior uses none."""
SPEECH_COMPONENTS = 64
"""Number of principal components of the encoder's features that the prior uses."""
MODES = 24
"""Number of principal components of the displacements of the face mesh that the prior predicts."""
STRENGTHS = tuple(float(10**power) for power in np.arange(2, 6.1, 0.5))
"""Regularization strengths that are tried on left-out speakers."""
SINGLE_STRENGTH = 1e4
"""Regularization strength if there is only one speaker, so that none can be left out."""


@validated
class Config:
    """Options of `talker prior`."""

    encoder: str = DEFAULT_ENCODER
    """Speech encoder whose features are used. The avatars that use the prior must be trained with
    the same encoder. The workflow sets it from the key `encoder` of its configuration."""


def main(*, data: tuple[Path, ...], prior: Output, config: Config = Config()) -> None:
    """Use the training frames of several datasets to learn a prior on the map from speech to
    expression.

    Args:
        data: Dataset folders, or files of `talker pack`, one for each speaker.
        prior: File to write, such as prior.npz.
        config: Options.

    Raises:
        UserError: a dataset is incomplete, or the speech features are not of one kind.
    """
    speakers = [
        Speaker.of(Dataset.load(folder, SIZE, config.encoder), config.encoder)
        for folder in progress(data, "datasets", len(data))
    ]
    fitted = fit_speech_prior(speakers)
    with atomic_write(prior) as (scratch,):
        fitted.save(scratch)
    _report(prior, data, fitted)


def _report(prior: Path, data: tuple[Path, ...], fitted: SpeechPrior) -> None:
    """Log how well the map that is fitted to the other speakers predicts each speaker."""
    if len(data) == 1:
        logger.info("Wrote %s, a prior from one speaker.", prior)
        return
    for folder, correlation in zip(data, fitted.correlations, strict=True):
        logger.info(
            "%s: the map that is fitted to the other speakers predicts the expression of this "
            "speaker with a correlation of %.2f.",
            *(folder, correlation),
        )
    logger.info(
        "Wrote %s, a prior from %d speakers (ridge strength: %g, mean correlation: %.2f).",
        *(prior, len(data), fitted.strength, np.nanmean(fitted.correlations)),
    )


class _Moments(NamedTuple):
    """Sums over N frames of features x [F] and targets y [M], from which a ridge is fitted."""

    count: float
    x: np.ndarray
    """[F]"""
    y: np.ndarray
    """[M]"""
    xx: np.ndarray
    """[F, F]"""
    xy: np.ndarray
    """[F, M]"""

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, weight: float = 1.0) -> "_Moments":
        return cls(
            count=weight * len(x),
            x=weight * x.sum(0),
            y=weight * y.sum(0),
            xx=weight * (x.T @ x),
            xy=weight * (x.T @ y),
        )

    def plus(self, other: "_Moments", sign: float = 1.0) -> "_Moments":
        return _Moments(
            count=self.count + sign * other.count,
            x=self.x + sign * other.x,
            y=self.y + sign * other.y,
            xx=self.xx + sign * other.xx,
            xy=self.xy + sign * other.xy,
        )

    def fit(self, strengths: Sequence[float]) -> list[Ridge]:
        """Return the ridge regression for each strength."""
        x, y = self.x / self.count, self.y / self.count
        values, vectors = np.linalg.eigh(self.xx - self.count * np.outer(x, x))
        rotated = vectors.T @ (self.xy - self.count * np.outer(x, y))
        weights = [vectors @ (rotated / (values.clip(0) + s)[:, None]) for s in strengths]
        return [Ridge(weight, y - x @ weight) for weight in weights]


def fit_speech_prior(speakers: Sequence[Speaker]) -> SpeechPrior:
    """Fit a prior to speakers, with the strength that predicts left-out speakers best.

    As in `fit_speech_to_expression`, distant time steps and small components are expected to matter
    less, and silence is added with the face at rest.

    Raises:
        UserError: no speaker is given, or their encoders or meshes differ.
    """
    _require_alike(speakers)
    axes, scale = _speech_axes(speakers)
    modes = _modes(speakers)
    near = weight_prior(scale)

    def moments(speaker: Speaker) -> _Moments:
        x, y = near * _features(speaker, speaker.windows, axes), _targets(speaker, modes)
        silence = near * _features(speaker, np.tile(speaker.silence, (1, WINDOW, 1)), axes)
        rest = speaker.rest[None] @ speaker.mesh_axes @ modes.T
        return _Moments.of(x, y).plus(_Moments.of(silence, rest, len(x)))

    total = moments(speakers[0])
    for speaker in speakers[1:]:
        total = total.plus(moments(speaker))
    strengths = STRENGTHS if len(speakers) > 1 else (SINGLE_STRENGTH,)
    maps, errors, correlations = [], np.zeros(len(strengths)), []
    for speaker in speakers if len(speakers) > 1 else ():
        maps.append(total.plus(moments(speaker), -1).fit(strengths))
        x, y = near * _features(speaker, speaker.windows, axes), _targets(speaker, modes)
        predicted = [ridge.predict(x) for ridge in maps[-1]]
        errors += [np.square(one - y).sum() for one in predicted]
        first = speaker.mesh_axes[0] @ modes.T
        with np.errstate(invalid="ignore"):
            correlations.append([np.corrcoef(one @ first, y @ first)[0, 1] for one in predicted])
    best = int(errors.argmin())
    everyone = total.fit(strengths)
    chosen = [fitted[best] for fitted in (*maps, everyone)] if maps else 2 * everyone
    return SpeechPrior(
        encoder=speakers[0].encoder,
        speakers=np.array([speaker.identity for speaker in speakers]),
        speech_axes=axes,
        modes=modes,
        weight=np.stack([near[:, None] * ridge.weight for ridge in chosen]),
        bias=np.stack([ridge.bias for ridge in chosen]),
        strength=strengths[best],
        correlations=np.array([row[best] for row in correlations] or [np.nan]),
    )


def _require_alike(speakers: Sequence[Speaker]) -> None:
    if not speakers:
        raise UserError("A speech prior needs at least one dataset.")
    encoders = sorted({speaker.encoder for speaker in speakers})
    if len(encoders) > 1:
        raise UserError(
            "The speech features of the datasets were extracted with different options: "
            f"{'; '.join(encoders)}. Run `talker speech` with the same options for all of them."
        )
    points = sorted({speaker.mesh_axes.shape[1] // 3 for speaker in speakers})
    if len(points) > 1:
        raise UserError(
            f"The face meshes of the datasets have different numbers of points: {points}. Run "
            "`talker track` again for all of them."
        )


def _speech_axes(
    speakers: Sequence[Speaker],
) -> tuple[Float[np.ndarray, "D K"], Float[np.ndarray, "K"]]:
    """Return axes [D, K] that map features to components of variance 1, and their scales [K].

    All speakers have the same influence. Frames of silence are left out.
    """
    covariance = 0.0
    for speaker in speakers:
        rows = speaker.windows[:, WINDOW // 2]
        spoken = rows[np.abs(rows - speaker.silence).max(1) > 1e-3]
        moment = spoken.T @ spoken / max(len(spoken), 1)
        covariance = covariance + speaker.directions.T @ moment @ speaker.directions / len(speakers)
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1][:SPEECH_COMPONENTS]
    order = order[values[order] > 1e-6 * values.max()]
    scale = np.sqrt(values[order])
    return vectors[:, order] / scale, scale


def _modes(speakers: Sequence[Speaker]) -> Float[np.ndarray, "M X"]:
    """Return the principal displacements of the mesh over the frames of all speakers."""
    rows = [np.linalg.qr(speaker.expressions, mode="r") @ speaker.mesh_axes for speaker in speakers]
    return np.linalg.svd(np.concatenate(rows), full_matrices=False)[2][:MODES]


def _features(
    speaker: Speaker, windows: Float[np.ndarray, "N 16 C"], axes: Float[np.ndarray, "D K"]
) -> Float[np.ndarray, "N F"]:
    """Return flattened windows [N, 16 K] in the components that all speakers share."""
    return (windows @ (speaker.directions @ axes)).reshape(len(windows), -1)


def _targets(speaker: Speaker, modes: Float[np.ndarray, "M X"]) -> Float[np.ndarray, "N M"]:
    return speaker.expressions @ (speaker.mesh_axes @ modes.T)
