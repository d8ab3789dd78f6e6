"""Measure how an avatar responds when one of its inputs changes and the others do not.

A blink value must close the eyes step by step, a brow value must raise the brows step by step,
silence must close the mouth, and another head pose must not change the mouth.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.stats import spearmanr

from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, render_frames
from talker.clip import WINDOW
from talker.core.parallel import job_threads
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.head.brows import brow_distance
from talker.head.landmarks68 import eye_aspect_ratio, landmarks68, mouth_opening
from talker.measure.detection import detect_landmarks, detect_meshes
from talker.measure.metrics import correlation, finite, std_ratio

EYE_LEVELS = np.linspace(0, 1, 6, dtype=np.float32)
"""Degrees of eye closure at which the eyes are rendered."""
POSES = 4
"""Number of held-out frames whose poses are used for each degree of eye closure, for each height of
the brows, and for silence."""
BROW_FRAMES = 8
"""Number of training frames with the highest, and with the lowest, brows that are measured."""
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

    def rendered(drive: Drive, name: str) -> Iterator[np.ndarray]:
        return progress(render_frames(avatar, dataset, drive, batch), name, len(drive))

    def levels_of(values: np.ndarray) -> np.ndarray:
        return np.array([finite(part) for part in values.reshape(POSES, -1).T])

    poses = ids[np.linspace(0, len(ids) - 1, POSES).astype(int)]
    repeated = np.repeat(poses, len(EYE_LEVELS))
    drive = Drive(repeated, dataset.speech, repeated, eye=dataset.eye[repeated])
    closing = replace(drive, eye=_with(drive.eye, 0, np.tile(EYE_LEVELS, POSES)))
    turned = Drive(ids[::-1], dataset.speech, ids, eye=dataset.eye[ids])
    # A detector uses one core, so these few frames are measured at the same time as the many below.
    with ThreadPoolExecutor(job_threads()) as pool:
        drop, lift = pool.submit(recorded_drop, dataset, real), pool.submit(recorded_lift, dataset)
        closed_eyes = pool.submit(detect_meshes, list(rendered(closing, "eye closure")))
        if dataset.silence is not None:
            window = np.tile(dataset.silence, (1, WINDOW, 1))
            silent = Drive(poses, window, np.zeros_like(poses))
            silent_mouth = pool.submit(detect_landmarks, list(rendered(silent, "silence")))
        inputs, rise = lift.result()
        if np.ptp(inputs):
            raising = replace(drive, eye=_with(drive.eye, 1, np.tile(inputs, POSES)))
            raised_brows = pool.submit(detect_meshes, list(rendered(raising, "brows")))
        after = mouth_opening(detect_landmarks(rendered(turned, "other head poses")))
    before = mouth_opening(detected)
    row = {
        "pose_mouth_correlation": correlation(after, before),
        "pose_mouth_std_ratio": std_ratio(after, before),
    }
    levels = levels_of(eye_aspect_ratio(landmarks68(closed_eyes.result())))
    row |= _blink_row(levels, drop.result())
    row |= {"brow_rank_correlation": float("nan"), "brow_lifting": float("nan")}
    if np.ptp(inputs):
        levels = levels_of(brow_distance(raised_brows.result()))
        row["brow_rank_correlation"] = _rank_correlation(inputs, levels)
        row["brow_lifting"] = float((levels[-1] - levels[0]) / rise) if rise > 0 else float("nan")
    if dataset.silence is not None:
        opening = finite(mouth_opening(silent_mouth.result()))
        recorded = mouth_opening(real)
        closed = finite(recorded[recorded <= np.nanquantile(recorded, CLOSED_SHARE)])
        row["silence_opening"] = (opening - closed) / (finite(recorded) - closed)
    return row


def recorded_drop(dataset: Dataset, real: Float[np.ndarray, "N 68 2"]) -> float:
    """Return the drop of the eye aspect ratio from open to closed eyes, nan without a blink.

    Args:
        real: landmarks of the real held-out frames; most of them show open eyes.
    """
    closed = dataset.train_ids[dataset.eye[dataset.train_ids, 0] >= CLOSED_EYE][:CLOSED_FRAMES]
    if not len(closed):
        return float("nan")
    ratios = eye_aspect_ratio(detect_landmarks(dataset.frame(int(i)) for i in closed))
    return finite(eye_aspect_ratio(real), np.median) - finite(ratios)


def recorded_lift(dataset: Dataset) -> tuple[Float32[np.ndarray, "L"], float]:
    """Return input values from lowered to raised brows, and the rise of the brows between them.

    Returns:
        float32 [6], and the difference between the brow distances in the training frames with the
        highest and the lowest brows; nan if the inputs are equal.
    """
    order = dataset.train_ids[np.argsort(dataset.eye[dataset.train_ids, 1], kind="stable")]
    low, high = np.sort(order[:BROW_FRAMES]), np.sort(order[-BROW_FRAMES:])
    first, last = (float(dataset.eye[part, 1].mean()) for part in (low, high))
    inputs = np.linspace(first, last, len(EYE_LEVELS), dtype=np.float32)
    if not np.ptp(inputs):
        return inputs, float("nan")
    frames = (dataset.frame(int(i)) for i in [*low, *high])
    distances = brow_distance(detect_meshes(frames))
    return inputs, finite(distances[len(low) :]) - finite(distances[: len(low)])


def _with(
    eye: Float32[np.ndarray, "N 2"] | None, column: int, values: Float32[np.ndarray, "N"]
) -> Float32[np.ndarray, "N 2"]:
    """Return a copy of an eye input with other values in one column."""
    assert eye is not None
    changed = eye.copy()
    changed[:, column] = values
    return changed


def _rank_correlation(inputs: Float32[np.ndarray, "L"], levels: Float[np.ndarray, "L"]) -> float:
    """Return the Spearman correlation, nan if a level is unknown or all are equal."""
    known = np.isfinite(levels).all() and np.ptp(levels) > 0
    rank = spearmanr(inputs, levels)[0] if known else float("nan")
    return float(rank)


def _blink_row(levels: Float[np.ndarray, "L"], drop: float) -> dict[str, float]:
    """Return the numbers of the blinks from the eye aspect ratios at `EYE_LEVELS`."""
    return {
        "blink_rank_correlation": _rank_correlation(EYE_LEVELS, -levels),
        "blink_closing": float((levels[0] - levels[-1]) / drop) if drop > 0 else float("nan"),
    }
