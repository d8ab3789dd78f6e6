"""Whether a prepared clip can give a good avatar: measures, limits, and what to do beyond them.

Training takes hours of a GPU; a face that was lost, a head that shakes or a sound that belongs to
another mouth is found here in seconds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from talker.clip import FPS
from talker.core.config import validated
from talker.data.masks import BACKGROUND

LAGS = np.arange(-12, 13)
"""Frames by which sound may come after the picture when the two are compared."""

LEAD = 0.5
"""Frames by which sound follows the lips that make it, as this measure sees it: real clips that
are in time lie within a frame of it."""

SLOTS, COMPONENTS, FOLDS, GAP, RIDGE = 4, 48, 5, 12, 0.01
FACE = 250.0
"""Pixels: motion errors are compared as if the face were so wide."""

CHANCE = 5.0
"""Over the root of the frames: a correlation that sound of someone else hardly reaches, at the best
of `LAGS`. Of 36 turned and reversed sounds of 6, 10 and 15 s 11, 3 and 6 % do (0.25 alone: 61, 14
and 6 %)."""

AT_LEAST = {
    "valid_percent",
    "usable_seconds",
    "held_out_frames",
    "mouth_range",
    "sync_correlation",
}
"""Facts whose limit is a lower one."""

LITTLE_TURN, DOUBTFUL_LAG = 5.0, 2.0
"""Degrees and frames that are worth a warning."""

CHANGE, CLEARANCE = 24, 8
"""Grey levels from which a pixel has changed; pixels of a 512-pixel image around the person that
are not looked at."""


@validated
class Limits:
    """Beyond these a clip is refused, unless forced."""

    min_valid: float = 80.0
    """percent of the frames, of the shots that are used, in which the head was tracked"""
    min_seconds: float = 10.0
    """least tracked time"""
    min_held_out: int = 5
    """least tracked frames of the held-out part"""
    max_residual: float = 0.8
    """distance of the tracked head from the landmarks, percent of the face's width (median)"""
    max_c1: float = 0.25
    """error of the head's motion from one frame to the next, pixels of a face 250 pixels wide"""
    max_c5: float = 1.0
    """the same over 5 frames"""
    max_person: float = 1.8
    """residual of the worst shot over that of the best: another person's head does not fit"""
    max_rival: float = 20.0
    """percent of the frames in which another face is more than half as large"""
    min_mouth: float = 0.04
    """range of the mouth's opening (2nd to 98th percentile), distances between the eyes"""
    min_sync: float = 0.25
    """correlation of the mouth's opening with what the sound says of it; shorter clips need more,
    5 / sqrt(frames): 0.32 at 10 s"""
    max_lag: float = 3.0
    """frames by which sound and picture may be apart; clips that are in time measure -1 to 2"""
    sure_lag: float = 0.4
    """correlation from which a lag is believed"""
    max_background: float = 15.0
    """percent of the background that differs from the plate (median of some frames)"""


