"""Animate the synthetic subject: phoneme timings drive the mouth, with blinks, gaze, brow and head
motion added. All random values come from one seeded generator.
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


def _blend(**parts: float) -> dict[str, float]:
    """Return weights by face unit; the four short names set the left and right units equally."""
    pairs = {"smile": SMILE, "stretch": STRETCH, "lower_down": LOWER_DOWN, "upper_up": UPPER_UP}
    weights: dict[str, float] = {}
    for name, weight in parts.items():
        for unit in pairs.get(name, {name: 1.0}):
            weights[unit] = weight
    return weights


VISEMES: dict[str, dict[str, float]] = {
    "rest": {},
    "p": _blend(mouthRollLower=0.18, mouthRollUpper=0.18, mouthPressLeft=0.2, mouthPressRight=0.2),
    "f": _blend(jawOpen=0.05, mouthRollLower=0.55, upper_up=0.25),
    "th": _blend(jawOpen=0.12, tongueOut=0.35, lower_down=0.15),
    "t": _blend(jawOpen=0.10, lower_down=0.20, stretch=0.10),
    "k": _blend(jawOpen=0.15, lower_down=0.15),
    "ch": _blend(jawOpen=0.10, mouthFunnel=0.55, mouthPucker=0.20),
    "s": _blend(jawOpen=0.06, stretch=0.22, smile=0.10, lower_down=0.35, upper_up=0.25),
    "r": _blend(jawOpen=0.11, mouthPucker=0.35, mouthFunnel=0.20),
    "a": _blend(jawOpen=0.50, lower_down=0.20, upper_up=0.25),
    "uh": _blend(jawOpen=0.28, lower_down=0.12, upper_up=0.10),
    "e": _blend(jawOpen=0.34, stretch=0.25, smile=0.15, lower_down=0.20, upper_up=0.20),
    "i": _blend(jawOpen=0.15, stretch=0.40, smile=0.25, lower_down=0.30, upper_up=0.25),
    "o": _blend(jawOpen=0.36, mouthFunnel=0.60, mouthPucker=0.15),
    "u": _blend(jawOpen=0.13, mouthPucker=0.75, mouthFunnel=0.25),
}
_PHONEMES_BY_PATH = {  # keys: one viseme, or two for a diphthong; values: espeak-ng names
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
VISEME_PATHS = {
    name: path.split() for path, names in _PHONEMES_BY_PATH.items() for name in names.split()
}
"""The visemes that the mouth passes through during each English phoneme of espeak-ng."""
DOMINANCE = {"p": 6.0, "f": 4.0, "rest": 1.5, "ch": 2.0, "u": 2.0, "o": 1.5, "s": 1.5}
"""Dominance of a viseme over its neighbors (default 1): the lips must close for p, b and m."""

RAMP = 0.06
"""Duration in seconds of a viseme's onset and release; shorter visemes have no plateau."""
LIP_LEAD = 0.1
"""Time in seconds by which the lips move ahead of the audio (Chandrasekaran et al., PLoS
Computational Biology 2009)."""


@dataclass(frozen=True)
class Phoneme:
    """One phoneme of the speech and its time span."""

    name: str
    """espeak-ng's name, a key of `VISEME_PATHS`"""
    start: float
    """seconds"""
    end: float
    """seconds"""


@dataclass(frozen=True)
class Motion:
    """The subject's expression and poses in each of T frames."""

    weights: np.ndarray
    """float32 [T, 52], weights of the face units in the head model's order, 0..1"""
    blink: np.ndarray
    """float32 [T], eyelid closure: 0 open, 1 closed"""
    head: np.ndarray
    """float64 [T, 4, 4], head-to-room transforms in dm. The room's y axis points up and its z axis
    towards the camera; its origin is the head's position at rest."""
    torso: np.ndarray
    """float64 [T, 4, 4], the same for the torso"""


