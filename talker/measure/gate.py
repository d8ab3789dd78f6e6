"""Decide whether a prepared clip can give a good avatar: limits, reasons and advice.

A lost face, a jittering head or the audio of somebody else is found here in seconds instead of
after training. The correlation of audio and mouth is compared with a null distribution from the
same clip, so that a short clip is not refused only because it is too short for a reliable result.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Real, UInt8

from talker.clip import FPS
from talker.core.config import AtLeast0, Fraction, NonNegative, Positive, validated
from talker.core.pca import pca
from talker.core.ridge import fit_ridge, stretches
from talker.data.layout import BACKGROUND
from talker.errors import counted

LAGS = np.arange(-12, 13)
"""Lags of the audio behind the image, in frames, at which the two are compared."""
LEAD = 0.5
"""Natural lag of the audio behind the lips in frames, as measured on clips that are in sync."""
SLOTS = 4
"""Number of time steps of 20 ms around a frame from which its mouth opening is predicted."""
COMPONENTS = 48
"""Largest number of principal components of these time steps."""
DAMPING = 0.01
"""Ridge strength, relative to the number of frames and the largest variance of a component."""
FOLDS, GAP = 5, 12
"""Number of stretches in the cross-validation, and number of frames left out around each of
them."""
MIN_SYNC_FRAMES = 3 * FPS
"""Number of tracked frames below which audio and mouth are not compared."""
NULL_MARGIN = FPS
"""Number of frames by which the circular shifts of the null distribution exceed the largest lag."""
NULL_SHIFTS = 60
"""Largest number of circular shifts of the null distribution."""
SURE_Z = 2.8
"""Number of standard deviations above the mean of the null distribution from which the audio is
considered to belong to the mouth. The best of 25 lags, of which about 8 are independent, exceeds it
in 2 % of unrelated clips if the null distribution is normal."""
MIN_REFUSAL_FRAMES = 8 * FPS
"""Number of frames below which a missing correlation is a warning instead of a reason to refuse:
in shorter clips even the correct audio can stay below `SURE_Z` (in 1 of 3 clips of 5 s)."""
LIKELY_Z = 1.64
"""Number of standard deviations from which a clip of less than `CERTAIN_FRAMES` is not refused if
the best lag is one of clips that are in sync: 5 % of unrelated clips exceed it at a given lag."""
CERTAIN_FRAMES = 20 * FPS
"""Number of frames from which the correct audio always reached `SURE_Z` on real clips."""
LAG_MARGIN = 2.0
"""Minimum number of standard deviations by which the correlation at the measured lag must exceed
the correlation at the lags of clips that are in sync."""
STEADY_RANGE = 3.0
"""Range of the level in dB (5th to 95th percentile) below which the audio is not speech."""
SMALL_YAW_RANGE = 5.0
"""Range of the head's yaw in degrees below which a warning is given."""
DOUBTFUL_LAG = 2.0
"""Lag in frames above which a warning is given."""
CHANGED_LEVELS = 24
"""Difference in gray levels from which a background pixel counts as changed."""
CLEARANCE = 8
"""Distance from the person within which the background is not compared, in pixels of an image whose
longer side is 512 pixels."""
SHORT_SECONDS = 10.0
"""Duration of the tracked frames in seconds below which a clip gets a warning."""
AT_LEAST = {"valid_percent", "usable_seconds", "held_out_frames", "mouth_range", "level_range_db"}
"""Facts whose limit is a lower bound."""


