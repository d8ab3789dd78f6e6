"""A prior on the map from speech to expression, fitted to other speakers.

Every clip has its own principal components of speech and of expressions, so maps of different clips
cannot be compared directly. The prior therefore uses quantities that all speakers share: principal
components of the encoder's features, and displacements of the points of the face mesh. Because all
conversions are linear, the prior is a linear map for each speaker, too.

The speakers differ in the mean of their features and in the size of their motion. Both are removed:
features are relative to the mean of the clip, and expressions are divided by the standard deviation
of their largest component.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from talker.avatar.expression import expression_components, rest_expression, weight_prior
from talker.clip import WINDOW, load_arrays
from talker.core.ridge import Ridge
from talker.data import layout
from talker.data.formats import read_expression_basis
from talker.data.layout import Folder, speech_file, speech_statistics
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.landmarks68 import mouth_opening

SPEECH_COMPONENTS = 64
"""Number of principal components of the encoder's features that the prior uses."""
MODES = 24
"""Number of principal components of the displacements of the face mesh that the prior predicts."""
STRENGTHS = tuple(float(10**power) for power in np.arange(2, 6.1, 0.5))
"""Regularization strengths that are tried on left-out speakers."""
SINGLE_STRENGTH = 1e4
"""Regularization strength if there is only one speaker, so that none can be left out."""


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
                f"{path} does not exist, but the prior on speech needs the statistics of the "
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
                f"The prior on speech was fitted with the speech features of {self.encoder}, but "
                f"this clip has features of {speaker.encoder}. Fit the prior again with `talker "
                "prior`, or change the options of `talker speech`."
            )
        if speaker.mesh_axes.shape[1] != self.modes.shape[1]:
            raise UserError(
                f"The prior on speech was fitted with a face mesh of {self.modes.shape[1] // 3} "
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
        UserError: there is no speaker, or their encoders or meshes differ.
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
        raise UserError("A prior on speech needs at least one dataset.")
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
