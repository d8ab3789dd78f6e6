"""Measure how an avatar responds when one of its inputs changes and the others do not.

A blink value must close the eyes step by step, silence must close the mouth, and another head pose
must not change the mouth.
"""

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import spearmanr

from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, render_frames
from talker.clip import WINDOW
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.head.landmarks68 import eye_aspect_ratio, mouth_opening
from talker.measure.detection import detect_landmarks
from talker.measure.metrics import correlation, finite, std_ratio

EYE_LEVELS = np.linspace(0, 1, 6, dtype=np.float32)
"""Degrees of eye closure at which the eyes are rendered."""
POSES = 4
"""Number of held-out frames whose poses are used for each degree of eye closure, and for
silence."""
CLOSED_SHARE = 0.1
"""Fraction of the real frames, those with the least open mouth, that count as closed."""
CLOSED_EYE = 0.9
"""Recorded eye closure from which a training frame shows closed eyes."""
CLOSED_FRAMES = 16
"""Largest number of training frames with closed eyes that are measured."""


def measure_responses(
    avatar: Avatar,
    dataset: Dataset,
    ids: Int64[np.ndarray, "N"],
    detected: Float[np.ndarray, "N 68 2"],
    real: Float[np.ndarray, "N 68 2"],
    batch: int = 0,
) -> dict[str, float]:
    """Return the numbers of `talker.measure.definitions.RESPONSE_DEFINITIONS`.

    Args:
        ids: held-out frames.
        detected: landmarks of the avatar's rendering of these frames.
        real: landmarks of the real frames.
        batch: number of frames rendered at once; 0 selects it by device.
    """

    def landmarks(drive: Drive, name: str) -> np.ndarray:
        frames = render_frames(avatar, dataset, drive, batch)
        return detect_landmarks(progress(frames, name, len(drive)))

    poses = ids[np.linspace(0, len(ids) - 1, POSES).astype(int)]
    shuffled = landmarks(
        Drive(ids[::-1], dataset.speech, ids, eye=dataset.eye[ids]), "other head poses"
    )
    before, after = mouth_opening(detected), mouth_opening(shuffled)
    row = {
        "pose_mouth_correlation": correlation(after, before),
        "pose_mouth_std_ratio": std_ratio(after, before),
    }
    count = len(EYE_LEVELS)
    drive = Drive(
        np.repeat(poses, count),
        dataset.speech,
        np.repeat(poses, count),
        eye=np.tile(EYE_LEVELS, POSES),
    )
    ratios = eye_aspect_ratio(landmarks(drive, "eye closure"))
    levels = np.array([finite(part) for part in ratios.reshape(POSES, count).T])
    row |= _blink_row(levels, recorded_drop(dataset, real))
    if dataset.silence is not None:
        window = np.tile(dataset.silence, (1, WINDOW, 1))
        drive = Drive(poses, window, np.zeros_like(poses))
        opening = finite(mouth_opening(landmarks(drive, "silence")))
        recorded = mouth_opening(real)
        closed = finite(recorded[recorded <= np.nanquantile(recorded, CLOSED_SHARE)])
        row["silence_opening"] = (opening - closed) / (finite(recorded) - closed)
    return row


def recorded_drop(dataset: Dataset, real: Float[np.ndarray, "N 68 2"]) -> float:
    """Return the drop of the eye aspect ratio from open to closed eyes, nan without a blink.

    Args:
        real: landmarks of the real held-out frames; most of them show open eyes.
    """
    closed = dataset.train_ids[dataset.eye[dataset.train_ids] >= CLOSED_EYE][:CLOSED_FRAMES]
    if not len(closed):
        return float("nan")
    ratios = eye_aspect_ratio(detect_landmarks(dataset.frame(int(i)) for i in closed))
    return finite(eye_aspect_ratio(real), np.median) - finite(ratios)


def _blink_row(levels: Float[np.ndarray, "L"], drop: float) -> dict[str, float]:
    """Return the numbers of the blinks from the eye aspect ratios at `EYE_LEVELS`."""
    known = np.isfinite(levels).all() and np.ptp(levels) > 0
    rank = spearmanr(EYE_LEVELS, -levels).statistic if known else float("nan")
    return {
        "blink_rank_correlation": float(rank),
        "blink_closing": float((levels[0] - levels[-1]) / drop) if drop > 0 else float("nan"),
    }