@validated
class Limits:
    """Limits beyond which a clip is refused, unless the option `force` is set."""

    min_valid: NonNegative = 80.0
    """Minimum percentage of frames in which the head is tracked, within the shots that are used."""
    min_seconds: NonNegative = 3.0
    """Minimum duration of the tracked frames in seconds."""
    min_held_out: AtLeast0 = 5
    """Minimum number of tracked held-out frames."""
    max_residual: Positive = 0.8
    """Maximum distance between the tracked head and the landmarks, as a percentage of the face
    width (median over frames)."""
    max_c1: Positive = 0.25
    """Maximum difference between the motion of the tracked head and that of the image from one
    frame to the next, in pixels for a face that is 250 pixels wide."""
    max_c5: Positive = 1.0
    """Maximum difference between the motion of the tracked head and that of the image over 5
    frames, in pixels for a face that is 250 pixels wide."""
    max_person: Positive = 1.8
    """Maximum ratio of the tracking error in the worst shot to that in the best shot. A higher
    ratio suggests that a shot shows a different person."""
    max_rival: NonNegative = 20.0
    """Maximum percentage of frames that show another face that is at least half as large as the
    speaker's."""
    min_mouth: NonNegative = 0.04
    """Minimum range of the mouth opening (2nd to 98th percentile), in multiples of the distance
    between the outer eye corners."""
    min_sync: Fraction = 0.25
    """Minimum correlation between the mouth opening and its prediction from the audio. It applies
    only if the clip is long enough to measure the correlation."""
    max_lag: Positive = 3.0
    """Maximum lag of the audio behind the video, or lead before it, in frames. Clips that are in
    sync have a measured lag of -1 (lead) to 2."""
    max_background: NonNegative = 15.0
    """Maximum percentage of the background that differs from the plate (median over frames)."""


@dataclass(frozen=True)
class Assessment:
    """Reasons to refuse a clip, and warnings."""

    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def sync_facts(
    speech: Real[np.ndarray, "T 16 C"],
    opening: Float[np.ndarray, "T"],
    valid: Bool[np.ndarray, "T"],
) -> dict[str, float | None]:
    """Measure how well the audio predicts the mouth opening, compared with chance.

    Args:
        speech: speech windows [T, 16, C].
        opening: mouth opening [T].
        valid: whether the frame is tracked, bool [T].

    Returns:
        `sync_correlation` at the best lag, `sync_lag_frames` (positive: the audio is late),
        `sync_frames` (number of frames compared), `sync_z` (standard deviations above the mean of
        the null distribution) and `sync_lag_z` (standard deviations by which the best lag exceeds
        the lags of clips in sync).
        All are None if the clip is too short.
    """
    names = ("correlation", "lag_frames", "z", "frames", "lag_z")
    facts: dict[str, float | None] = {f"sync_{name}": None for name in names}
    features = _components(speech)
    curve = _lag_curve(features, opening, valid)
    if not np.isfinite(curve).any():
        return facts
    lag, peak = peak_lag(curve)
    facts |= {
        "sync_correlation": peak,
        "sync_lag_frames": lag,
        "sync_frames": int(valid.sum()),
    }
    null = null_correlations(features, opening, valid)
    if len(null) >= 10 and null.std() > 0:
        in_sync = np.nanmax(curve[np.abs(LAGS - LEAD) <= DOUBTFUL_LAG])
        facts |= {
            "sync_z": float((peak - null.mean()) / null.std()),
            "sync_lag_z": float((peak - in_sync) / null.std()),
        }
    return facts


def sync_curve(
    speech: Real[np.ndarray, "T 16 C"],
    opening: Float[np.ndarray, "T"],
    valid: Bool[np.ndarray, "T"],
) -> Float[np.ndarray, "L"]:
    """Correlate the mouth opening with its prediction from the audio, at each lag in `LAGS`.

    The prediction is a ridge regression evaluated on stretches of the clip that it was not fitted
    to. Arguments as in `sync_facts`; nan where too few frames are left.
    """
    return _lag_curve(_components(speech), opening, valid)


