"""Grade an avatar by its margins over the control renderings and their uncertainty.

An avatar works if its mouth follows the speech better than chance, than a frozen mouth and than the
audio of other parts of the clip. All three are computed from the curves of the held-out part, whose
neighboring frames are not independent. The interval of the correlation is therefore computed from
the effective number of frames (Bartlett, 1935), and those of the two margins by a moving-block
bootstrap over time (Künsch, 1989).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from talker.clip import FPS, MIN_HELD_OUT_CLIP, runs
from talker.errors import counted
from talker.measure.metrics import correlation

LONGER = (
    "Use a longer clip (a minute or more) with clear audio, and read the warnings about the clip "
    "in the report."
)
Grade = Literal["good", "usable", "failed", "too short to tell"]

MIN_FRAMES = 2 * FPS
"""Number of held-out frames below which the mouth is not graded."""
MIN_AMPLITUDE_FRAMES = 8
"""Number of held-out frames from which a mouth that hardly moves can be detected."""
BLOCK = FPS // 2
"""Length of the bootstrap's blocks in frames: the mouth opening is nearly independent after half a
second."""
RESAMPLES = 400
"""Number of bootstrap resamples."""
CONFIDENCE = 0.9
"""Coverage of the two-sided intervals."""
QUANTILE = 1.645
"""Quantile of the standard normal distribution at the upper end of such an interval."""
CONTROLS = {
    "correlation": "chance",
    "over_shuffled": "shuffled audio",
    "over_frozen": "a frozen mouth",
}
"""Intervals that must be above 0, and the control that the avatar then outperforms."""
GOOD_CORRELATION = 0.5
"""Correlation of the mouth opening from which an avatar can be called good."""
GOOD_LOWEST = 0.25
"""Lower end of the correlation's interval from which an avatar can be called good."""
GOOD_AMPLITUDE = (0.6, 1.4)
"""Range of the mouth's amplitude relative to the real one in a good avatar."""
MIN_AMPLITUDE = 0.3
"""Amplitude below which the mouth hardly moves."""
STILL_AMPLITUDE = 0.15
"""Amplitude below which the mouth counts as not moving, even in a short clip."""
SMALL_AMPLITUDE = 0.5
"""Amplitude below which a mouth that stays open in silence does not follow the speech."""
OPEN_IN_SILENCE = 0.7
"""Mouth opening in silence, relative to that in speech, from which the mouth stays open."""
MAX_SCALE = 2.0
"""Largest factor by which the advice scales the mouth's motion up or down."""
BLINK_DEPTH = 0.5
"""Eye aspect ratio, relative to its median, below which the real eyes blink."""
BLINK_REACH = 3
"""Number of frames around a blink in which the eyes of the avatar may close."""
MIN_CLOSING = 0.5
"""Smallest acceptable closing of the avatar's eyes in a blink, relative to the real closing."""
MAX_LAG = 2
"""Largest lag of the mouth in frames in a good avatar."""
MAX_LOST = 0.1
"""Largest fraction of frames without a detected face."""


@dataclass(frozen=True)
class Verdict:
    """Whether an avatar works, and why."""

    grade: Grade
    reasons: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """confidence intervals of the correlation, of its margins over both controls, and, if the clip
    has blinks, of the closing of the eyes in a blink relative to the real closing"""

    @property
    def text(self) -> str:
        """Return the verdict as one paragraph."""
        return " ".join([f"Verdict: {self.grade}.", *self.reasons, *self.advice])

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "grade": self.grade,
            "text": self.text,
            "reasons": self.reasons,
            "advice": self.advice,
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "confidence": CONFIDENCE,
        }


