"""How loud speech is, and where it pauses: levels of 20 ms slots in dB below full scale."""

import numpy as np

from talker.clip import SAMPLE_RATE, runs
from talker.media.audio import Waveform

SLOT_RATE = 50  # slots a second
SLOT = SAMPLE_RATE // SLOT_RATE
FLOOR = -100.0
"""dBFS of digital silence"""
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0
"""dB; slots below are no part of the loudness (the gates of ITU-R BS.1770)"""
FAINT, STEADY = -45.0, 10.0
"""Sound that is both below this level in dBFS and within this range in dB holds no speech."""
MOST_GAIN = 20.0
"""dB"""
ABOVE_NOISE = 6.0
BELOW_SPEECH = -35.0, -20.0
"""A pause is less than 6 dB above the noise, which is taken to lie this far below the speech."""
MARGIN, FADE = 4, 4
"""slots between a sound and the pause around it: lips move before they are heard"""
READ = 60 * SAMPLE_RATE


def slot_levels(sound: Waveform) -> np.ndarray:
    """Level of each slot of int16 [S] samples (an array or a file): float32 [S // 320], dBFS."""
    levels = []
    for start in range(0, len(sound) // SLOT * SLOT, READ):
        part = sound[start : start + READ]
        part = part[: len(part) // SLOT * SLOT].astype(np.float32).reshape(-1, SLOT) / 32768
        power = np.square(part).mean(1)
        levels.append(10 * np.log10(np.maximum(power, 10 ** (FLOOR / 10))))
    return np.concatenate(levels or [np.empty(0)]).astype(np.float32)


def speech_level(levels: np.ndarray) -> float:
    """Loudness of the speech in levels [K]: the mean power of its louder slots, dBFS.

    nan where there is no speech: nothing but silence, or faint, steady noise.
    """
    loud = levels[levels > ABSOLUTE_GATE]
    if not loud.size:
        return float("nan")
    loud = loud[loud > _mean(loud) + RELATIVE_GATE]
    level = _mean(loud)
    steady = level - np.quantile(levels, 0.05) < STEADY
    return float("nan") if level < FAINT and steady else level


def gain_between(level: float, wanted: float) -> float:
    """The factor that brings `level` to `wanted`, at most 20 dB; 1 where either is unknown."""
    difference = np.clip(wanted - level, -MOST_GAIN, MOST_GAIN)
    return float(10 ** (difference / 20)) if np.isfinite(difference) else 1.0


def pauses(levels: np.ndarray, shortest: float) -> np.ndarray:
    """Where speech pauses: levels [K] -> float32 [K], 0 speech .. 1 silence.

    Args:
        levels: of `slot_levels`.
        shortest: seconds; shorter gaps belong to the speech (lips close for p, b and m).
    """
    speech = speech_level(levels)
    if np.isnan(speech):
        return np.ones(len(levels), np.float32)
    noise = np.quantile(levels, 0.05)
    low, high = (speech + limit for limit in BELOW_SPEECH)
    threshold = np.clip(noise + ABOVE_NOISE, low, high)
    return silence_of(levels < threshold, shortest)


def silence_of(quiet: np.ndarray, shortest: float) -> np.ndarray:
    """Fade in and out of the runs of bool [K] that last `shortest` seconds: float32 [K], 0..1."""
    silent = np.zeros(len(quiet), np.float32)
    for start, end in zip(*runs(quiet), strict=True):
        if end - start < shortest * SLOT_RATE:
            continue
        k = np.arange(start, end)
        after = k - start + 1 if start else np.full(len(k), len(quiet))
        before = end - k if end < len(quiet) else np.full(len(k), len(quiet))
        silent[start:end] = np.clip((np.minimum(after, before) - MARGIN) / FADE, 0, 1)
    return silent


def _mean(levels: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(10 ** (levels.astype(np.float64) / 10))))