@dataclass(frozen=True)
class Verdict:
    """What speaks against training with a clip, and what is worth a warning."""

    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def sync_curve(speech: np.ndarray, mouth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """How well the sound foretells the mouth if it came L frames later, for L in `LAGS`: [25].

    Correlation of the opening `mouth` [T] with what ridge regression makes of `speech`
    [T, 16, C] in parts of the clip that it was not fitted to. nan: too few frames.
    """
    middle = speech.shape[1] // 2
    windows = speech[:, middle - SLOTS // 2 : middle + SLOTS // 2].reshape(len(speech), -1)
    windows = windows.astype(float) - windows.mean(axis=0)
    _, vectors = np.linalg.eigh(windows.T @ windows)
    features = windows @ vectors[:, ::-1][:, :COMPONENTS]
    frames = np.arange(len(mouth))
    curve = np.full(len(LAGS), np.nan)
    for row, lag in enumerate(LAGS):
        heard = frames + lag
        both = valid & (heard >= 0) & (heard < len(frames))
        if both.sum() >= FOLDS * 2 * GAP:
            curve[row] = _foretold(features[heard[both]], mouth[both])
    return curve


def _foretold(features: np.ndarray, target: np.ndarray) -> float:
    """Correlation of `target` [N] with its cross-validated regression on `features` [N, D]."""
    count = len(target)
    bounds = np.linspace(0, count, FOLDS + 1).astype(int)
    pairs = []
    for first, last in pairwise(bounds):
        apart = np.r_[0 : max(first - GAP, 0), min(last + GAP, count) : count]
        x, y = features[apart], target[apart]
        centre = x.mean(axis=0)
        x = x - centre
        damping = RIDGE * len(x) * x.var(axis=0).max() * np.eye(x.shape[1])
        weights = np.linalg.solve(x.T @ x + damping, x.T @ (y - y.mean()))
        guess, true = (features[first:last] - centre) @ weights, target[first:last]
        pairs.append((guess - guess.mean(), true - true.mean()))
    guess, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
    scale = np.linalg.norm(guess) * np.linalg.norm(true)
    return float(guess @ true / scale) if scale > 0 else 0.0


def lag_of(curve: np.ndarray) -> tuple[float, float]:
    """Frames by which the sound comes late, and the correlation there, of a `sync_curve`.

    The middle of the peak's upper half, less the natural lead of the lips.
    """
    best = int(np.nanargmax(curve))
    floor = curve[best] - 0.5 * (curve[best] - np.nanmedian(curve))
    above = np.nan_to_num(curve - floor, nan=-1.0) > 0
    first = best - int(np.argmin(np.append(above[best::-1], False))) + 1
    last = best + int(np.argmin(np.append(above[best:], False)))
    peak = slice(first, last)
    height = curve[peak] - floor
    return float((height * LAGS[peak]).sum() / height.sum() - LEAD), float(curve[best])


def judge(facts: dict[str, Any], limits: Limits) -> Verdict:
    """Compare the facts of a dataset (`talker.check.quality`) with the limits.

    A fact that is missing or None was not measured and is not judged.
    """
    return Verdict(list(_failures(facts, limits)), list(_warnings(facts, limits)))


def _failures(facts: dict[str, Any], limits: Limits) -> Iterator[str]:
    def beyond(measure: str, limit: float, reason: str, advice: str) -> Iterator[str]:
        value = facts.get(measure)
        least = measure in AT_LEAST
        if value is not None and (value < limit if least else value > limit):
            side = "least" if least else "most"
            yield f"{reason.format(value)} (limit: at {side} {limit:.3g}); {advice}"

    why = ", ".join(f"{count} times {reason}" for reason, count in facts["rejected"].items())
    yield from beyond(
        "valid_percent",
        limits.min_valid,
        f"the head was tracked in only {{:.0f}} % of the frames: {why}",
        "use a clip, or a part of one, in which one person looks towards the camera throughout",
    )
    yield from beyond(
        "usable_seconds",
        limits.min_seconds,
        "only {:.1f} s of the clip are tracked",
        "use a longer clip without cuts; `track: {all_segments: true}` uses every shot",
    )
    yield from beyond(
        "held_out_frames",
        limits.min_held_out,
        "only {} frames of the held-out last part are tracked",
        "cut the video so that it ends with a good part",
    )
    yield from beyond(
        "residual_percent_of_face",
        limits.max_residual,
        "the tracked head is {:.2f} % of the face's width off the landmarks",
        "look at track_overlay.mp4; use a sharper clip of one person, well lit",
    )
    for step, limit in ((1, limits.max_c1), (5, limits.max_c5)):
        yield from beyond(
            f"c{step}_px_at_250",
            limit,
            f"the head shakes: over {step} frames it moves {{:.2f}} px unlike the picture",
            "look at track_overlay.mp4; use a clip without motion blur or hard compression",
        )
    yield from beyond(
        "worst_shot_ratio",
        limits.max_person,
        "one shot fits the head {:.1f} times as badly as another: it may show someone else",
        "use one shot alone, or a video of one person",
    )
    yield from beyond(
        "rival_percent",
        limits.max_rival,
        "another face, more than half as large, is in view in {:.0f} % of the frames",
        "crop the video to one person",
    )
    yield from beyond(
        "mouth_range",
        limits.min_mouth,
        "the mouth hardly moves: its opening ranges over {:.3f} distances between the eyes",
        "use a clip in which the person speaks",
    )
    yield from beyond(
        "sync_correlation",
        max(limits.min_sync, CHANCE / max(FPS * facts["usable_seconds"], 1) ** 0.5),
        "the sound says nothing about the mouth: correlation {:.2f}",
        "use a clip in which the person in the picture is the one who is heard, without music",
    )
    lag = facts.get("sync_lag_frames")
    if lag is not None and abs(lag) > limits.max_lag and _sure(facts, limits):
        yield (
            f"the sound comes {abs(lag):.1f} frames {'late' if lag > 0 else 'early'} (limit: at "
            f"most {limits.max_lag:g}); add {round(lag)} to `audio: {{lag_frames: ...}}`, which is "
            "0 at first, and it is moved back"
        )
    yield from beyond(
        "background_change_percent",
        limits.max_background,
        "{:.0f} % of the background changes",
        "use a clip from a fixed camera, before a background that does not move",
    )


def _warnings(facts: dict[str, Any], limits: Limits) -> Iterator[str]:
    turn = facts.get("yaw_range_degrees")
    if turn is not None and turn < LITTLE_TURN:
        yield f"the head turns by {turn:.1f} degrees only: expect no good views from the side"
    if facts.get("focal_at_bound"):
        yield "the focal length is at its bound: give `track: {focal_px: ...}` if you know it"
    if facts["blinks"] == 0:
        yield "no blink was seen: the avatar cannot learn to close its eyes"
    lag = facts.get("sync_lag_frames")
    if lag is not None and abs(lag) > DOUBTFUL_LAG:
        late = f"{abs(lag):.1f} frames {'late' if lag > 0 else 'early'}"
        if not _sure(facts, limits):
            yield f"the sound may come {late}: look and listen"
        elif abs(lag) <= limits.max_lag:
            yield f"the sound comes {late}: within the limit, but look and listen"


def _sure(facts: dict[str, Any], limits: Limits) -> bool:
    return facts["sync_correlation"] >= limits.sure_lag


def background_change(
    images: Iterable[np.ndarray], masks: Iterable[np.ndarray], plate: np.ndarray
) -> float:
    """Percent of the background that differs from the plate: median over some frames.

    Args:
        images: RGB uint8 [H, W, 3].
        masks: their classes uint8 [H, W].
        plate: RGB uint8 [H, W, 3].
    """
    reach = 2 * round(max(plate.shape) * CLEARANCE / 512) + 1
    shares = []
    for image, mask in zip(images, masks, strict=True):
        person = cv2.dilate((mask != BACKGROUND).astype(np.uint8), np.ones((reach, reach)))
        off = cv2.absdiff(cv2.blur(image, (3, 3)), cv2.blur(plate, (3, 3))).max(axis=-1)
        if not person.all():
            shares.append(100.0 * float((off[person == 0] > CHANGE).mean()))
    return float(np.median(shares)) if shares else 0.0
