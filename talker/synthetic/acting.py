"""How the synthetic subject acts: phoneme timings become face unit weights, with blinks, gaze and
head motion on top. Everything is drawn from one seeded generator.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from talker.clip import FPS
from talker.errors import UserError

SMILE = {"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0}
STRETCH = {"mouthStretchLeft": 1.0, "mouthStretchRight": 1.0}
LOWER_DOWN = {"mouthLowerDownLeft": 1.0, "mouthLowerDownRight": 1.0}
UPPER_UP = {"mouthUpperUpLeft": 1.0, "mouthUpperUpRight": 1.0}


def _mix(**parts: float) -> dict[str, float]:
    """Unit weights from short names; a pair of units gets the same weight on both sides."""
    pairs = {"smile": SMILE, "stretch": STRETCH, "lower_down": LOWER_DOWN, "upper_up": UPPER_UP}
    weights: dict[str, float] = {}
    for name, weight in parts.items():
        for unit in pairs.get(name, {name: 1.0}):
            weights[unit] = weight
    return weights


VISEMES = {
    "rest": {},
    "p": _mix(mouthRollLower=0.18, mouthRollUpper=0.18, mouthPressLeft=0.2, mouthPressRight=0.2),
    "f": _mix(jawOpen=0.05, mouthRollLower=0.55, upper_up=0.25),
    "th": _mix(jawOpen=0.12, tongueOut=0.35, lower_down=0.15),
    "t": _mix(jawOpen=0.10, lower_down=0.20, stretch=0.10),
    "k": _mix(jawOpen=0.15, lower_down=0.15),
    "ch": _mix(jawOpen=0.10, mouthFunnel=0.55, mouthPucker=0.20),
    "s": _mix(jawOpen=0.06, stretch=0.22, smile=0.10, lower_down=0.35, upper_up=0.25),
    "r": _mix(jawOpen=0.11, mouthPucker=0.35, mouthFunnel=0.20),
    "a": _mix(jawOpen=0.50, lower_down=0.20, upper_up=0.25),
    "uh": _mix(jawOpen=0.28, lower_down=0.12, upper_up=0.10),
    "e": _mix(jawOpen=0.34, stretch=0.25, smile=0.15, lower_down=0.20, upper_up=0.20),
    "i": _mix(jawOpen=0.15, stretch=0.40, smile=0.25, lower_down=0.30, upper_up=0.25),
    "o": _mix(jawOpen=0.36, mouthFunnel=0.60, mouthPucker=0.15),
    "u": _mix(jawOpen=0.13, mouthPucker=0.75, mouthFunnel=0.25),
}
# espeak-ng's phoneme names; a diphthong is a path through two visemes.
PHONEMES = {
    "rest": "_ _: _!",
    "p": "p b m",
    "f": "f v",
    "th": "T D",
    "t": "t d n l t# ; j",
    "k": "k g N h",
    "ch": "tS dZ S Z",
    "s": "s z",
    "r": "r 3 3: r-",
    "a": "a aa A: A@ A",
    "uh": "@ V a# 0 @L @5",
    "e": "E e@",
    "i": "i i: I I# I2 i@ i@3",
    "o": "O: O o@",
    "u": "u: U w u",
    "a i": "aI",
    "a u": "aU",
    "e i": "eI",
    "o u": "oU",
    "o i": "OI",
}
PATHS = {
    phoneme: path.split() for path, phonemes in PHONEMES.items() for phoneme in phonemes.split()
}
STRENGTHS = {"p": 6.0, "f": 4.0, "rest": 1.5, "ch": 2.0, "u": 2.0, "o": 1.5, "s": 1.5}
"""How firmly a viseme resists its neighbours: lips must meet in p, b, m."""

SLOPE = 0.06
"""Seconds over which a long viseme comes and goes; a short one is all slope."""
LEAD = 0.1
"""Seconds that the mouth is ahead of its sound, as people's is (Chandrasekaran et al., PLoS
Computational Biology 2009)."""


@dataclass(frozen=True)
class Sound:
    """One phoneme of the speech, in seconds."""

    phoneme: str
    start: float
    end: float


@dataclass(frozen=True)
class Performance:
    """What the subject does in each of T frames."""

    weights: np.ndarray
    """float32 [T, 52], face units in the order of the head model"""
    blink: np.ndarray
    """float32 [T], 0 open .. 1 closed"""
    head: np.ndarray
    """float64 [T, 4, 4], head to room: y up, z towards the camera, dm; the room's origin is where
    the head's origin rests"""
    torso: np.ndarray
    """float64 [T, 4, 4], the same for the shoulders"""


def read_timings(path: Path) -> list[Sound]:
    """Read the phonemes of a timings file; UserError if it is missing, damaged or has none."""
    try:
        rows = json.loads(path.read_text())["phonemes"]
        sounds = [Sound(r["phoneme"], float(r["start"]), float(r["end"])) for r in rows]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: expected {{"phonemes": [{{"phoneme", "start", "end"}}...]}} ({error!r})'
        ) from error
    unknown = {sound.phoneme for sound in sounds} - PATHS.keys()
    if unknown or not sounds:
        raise UserError(
            f"{path}: expected espeak-ng's English phonemes, found "
            f"{', '.join(sorted(unknown)) or 'none at all'}"
        )
    return sounds