def null_correlations(
    features: Float[np.ndarray, "T C"],
    opening: Float[np.ndarray, "T"],
    valid: Bool[np.ndarray, "T"],
) -> Float[np.ndarray, "S"]:
    """Return the correlations after circular audio shifts that exceed the largest lag by 1 s."""
    frames = len(opening)
    first = LAGS[-1] + NULL_MARGIN
    shifts = np.unique(np.linspace(first, frames - first, NULL_SHIFTS).astype(int))
    if frames < 2 * first + 2 or int(valid.sum()) < MIN_SYNC_FRAMES:
        return np.empty(0)
    return np.array(
        [_held_out_correlation(np.roll(features, s, axis=0)[valid], opening[valid]) for s in shifts]
    )


def peak_lag(curve: Float[np.ndarray, "L"]) -> tuple[float, float]:
    """Return the lag of the audio in frames, and the correlation there, of a `sync_curve`.

    The lag is the center of the upper half of the peak, minus the natural lag of audio.
    """
    best = int(np.nanargmax(curve))
    floor = curve[best] - 0.5 * (curve[best] - np.nanmedian(curve))
    above = np.nan_to_num(curve - floor, nan=-1.0) > 0
    first = best - int(np.argmin(np.append(above[best::-1], False))) + 1
    last = best + int(np.argmin(np.append(above[best:], False)))
    peak = slice(first, last)
    height = curve[peak] - floor
    center = (height * LAGS[peak]).sum() / height.sum() if height.any() else LAGS[best]
    return float(center - LEAD), float(curve[best])


def assess(facts: dict[str, Any], limits: Limits) -> Assessment:
    """Compare the facts of a dataset (`talker.measure.quality`) with the limits.

    A fact that is missing or None was not measured and is ignored.
    """
    failures = [*_tracking_failures(facts, limits), *_sound_failures(facts, limits)]
    return Assessment(failures, list(_warnings(facts, limits)))


def background_change(
    images: Iterable[np.ndarray], masks: Iterable[np.ndarray], plate: UInt8[np.ndarray, "H W 3"]
) -> float:
    """Return the percentage of the background that differs from the plate, median over frames.

    Args:
        images: RGB uint8 [H, W, 3].
        masks: their classes uint8 [H, W].
        plate: RGB uint8 [H, W, 3].
    """
    size = 2 * round(max(plate.shape) * CLEARANCE / 512) + 1
    percentages = []
    for image, mask in zip(images, masks, strict=True):
        person = cv2.dilate((mask != BACKGROUND).astype(np.uint8), np.ones((size, size)))
        difference = cv2.absdiff(cv2.blur(image, (3, 3)), cv2.blur(plate, (3, 3))).max(axis=-1)
        if not person.all():
            changed = difference[person == 0] > CHANGED_LEVELS
            percentages.append(100.0 * float(changed.mean()))
    return float(np.median(percentages)) if percentages else 0.0


