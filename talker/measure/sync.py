"""Score how well a mouth follows the audio, without additional files.

A ridge regression predicts the shape of the mouth from the audio. It is fitted on the subject's
real training frames, from a mel spectrogram or from the features of an encoder, whichever does not
drive the avatar. Its prediction for any audio is compared with the mouth in any video: the score is
their correlation, reported next to its null distribution (the same audio, circularly shifted) and
the score of the real video. This is not SyncNet's Sync-C.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real
from librosa.feature import melspectrogram

from talker.clip import FPS, SAMPLE_RATE
from talker.core.pca import pca
from talker.core.ridge import Ridge, fit_cross_validated
from talker.data import layout
from talker.dataset import Dataset
from talker.encoders import Choice, Encoder, load_encoder
from talker.encoders.features import SLOTS_PER_FRAME, extract, windows
from talker.encoders.loudness import pauses, slot_levels, speech_level
from talker.head.landmarks68 import mouth_shape
from talker.measure.metrics import correlation, lag_curve
from talker.media.audio import Waveform, clip_sound

logger = logging.getLogger(__name__)

BANDS = 80
"""Number of bands of the mel spectrogram."""
HOP = SAMPLE_RATE // 100
"""Samples between the rows of the mel spectrogram: 10 ms."""
FLOOR = 1e-10
"""Power of a band below which it counts as silence."""
COMPONENTS = 40
"""Number of principal components of the features."""
LOUD_RANGE = 25.0
"""Range in dB below the level of the speech within which a step counts as speech."""
LOOK_AHEAD = 2
"""Number of 20 ms steps by which the center of a window is later than its frame."""
SHORTEST_PAUSE = 0.3
"""Duration in seconds from which a pause is excluded, because silence does not predict the
mouth."""
MAX_LAG = 12
"""Largest lag in frames that is searched."""
MIN_SHIFT = FPS
"""Smallest circular shift of the null distribution in frames; smaller ones are not independent."""
NULL_SHIFTS = 50
"""Number of circular shifts of the null distribution."""
MIN_FRAMES = 2 * FPS
"""Number of frames below which no score is computed."""
MIN_NULL_FRAMES = 80
"""Number of frames below which no null distribution is computed, because it would consist of few
and nearly equal shifts (10 % of unrelated recordings pass a 5 % test with 75 frames, and 5 % pass
it with 100)."""


def log_mel(sound: Float[np.ndarray, "S"], start: int = 0) -> Float[np.ndarray, "N 80"]:
    """Return the log-mel spectrogram [1 + S // 160, 80] of audio, float32 [S]."""
    power = melspectrogram(
        y=sound, sr=SAMPLE_RATE, n_fft=SAMPLE_RATE // 40, hop_length=HOP, n_mels=BANDS
    )
    return np.log(np.maximum(power.T, FLOOR))


MEL = Encoder("mel", BANDS, SAMPLE_RATE / HOP, first_center=0.0, sha256="", extract=log_mel)
"""The mel spectrogram in the form of an encoder."""


@dataclass(frozen=True)
class Predictor:
    """Predicts mouth shapes from audio: opening, width and jaw, in units of the eye distance."""

    features: Encoder
    components: np.ndarray
    """[C, D]"""
    ridge: Ridge
    """from windows [16 C] to standardized shapes [3]"""

    def shapes(self, sound: Waveform) -> Float[np.ndarray, "T 3"]:
        """Predict the standardized shapes [T, 3] of audio int16 [640 T]; nan in pauses."""
        features = _windows(_standardized(self.features, sound), self.components)
        silence = pauses(slot_levels(sound), SHORTEST_PAUSE)
        silent = silence.reshape(-1, SLOTS_PER_FRAME).max(1) == 1
        return np.where(silent[:, None], np.nan, self.ridge.predict(features))


def fit_predictor(dataset: Dataset, encoder: str | None = None) -> Predictor:
    """Fit a predictor on the real training frames and the landmarks of a dataset.

    Args:
        dataset: the dataset.
        encoder: name of the encoder whose features are used; None uses a mel spectrogram.
    """
    features = load_encoder(Choice(encoder)) if encoder else MEL
    slots = _standardized(features, clip_sound(dataset.folder / layout.SOUND, dataset.frames))
    ids = dataset.train_ids
    training = slots[: SLOTS_PER_FRAME * (int(ids[-1]) + 1)]
    _, components = pca(training, COMPONENTS)
    x = _windows(slots, components)[ids].astype(np.float64)
    y = mouth_shape(dataset.landmarks[ids]).astype(np.float64)
    y = (y - y.mean(0)) / np.maximum(y.std(0), 1e-9)
    fitted = fit_cross_validated(x, y)
    logger.info(
        "For the sync score, %s features predict the mouth opening with a correlation of %.2f on "
        "training frames that were not used for the fit.",
        features.name,
        correlation(fitted.held_out[:, 0], y[:, 0]),
    )
    return Predictor(features, components, fitted.ridge)


def sync_score(
    predicted: Float[np.ndarray, "T 3"], landmarks: Real[np.ndarray, "T 68 2"]
) -> dict[str, float]:
    """Compare predicted mouth shapes with the mouth in a video.

    Args:
        predicted: output of `Predictor.shapes` [T, 3].
        landmarks: [T, 68, 2] in pixels, nan without a face.

    Returns:
        `correlation` without a shift; `null_mean`, `null_sd` and `null_share` of its null
        distribution (nan below `MIN_NULL_FRAMES` frames); `best_lag` in frames (positive: the mouth
        is late) and `best_correlation` there; `frames`, the number of frames compared. All are
        means over opening, width and jaw, and nan where they cannot be computed.
    """
    observed = mouth_shape(landmarks)
    compared = int((np.isfinite(observed) & np.isfinite(predicted)).all(1).sum())
    names = ("correlation", "null_mean", "null_sd", "null_share", "best_lag", "best_correlation")
    unknown = dict.fromkeys(names, float("nan")) | {"frames": compared}
    if compared < MIN_FRAMES:
        return unknown
    score = _mean_correlation(predicted, observed)
    if np.isnan(score):
        return unknown
    frames = len(observed)
    shifts = np.unique(np.linspace(MIN_SHIFT, frames - MIN_SHIFT, NULL_SHIFTS).astype(int))
    if compared < MIN_NULL_FRAMES:
        shifts = shifts[:0]
    null = np.array([_mean_correlation(np.roll(predicted, s, axis=0), observed) for s in shifts])
    curve = np.mean(
        [lag_curve(observed[:, k], predicted[:, k], MAX_LAG) for k in range(observed.shape[1])],
        axis=0,
    )
    return {
        "correlation": score,
        "null_mean": float(null.mean()) if null.size else math.nan,
        "null_sd": float(null.std()) if null.size else math.nan,
        "null_share": ((null >= score).sum() + 1) / (null.size + 1) if null.size else math.nan,
        "best_lag": float(curve.argmax() - MAX_LAG),
        "best_correlation": float(curve.max()),
        "frames": compared,
    }


def null_reason(score: dict[str, float]) -> dict[str, str]:
    """Return why a sync score has no null distribution, or nothing if it has one."""
    frames = int(score["frames"])
    if frames >= MIN_NULL_FRAMES:
        return {}
    return {
        "null distribution of the sync score": f"needs {MIN_NULL_FRAMES} frames with a face and "
        f"speech, but there are only {frames}"
    }


def _standardized(encoder: Encoder, sound: Waveform) -> np.ndarray:
    """Return features [2 T, D] with mean 0 and standard deviation 1 where the audio is loud.

    Every recording is standardized by its own statistics, which removes part of the differences
    between voices and microphones.
    """
    slots = np.concatenate(list(extract(encoder, sound)))
    levels = slot_levels(sound)
    loud = levels > np.nan_to_num(speech_level(levels), nan=np.inf) - LOUD_RANGE
    reference = slots[loud] if loud.sum() > 1 else slots
    return (slots - reference.mean(0)) / np.maximum(reference.std(0), 1e-3)


def _windows(slots: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Return flattened windows [T, 16 C] of steps [2 T, D] reduced to `components` [C, D]."""
    blocks = np.concatenate(list(windows([slots @ components.T], LOOK_AHEAD)))
    return blocks.reshape(len(blocks), -1)


def _mean_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([correlation(a[:, k], b[:, k]) for k in range(a.shape[1])]))
