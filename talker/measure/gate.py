"""Decide whether a prepared clip can give a good avatar: limits, reasons and advice.

A lost face, a jittering head or the audio of somebody else is found here in seconds instead of
after training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from talker.clip import FPS, IN_SYNC
from talker.core.config import AtLeast0, Fraction, NonNegative, Positive, validated
from talker.errors import counted

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
    """Maximum difference between the motion of the tracked head and the motion seen in the image,
    from one frame to the next, in pixels for a face that is 250 pixels wide."""
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
    """Maximum number of frames by which the audio may lag behind the video or run ahead of it.
    In clips that are in sync, the measured lag is between -1 frame (the audio is ahead of the
    video) and 2 frames (the audio is behind the video)."""
    max_background: NonNegative = 15.0
    """Maximum percentage of the background that differs from the plate (median over frames)."""


@dataclass(frozen=True)
class Assessment:
    """Reasons to refuse a clip, and warnings."""

    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def assess(facts: dict[str, Any], limits: Limits) -> Assessment:
    """Compare the facts of a dataset (`talker.measure.quality`) with the limits.

    A fact that is missing or None was not measured and is ignored.
    """
    failures = [*_tracking_failures(facts, limits), *_sound_failures(facts, limits)]
    return Assessment(failures, list(_warnings(facts, limits)))


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
        "Use a longer clip without cuts, or use every shot with `shots: {all_segments: true}`.",
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
            "the focal length, set `fit: {focal_px: ...}`."
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
    if z >= SURE_Z and abs(lag) > IN_SYNC:
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
    in_sync = abs(facts["sync_lag_frames"]) <= IN_SYNC and not facts.get("sync_lag_z")
    likely = in_sync and facts["sync_z"] >= LIKELY_Z
    return CERTAIN_FRAMES if likely else MIN_REFUSAL_FRAMES


def _lag_is_sure(facts: dict[str, Any]) -> bool:
    return facts["sync_z"] >= SURE_Z and (facts.get("sync_lag_z") or 0.0) >= LAG_MARGIN