def grade_avatar(results: Mapping[str, Any]) -> Verdict:
    """Grade the content of metrics.json (`talker.measure.heldout.evaluate_held_out`)."""
    row, mouth = results["held_out"], results["curves"]["mouth_opening"]
    real, avatar = (np.asarray(mouth[name], float) for name in ("real", "avatar"))
    frames = int((np.isfinite(real) & np.isfinite(avatar)).sum())
    if row["faces_lost"] > MAX_LOST * row["frames"]:
        return Verdict(
            "failed",
            [f"No face was detected in {row['faces_lost']} of {row['frames']} rendered frames."],
            ["Look at the video. If it shows no face, train longer or use a sharper clip."],
        )
    frozen = np.asarray(mouth["frozen_mouth"], float)
    if MIN_AMPLITUDE_FRAMES <= frames < MIN_FRAMES:
        noise = float(np.nanstd(frozen) / np.nanstd(real))
        open_in_silence = results.get("responses", {}).get("silence_opening", 0.0)
        if reason := _why_not_moving(row["mouth_std_ratio"], noise, open_in_silence):
            return Verdict("failed", [f"The mouth does not follow the speech{reason}"], [LONGER])
    if frames < MIN_FRAMES:
        return Verdict(
            "too short to tell",
            [
                f"Too few held-out frames show how the mouth moves: {frames} ({frames / FPS:.1f} "
                f"s). At least {MIN_FRAMES} are needed."
            ],
            [
                f"Use a clip of at least {MIN_HELD_OUT_CLIP // FPS} s to get a verdict. A "
                "minute or more works best."
            ],
        )
    shuffled = [np.asarray(curve, float) for curve in mouth["shuffled_audio"]]
    intervals = _intervals(real, avatar, frozen, shuffled)
    eyes = results["curves"].get("eye_opening")
    if eyes is not None:
        closing = blink_closing(*(np.asarray(eyes[name], float) for name in ("real", "avatar")))
        if closing is not None:
            intervals["eye_closing"] = closing
    return _grade(row, frames, intervals)


def _why_not_moving(amplitude: float, noise: float, open_in_silence: float) -> str | None:
    """Return why the mouth of a short clip fails, as the end of a sentence; None if it may move.

    Args:
        amplitude: amplitude of the mouth relative to the real one.
        noise: the same of a frozen mouth, which only detector noise moves.
        open_in_silence: mouth opening in silence, relative to that in speech.
    """
    percent = f"{100 * amplitude:.0f} %"
    if amplitude < STILL_AMPLITUDE:
        return f", because it hardly moves ({percent} of the real amplitude)."
    if amplitude <= noise < SMALL_AMPLITUDE:
        return (
            ": its measured motion is not larger than the noise on a frozen mouth "
            f"({percent} of the real amplitude)."
        )
    if amplitude < SMALL_AMPLITUDE and open_in_silence > OPEN_IN_SILENCE:
        return f": it stays open in silence, and it moves only {percent} as much as the real mouth."
    return None


def blink_closing(real: np.ndarray, avatar: np.ndarray) -> tuple[float, float] | None:
    """Return the interval of how far the avatar's eyes close in a blink.

    A value of 1 means that they close as far as the real eyes, and 0 means that the avatar does not
    blink. The uncertainty is that of the eye aspect ratio outside of the blinks.

    Args:
        real: eye aspect ratios of the real frames [N], nan where unknown.
        avatar: the same of the avatar.

    Returns:
        None if there are no real blinks.
    """
    if not np.isfinite(real).any() or not np.isfinite(avatar).any():
        return None
    blinking = np.nan_to_num(real, nan=np.inf) < BLINK_DEPTH * np.nanmedian(real)
    starts, ends = runs(blinking)
    drops, outside = [], np.ones(len(real), bool)
    for start, end in zip(starts, ends, strict=True):
        around = slice(max(start - BLINK_REACH, 0), end + BLINK_REACH)
        outside[around] = False
        if np.isfinite(avatar[around]).any():
            drops.append([np.nanmin(curve[around]) for curve in (real, avatar)])
    resting = avatar[outside & np.isfinite(avatar)]
    if not drops or not len(resting):
        return None
    open_eyes = np.array([np.nanmedian(real), np.median(resting)])
    depth, closing = (open_eyes - np.array(drops)).mean(0)
    error = QUANTILE * resting.std() / math.sqrt(len(drops))
    low, high = (closing + np.array([-error, error])) / depth
    return round(float(low), 3), round(float(high), 3)


