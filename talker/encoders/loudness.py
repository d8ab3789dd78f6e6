"""Loudness and pauses of speech: levels of 20 ms steps in dB below full scale."""

import numpy as np
from jaxtyping import Bool, Float, Real

from talker.clip import SAMPLE_RATE, SLOT, SLOT_RATE, runs
from talker.media.audio import Waveform

FLOOR = -100.0
"""Level of digital silence in dBFS."""
ABSOLUTE_GATE = -70.0
"""Level in dBFS below which time steps do not count toward the loudness (ITU-R BS.1770)."""
RELATIVE_GATE = -10.0
"""Level in dB, relative to the mean, below which time steps do not count (ITU-R BS.1770)."""
FAINT = -45.0
"""Level in dBFS below which steady audio counts as noise and not as speech."""
STEADY = 10.0
"""Range in dB of the levels of audio below which it counts as steady."""
MAX_GAIN = 20.0
"""Largest change of the loudness of new speech, in dB."""
ABOVE_NOISE = 6.0
"""Level of a pause in dB above the noise floor."""
BELOW_SPEECH = -35.0, -20.0
"""Lower and upper bound of the level of a pause, in dB relative to the speech."""
MARGIN = 4
"""Time steps between speech and the pause next to it, since lips move before speech is audible."""
FADE = 4
"""Time steps over which a pause fades in and out."""
READ = 60 * SAMPLE_RATE
"""Samples that are read at a time: one minute."""


def slot_levels(sound: Waveform) -> Float[np.ndarray, "K"]:
    """Return the level of each step, float32 [S // 320] in dBFS, of audio int16 [S]."""
    levels = []
    for start in range(0, len(sound) // SLOT * SLOT, READ):
        part = sound[start : start + READ]
        part = part[: len(part) // SLOT * SLOT].astype(np.float32).reshape(-1, SLOT) / 32768
        power = np.square(part).mean(1)
        levels.append(10 * np.log10(np.maximum(power, 10 ** (FLOOR / 10))))
    return np.concatenate(levels or [np.empty(0)]).astype(np.float32)


def speech_level(levels: Float[np.ndarray, "K"]) -> float:
    """Return the loudness of speech with levels [K], in dBFS: the mean power of its louder steps.

    It is nan if there is no speech: only silence, or faint and steady noise.
    """
    loud = levels[levels > ABSOLUTE_GATE]
    if not loud.size:
        return float("nan")
    loud = loud[loud > _mean(loud) + RELATIVE_GATE]
    level = _mean(loud)
    steady = level - np.quantile(levels, 0.05) < STEADY
    return float("nan") if level < FAINT and steady else level


def gain_between(level: float, target: float) -> float:
    """Return the factor that brings `level` to `target`, at most 20 dB; 1 if either is nan."""
    difference = np.clip(target - level, -MAX_GAIN, MAX_GAIN)
    return float(10 ** (difference / 20)) if np.isfinite(difference) else 1.0


def pauses(levels: Float[np.ndarray, "K"], shortest: float) -> Real[np.ndarray, "K"]:
    """Detect the pauses of speech: float32 [K], 0 in speech, 1 in silence.

    Args:
        levels: levels [K] of the steps in dBFS, as `slot_levels` returns them.
        shortest: shortest pause in seconds; shorter gaps belong to the speech, because lips close
            for p, b and m.
    """
    speech = speech_level(levels)
    if np.isnan(speech):
        return np.ones(len(levels), np.float32)
    noise = np.quantile(levels, 0.05)
    low, high = (speech + limit for limit in BELOW_SPEECH)
    threshold = np.clip(noise + ABOVE_NOISE, low, high)
    return silence_of(levels < threshold, shortest)


def silence_of(quiet: Bool[np.ndarray, "K"], shortest: float) -> Real[np.ndarray, "K"]:
    """Return 1 in runs of true entries of at least `shortest` seconds, float32 [K]."""
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