def read_timings(path: Path) -> list[Phoneme]:
    """Read a timings file.

    Raises:
        UserError: the file is missing or damaged, lists no phoneme, or lists one without a viseme.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["phonemes"]
        phonemes = [Phoneme(r["phoneme"], float(r["start"]), float(r["end"])) for r in rows]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a timings file ({error!r}). It must contain "
            '{"phonemes": [{"phoneme": NAME, "start": SECONDS, "end": SECONDS}, ...]}.'
        ) from error
    if not phonemes:
        raise UserError(f"{path} lists no phonemes. It must list at least one.")
    unknown = {phoneme.name for phoneme in phonemes} - VISEME_PATHS.keys()
    if unknown:
        raise UserError(
            f"{path} contains phonemes without a viseme: {', '.join(sorted(unknown))}. "
            "Use the names of the English phonemes of espeak-ng."
        )
    return phonemes


def mouth_weights(phonemes: Sequence[Phoneme], frames: int, units: Sequence[str]) -> np.ndarray:
    """Return face unit weights float64 [frames, len(units)] for the speech.

    Dominance model of coarticulation (Cohen and Massaro 1993): each viseme has a bell-shaped weight
    around the time of its phoneme, and the mouth is the weighted mean of all visemes. Before and
    after the speech the mouth is at rest.
    """
    before = Phoneme("_", min(0.0, phonemes[0].start) - 1.0, phonemes[0].start)
    after = Phoneme("_", phonemes[-1].end, max(frames / FPS, phonemes[-1].end) + 1.0)
    centers, halves, dominances, targets = [], [], [], []
    for phoneme in (before, *phonemes, after):
        path = VISEME_PATHS[phoneme.name]
        step = (phoneme.end - phoneme.start) / len(path)
        for i, viseme in enumerate(path):
            centers.append(phoneme.start + (i + 0.5) * step - LIP_LEAD)
            halves.append(0.5 * step)
            dominances.append(DOMINANCE.get(viseme, 1.0))
            targets.append([VISEMES[viseme].get(unit, 0.0) for unit in units])
    times = np.arange(frames)[:, None] / FPS
    ramp = np.minimum(halves, RAMP)
    outside = np.maximum(np.abs(times - np.array(centers)) - (np.array(halves) - ramp), 0)
    distance = np.minimum(outside / (ramp + 0.02), 20)
    weights = np.array(dominances) * np.exp(-0.5 * distance**2) + 1e-12
    return (weights @ np.array(targets)) / weights.sum(1, keepdims=True)


def _smooth_noise(rng: np.random.Generator, frames: int, seconds: float) -> np.ndarray:
    """Return Gaussian-filtered noise [frames] of unit standard deviation, limited to -2..2.

    `seconds` is the standard deviation of the filter.
    """
    pad = 4 * FPS
    noise = gaussian_filter1d(rng.standard_normal(frames + 2 * pad), seconds * FPS)[pad:-pad]
    unit = 1 / np.sqrt(2 * np.sqrt(np.pi) * seconds * FPS)
    return 2 * np.tanh(noise / unit / 2)


LIDS_CLOSED = 0.7
"""Weight of the blink units at which the lids meet; above it they overlap."""
BLINK_SHAPE = np.array([0.35, 0.9, 1.0, 0.8, 0.45, 0.15])
"""Eyelid closure in the frames of one blink."""


def _blinks(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Return the eyelid closure [frames]: two blinks in the first 2 s, then one every 2 to 5 s."""
    closure = np.zeros(frames + len(BLINK_SHAPE))
    start = int(rng.uniform(0.4, 0.9) * FPS)
    while start < frames:
        closure[start : start + len(BLINK_SHAPE)] = BLINK_SHAPE
        start += int((rng.uniform(0.6, 1.0) if start < FPS else rng.uniform(2.0, 4.5)) * FPS)
    return closure[:frames]


def _gaze(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the gaze [frames] to the subject's left and [frames] up: fixations and saccades."""
    targets = np.zeros((frames, 2))
    start = 0
    while start < frames:
        targets[start:] = rng.normal(0.0, (0.12, 0.06))
        start += int(rng.uniform(0.5, 1.8) * FPS)
    left, up = gaussian_filter1d(targets, 0.6, axis=0).T
    return left, up


def animate(
    phonemes: Sequence[Phoneme], frames: int, units: Sequence[str], pivot: np.ndarray, seed: int
) -> Motion:
    """Return the motion of a subject who speaks the given phonemes.

    Args:
        phonemes: at least one, in order of time.
        frames: number of frames at 25 fps.
        units: names of the head model's face units.
        pivot: [3], the joint in the neck around which the head rotates, in head coordinates, dm.
        seed: seed of blinks, gaze, brows and head motion.
    """
    rng = np.random.default_rng(seed)
    weights = mouth_weights(phonemes, frames, units)
    blink = _blinks(rng, frames)
    left, up = _gaze(rng, frames)

    def add(unit: str, curve: np.ndarray | float) -> None:
        weights[:, units.index(unit)] += curve

    brows = np.clip(_smooth_noise(rng, frames, 0.35), 0, None)
    frown = np.clip(_smooth_noise(rng, frames, 0.5) - 0.5, 0, None)
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        add(f"eyeBlink{side}", LIDS_CLOSED * blink)
        add(f"eyeLookUp{side}", np.clip(up, 0, None))
        add(f"eyeLookDown{side}", np.clip(-up, 0, None))
        add(f"eyeLookOut{side}", np.clip(sign * left, 0, None))
        add(f"eyeLookIn{side}", np.clip(-sign * left, 0, None))
        add(f"browOuterUp{side}", 0.4 * brows)
        add(f"browDown{side}", 0.3 * frown)
        add(f"mouthSmile{side}", 0.08 + 0.04 * _smooth_noise(rng, frames, 0.8))
    add("browInnerUp", 0.6 * brows)
    np.clip(weights, 0, 1, out=weights)

    nod = gaussian_filter1d(weights[:, units.index("jawOpen")], 0.12 * FPS)
    pitch = 2.2 * _smooth_noise(rng, frames, 0.45) + 6.0 * (nod - nod.mean())
    yaw = 5.5 * _smooth_noise(rng, frames, 0.7)
    roll = 1.6 * _smooth_noise(rng, frames, 0.6)
    head = _rotations_about(np.stack([pitch, yaw, roll], 1), pivot)
    head[:, :3, 3] += np.stack([_smooth_noise(rng, frames, 0.8) for _ in range(3)], 1) * 0.04
    still = 0.2 * np.stack([_smooth_noise(rng, frames, 1.2) for _ in range(3)], 1)
    torso = _rotations_about(still, pivot + np.array([0.0, -2.0, 0.0]))
    torso[:, 1, 3] += 0.01 * np.sin(2 * np.pi * np.arange(frames) / (3.6 * FPS))
    return Motion(weights.astype(np.float32), blink.astype(np.float32), head, torso)


def _rotations_about(degrees: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Return rigid transforms [T, 4, 4]: (pitch, yaw, roll) [T, 3] about `pivot` [3]."""
    matrices = np.tile(np.eye(4), (len(degrees), 1, 1))
    matrices[:, :3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrices[:, :3, 3] = pivot - matrices[:, :3, :3] @ pivot
    return matrices