def _grade(
    row: Mapping[str, float], frames: int, intervals: dict[str, tuple[float, float]]
) -> Verdict:
    reasons, advice = [], []
    low, high = intervals["correlation"]
    r = row["mouth_correlation"]
    interval = f"correlation {r:.1f}, likely between {low:.1f} and {high:.1f}"
    amplitude, lag = row["mouth_std_ratio"], row["best_lag_frames"]
    unbeaten = [name for key, name in CONTROLS.items() if intervals[key][0] <= 0]
    if amplitude < MIN_AMPLITUDE:
        reasons.append(f"The mouth hardly moves ({100 * amplitude:.0f} % of the real amplitude).")
    if unbeaten:
        if high < GOOD_CORRELATION or frames >= 4 * MIN_FRAMES or amplitude < MIN_AMPLITUDE:
            reasons.insert(
                0,
                f"The mouth does not follow the speech ({interval}): the result is not better than "
                f"that of {' and '.join(unbeaten)}.",
            )
            advice.append(LONGER)
            return Verdict("failed", reasons, advice, intervals)
        reasons.append(
            f"The number of held-out frames ({frames}) is too small to decide whether the mouth "
            f"follows the speech ({interval})."
        )
        advice.append("Use a longer clip to get a verdict.")
        return Verdict("too short to tell", reasons, advice, intervals)
    if amplitude < MIN_AMPLITUDE:
        advice += ["Use a longer clip.", _scaling_advice(amplitude)]
        return Verdict("failed", reasons, advice, intervals)
    reasons.append(f"The mouth follows the speech ({interval}).")
    flaws = []
    if r < GOOD_CORRELATION:
        flaws.append("The mouth follows the speech only loosely.")
        advice.append("A longer clip makes the mouth more accurate.")
    elif low < GOOD_LOWEST:
        flaws.append(
            f"The {counted(frames, 'held-out frame')} cannot show whether the mouth follows the "
            "speech closely."
        )
        advice.append("Use a longer clip to get a more certain verdict.")
    if not GOOD_AMPLITUDE[0] <= amplitude <= GOOD_AMPLITUDE[1]:
        flaws.append(f"The amplitude of the mouth is {100 * amplitude:.0f} % of the real one.")
        advice.append(_scaling_advice(amplitude))
    low, high = intervals.get("eye_closing", (1.0, 1.0))
    if high < MIN_CLOSING:
        flaws.append(
            f"The eyes hardly close in blinks (between {100 * max(low, 0):.0f} and "
            f"{100 * max(high, 0):.0f} % of the real closing)."
        )
        advice.append("Train longer, or use a clip with more blinks.")
    if abs(lag) > MAX_LAG:
        side = "late" if lag > 0 else "early"
        flaws.append(f"The mouth is {counted(round(abs(lag)), 'frame')} {side}.")
        advice.append(
            "Check whether the audio of the source video is in sync, and correct it with `audio: "
            "{lag_frames: ...}`."
        )
    return Verdict("usable" if flaws else "good", reasons + flaws, advice, intervals)


def _scaling_advice(amplitude: float) -> str:
    """Return how to bring the mouth's motion closer to its real amplitude."""
    scale = 1 / min(max(amplitude, 1 / MAX_SCALE), MAX_SCALE)
    return (
        "To scale the mouth's motion in the videos, write `options: {render: {expression_scale: "
        f"{scale:.1f}}}}}` into a file mine.yaml, and repeat the command with `--configfile "
        "mine.yaml`. The verdict always measures the unscaled motion."
    )


def _intervals(
    real: np.ndarray, avatar: np.ndarray, frozen: np.ndarray, shuffled: list[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Return intervals of the correlation with the real mouth and of its margins."""
    rng = np.random.default_rng(0)
    count = len(real)
    block = min(BLOCK, count)
    samples = []
    for _ in range(RESAMPLES):
        starts = rng.integers(0, count - block + 1, -(-count // block))
        rows = (starts[:, None] + np.arange(block)).ravel()[:count]
        r = correlation(avatar[rows], real[rows])
        controls = [correlation(curve[rows], real[rows]) for curve in shuffled]
        still = correlation(frozen[rows], real[rows])
        samples.append((r - np.nanmean(controls or [0.0]), r - np.nan_to_num(still)))
    tail = 50 * (1 - CONFIDENCE)
    bounds = np.nanpercentile(np.array(samples), [tail, 100 - tail], axis=0)
    bounds = np.column_stack([_correlation_interval(avatar, real), bounds])
    return {
        name: (round(float(low), 3), round(float(high), 3))
        for name, low, high in zip(CONTROLS, *bounds, strict=True)
    }


def _correlation_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the interval of a correlation, by Fisher's z and the effective number of frames."""
    frames = effective_frames(a, b)
    if frames <= 3:
        return -1.0, 1.0
    z = math.atanh(max(-0.999, min(0.999, correlation(a, b))))
    half = QUANTILE / math.sqrt(frames - 3)
    return math.tanh(z - half), math.tanh(z + half)


def effective_frames(a: np.ndarray, b: np.ndarray) -> float:
    """Return the effective number of independent frames of a correlation of two curves [N].

    This is N / (1 + 2 sum_k r_a(k) r_b(k)) with the autocorrelations r at lag k (Bartlett, 1935),
    summed up to a second or a third of the curve.
    """
    both = np.isfinite(a) & np.isfinite(b)
    lags = range(1, min(FPS, both.sum() // 3))
    shared = [correlation(a[:-k], a[k:]) * correlation(b[:-k], b[k:]) for k in lags]
    return float(both.sum() / max(1.0, 1 + 2 * np.nansum(shared)))