def mouth_weights(sounds: Sequence[Sound], frames: int, units: Sequence[str]) -> np.ndarray:
    """Face unit weights float [frames, E] of speech (dominance model, Cohen and Massaro 1993).

    Each viseme pulls on the mouth with a bell-shaped weight around its phoneme; overlapping bells
    make neighbours blend into each other. Before and after the speech the mouth rests.
    """
    before = Sound("_", min(0.0, sounds[0].start) - 1.0, sounds[0].start)
    after = Sound("_", sounds[-1].end, max(frames / FPS, sounds[-1].end) + 1.0)
    centres, halves, strengths, targets = [], [], [], []
    for sound in (before, *sounds, after):
        path = PATHS[sound.phoneme]
        step = (sound.end - sound.start) / len(path)
        for i, viseme in enumerate(path):
            centres.append(sound.start + (i + 0.5) * step - LEAD)
            halves.append(0.5 * step)
            strengths.append(STRENGTHS.get(viseme, 1.0))
            targets.append([VISEMES[viseme].get(unit, 0.0) for unit in units])
    times = np.arange(frames)[:, None] / FPS
    slope = np.minimum(halves, SLOPE)
    off = np.maximum(np.abs(times - np.array(centres)) - (np.array(halves) - slope), 0)
    reach = np.minimum(off / (slope + 0.02), 20)
    pull = np.array(strengths) * np.exp(-0.5 * reach**2) + 1e-12
    return (pull @ np.array(targets)) / pull.sum(1, keepdims=True)


def _smooth_noise(rng: np.random.Generator, frames: int, seconds: float) -> np.ndarray:
    """A smooth random curve [frames] of unit deviation, kept within +-2."""
    pad = 4 * FPS
    noise = gaussian_filter1d(rng.standard_normal(frames + 2 * pad), seconds * FPS)[pad:-pad]
    unit = 1 / np.sqrt(2 * np.sqrt(np.pi) * seconds * FPS)
    return 2 * np.tanh(noise / unit / 2)


LIDS_MEET = 0.7  # the weight of the blink units that closes the eyes; beyond it the lids overlap
BLINK_SHAPE = np.array([0.35, 0.9, 1.0, 0.8, 0.45, 0.15])


def _blinks(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Lid closure [frames]: a blink every 2 to 5 s; two at least in a clip of 2 s."""
    closure = np.zeros(frames + len(BLINK_SHAPE))
    start = int(rng.uniform(0.4, 0.9) * FPS)
    while start < frames:
        closure[start : start + len(BLINK_SHAPE)] = BLINK_SHAPE
        start += int((rng.uniform(0.6, 1.0) if start < FPS else rng.uniform(2.0, 4.5)) * FPS)
    return closure[:frames]


def _gaze(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the eyes look, [frames] to the subject's left and up: still, with quick jumps."""
    targets = np.zeros((frames, 2))
    start = 0
    while start < frames:
        targets[start:] = rng.normal(0.0, (0.12, 0.06))
        start += int(rng.uniform(0.5, 1.8) * FPS)
    left, up = gaussian_filter1d(targets, 0.6, axis=0).T
    return left, up


def perform(
    sounds: Sequence[Sound], frames: int, units: Sequence[str], pivot: np.ndarray, seed: int
) -> Performance:
    """Act out the speech.

    Args:
        sounds: the phonemes with their times.
        frames: length in frames at 25 fps.
        units: names of the head model's face units.
        pivot: [3], the joint in the neck around which the head turns, in head coordinates.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    weights = mouth_weights(sounds, frames, units)
    blink = _blinks(rng, frames)
    left, up = _gaze(rng, frames)

    def add(unit: str, curve: np.ndarray | float) -> None:
        weights[:, units.index(unit)] += curve

    brows = np.clip(_smooth_noise(rng, frames, 0.35), 0, None)
    frown = np.clip(_smooth_noise(rng, frames, 0.5) - 0.5, 0, None)
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        add(f"eyeBlink{side}", LIDS_MEET * blink)
        add(f"eyeLookUp{side}", np.clip(up, 0, None))
        add(f"eyeLookDown{side}", np.clip(-up, 0, None))
        add(f"eyeLookOut{side}", np.clip(sign * left, 0, None))
        add(f"eyeLookIn{side}", np.clip(-sign * left, 0, None))
        add(f"browOuterUp{side}", 0.15 * brows)
        add(f"browDown{side}", 0.15 * frown)
        add(f"mouthSmile{side}", 0.08 + 0.04 * _smooth_noise(rng, frames, 0.8))
    add("browInnerUp", 0.25 * brows)
    np.clip(weights, 0, 1, out=weights)

    nod = gaussian_filter1d(weights[:, units.index("jawOpen")], 0.12 * FPS)
    pitch = 2.2 * _smooth_noise(rng, frames, 0.45) + 6.0 * (nod - nod.mean())
    yaw = 5.5 * _smooth_noise(rng, frames, 0.7)
    roll = 1.6 * _smooth_noise(rng, frames, 0.6)
    head = _turned(np.stack([pitch, yaw, roll], 1), pivot)
    head[:, :3, 3] += np.stack([_smooth_noise(rng, frames, 0.8) for _ in range(3)], 1) * 0.04
    still = 0.2 * np.stack([_smooth_noise(rng, frames, 1.2) for _ in range(3)], 1)
    torso = _turned(still, pivot + np.array([0.0, -2.0, 0.0]))
    torso[:, 1, 3] += 0.01 * np.sin(2 * np.pi * np.arange(frames) / (3.6 * FPS))
    return Performance(weights.astype(np.float32), blink.astype(np.float32), head, torso)


def _turned(degrees: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Rigid matrices [T, 4, 4] that turn by (pitch, yaw, roll) [T, 3] around `pivot`."""
    matrices = np.tile(np.eye(4), (len(degrees), 1, 1))
    matrices[:, :3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrices[:, :3, 3] = pivot - matrices[:, :3, :3] @ pivot
    return matrices