def _components(speech: np.ndarray) -> np.ndarray:
    """Return principal components [T, F] of the steps around the center of each window."""
    middle = speech.shape[1] // 2
    slots = speech[:, middle - SLOTS // 2 : middle + SLOTS // 2].reshape(len(speech), -1)
    slots = slots.astype(float) - slots.mean(axis=0)
    return pca(slots, COMPONENTS)[0]


def _lag_curve(features: np.ndarray, opening: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the correlation at each lag in `LAGS`; see `sync_curve`."""
    return np.array([_shifted_correlation(features, opening, valid, lag) for lag in LAGS.tolist()])


def _shifted_correlation(
    features: np.ndarray, opening: np.ndarray, valid: np.ndarray, lag: int
) -> float:
    frames = np.arange(len(opening))
    audio = frames + lag
    both = valid & (audio >= 0) & (audio < len(frames))
    if both.sum() < MIN_SYNC_FRAMES:
        return float("nan")
    return _held_out_correlation(features[audio[both]], opening[both])


def _held_out_correlation(features: np.ndarray, target: np.ndarray) -> float:
    """Correlate a target [N] with its cross-validated regression on features [N, F]."""
    pairs = []
    for test, train in stretches(len(target), FOLDS, GAP):
        x, y = features[train], target[train, None]
        strength = DAMPING * len(x) * x.var(axis=0).max()
        predicted = fit_ridge(x, y, strength).predict(features[test])[:, 0]
        true = target[test]
        pairs.append((predicted - predicted.mean(), true - true.mean()))
    predicted, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
    scale = np.linalg.norm(predicted) * np.linalg.norm(true)
    return float(predicted @ true / scale) if scale > 0 else 0.0


def _beyond(
    facts: dict[str, Any], name: str, limit: float, reason: str, advice: str
) -> Iterator[str]:
    """Yield a sentence if a fact exceeds its limit."""
    value = facts.get(name)
    lower = name in AT_LEAST
    if value is not None and (value < limit if lower else value > limit):
        side = "at least" if lower else "at most"
        yield f"{reason.format(value)} (limit: {side} {limit:.3g}). {advice}"


def _tracking_failures(facts: dict[str, Any], limits: Limits) -> Iterator[str]:
    rejected = ", ".join(
        f"{reason} ({counted(count, 'frame')})" for reason, count in facts["rejected"].items()
    )
    yield from _beyond(
        facts,
        *("valid_percent", limits.min_valid),
        "The head was tracked in only {:.0f} % of the frames. The other frames were "
        f"rejected for these reasons: {rejected}",
        "Use a clip, or a part of one, in which one person faces the camera all the time.",
    )
    yield from _beyond(
        facts,
        *("usable_seconds", limits.min_seconds),
        "Only {:.1f} s of the clip are tracked",
        "Use a longer clip without cuts, or use every shot with `track: {all_segments: true}`.",
    )
    yield from _beyond(
        facts,
        *("held_out_frames", limits.min_held_out),
        "Too few frames are tracked in the held-out part, at the end of the clip: {}",
        "Cut the video so that the face is visible up to its end.",
    )
    yield from _beyond(
        facts,
        *("residual_percent_of_face", limits.max_residual),
        "The tracked head deviates from the landmarks by {:.2f} % of the face width",
        "Look at track_overlay.mp4, which shows the tracked head, and use a sharper, "
        "well-lit clip of one person.",
    )
    for step, limit in ((1, limits.max_c1), (5, limits.max_c5)):
        yield from _beyond(
            facts,
            *(f"c{step}_px_at_250", limit),
            f"The tracked head jitters. Over {counted(step, 'frame')}, its motion differs from "
            "that of the image by {:.2f} px",
            "Look at track_overlay.mp4, which shows the tracked head, and use a clip "
            "without motion blur or strong compression.",
        )
    yield from _beyond(
        facts,
        *("worst_shot_ratio", limits.max_person),
        "In one shot, the tracked head deviates {:.1f} times more from the landmarks than "
        "in the best shot, so it may show a different person",
        "Cut the clip to a single shot, or use a video of one person.",
    )
    yield from _beyond(
        facts,
        *("rival_percent", limits.max_rival),
        "Another face of at least half the size is visible in {:.0f} % of the frames",
        "Crop the video so that it shows only one person.",
    )
    yield from _beyond(
        facts,
        *("background_change_percent", limits.max_background),
        "The background changes in {:.0f} % of its pixels",
        "Use a clip from a fixed camera with a background that does not move.",
    )


def _sound_failures(facts: dict[str, Any], limits: Limits) -> Iterator[str]:
    yield from _beyond(
        facts,
        *("mouth_range", limits.min_mouth),
        "The mouth hardly moves. Its opening changes by only {:.3f} times the distance between "
        "the outer eye corners",
        "Use a clip in which the person speaks.",
    )
    yield from _beyond(
        facts,
        *("level_range_db", STEADY_RANGE),
        "The audio does not sound like speech. Its level varies by only {:.1f} dB",
        "Use a clip in which the person speaks.",
    )
    correlation, z = facts.get("sync_correlation"), facts.get("sync_z")
    if correlation is None or z is None:
        return
    unrelated = z < SURE_Z or correlation < limits.min_sync
    if unrelated and facts["sync_frames"] >= _certain_frames(facts):
        yield (
            "The mouth does not move with the audio. The correlation between the mouth opening "
            f"and its prediction from the audio is {correlation:.2f} (required: "
            f"{limits.min_sync:g}), which is {z:.1f} standard deviations above chance (required: "
            f"{SURE_Z:g}). Use a clip without music, in which the speaker is visible."
        )
    elif _lag_is_sure(facts) and abs(facts["sync_lag_frames"]) > limits.max_lag:
        lag = facts["sync_lag_frames"]
        side = "lags" if lag > 0 else "leads"
        yield (
            f"The audio {side} the video by {abs(lag):.1f} frames (limit: "
            f"{limits.max_lag:g}). To correct it, {_shift(lag)}. If `lag_frames` is already set, "
            f"add {round(lag)} to its value."
        )


def _shift(lag: float) -> str:
    """Return the option that corrects a lag of the audio, in frames."""
    return f"set `audio: {{lag_frames: {round(lag)}}}`"


def _warnings(facts: dict[str, Any], limits: Limits) -> Iterator[str]:
    yaw = facts.get("yaw_range_degrees")
    if yaw is not None and yaw < SMALL_YAW_RANGE:
        yield f"The head turns by only {yaw:.1f} degrees, so views from the side will look wrong."
    if facts.get("focal_at_bound"):
        yield (
            "The estimated focal length is at a bound of the allowed range. If you know "
            "the focal length, set `track: {focal_px: ...}`."
        )
    seconds = facts.get("usable_seconds", SHORT_SECONDS)
    if seconds < SHORT_SECONDS:
        yield (
            f"Only {seconds:.1f} s of the clip are tracked. The mouth of the avatar will hardly "
            "follow the speech; use a clip of at least one minute if you can."
        )
    if facts.get("cut_by_border"):
        yield (
            f"The border of the image cuts off the face in "
            f"{counted(facts['cut_by_border'], 'frame')}. The missing part of the face cannot be "
            "rendered."
        )
    if facts["blinks"] == 0:
        yield "No blink was detected, so the avatar cannot learn to close its eyes."
    correlation, z = facts.get("sync_correlation"), facts.get("sync_z")
    if correlation is None:
        if "sync_correlation" in facts:
            yield (
                "The clip is too short to verify that the mouth moves with the audio. Watch the "
                "clip, and check that the lips match the sound."
            )
        return
    if z is None or (z < SURE_Z and facts["sync_frames"] < _certain_frames(facts)):
        yield (
            "The clip is too short to verify that the mouth moves with the audio (correlation: "
            f"{correlation:.2f}). Watch the clip, and check that the lips match the sound."
        )
        return
    lag = facts["sync_lag_frames"]
    if z >= SURE_Z and abs(lag) > DOUBTFUL_LAG:
        side = "lag" if lag > 0 else "lead"
        if not _lag_is_sure(facts):
            yield (
                f"The audio may {side} the video by {abs(lag):.1f} frames. Watch the clip. If the "
                f"lips do not match the sound, {_shift(lag)}."
            )
        elif abs(lag) <= limits.max_lag:
            yield (
                f"The audio seems to {side} the video by {abs(lag):.1f} frames, which is "
                "within the limit. Watch the clip. If the lips visibly do not match the sound, "
                f"{_shift(lag)}."
            )


def _certain_frames(facts: dict[str, Any]) -> int:
    """Return the number of frames from which a missing correlation is a reason to refuse."""
    in_sync = abs(facts["sync_lag_frames"]) <= DOUBTFUL_LAG and not facts.get("sync_lag_z")
    likely = in_sync and facts["sync_z"] >= LIKELY_Z
    return CERTAIN_FRAMES if likely else MIN_REFUSAL_FRAMES


def _lag_is_sure(facts: dict[str, Any]) -> bool:
    return facts["sync_z"] >= SURE_Z and (facts.get("sync_lag_z") or 0.0) >= LAG_MARGIN
