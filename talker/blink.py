"""Measure how far the eyes are closed in every frame, as OpenFace's AU45 would.

The eye aspect ratio is scaled by the subject's own open and closed eyes, because it differs from
person to person.
`talker blink --clip clip.json --landmarks landmarks.npz --au au.csv`
"""

import logging
from pathlib import Path

import numpy as np

from talker.clip import FPS, Clip, load_per_frame
from talker.core.config import validated
from talker.core.files import Output, replacing
from talker.head.landmarks68 import eye_aspect_ratio, landmarks68

logger = logging.getLogger(__name__)

CLOSED_AU45 = 5.0
HEADER = "frame, timestamp, confidence, success, AU45_r"


@validated
class Config:
    open_percentile: float = 75.0
    """percentile of the eye aspect ratio at which the eyes count as open; rejects its noise"""
    closed_percentile: float = 0.5
    """percentile at which they count as closed"""
    closed_ratio: float = 0.25
    """closed eyes have at most this part of the open ratio: without a blink nothing is stretched"""


def au45(points: np.ndarray, valid: np.ndarray, config: Config) -> np.ndarray:
    """Eye closure float64 [T], 0 (open) .. 5 (closed), of meshes [T, 478, 3].

    Frames that are not `valid` [T] get a line between their neighbours.
    """
    ratio = eye_aspect_ratio(landmarks68(points.astype(np.float64)))
    frames = np.arange(len(ratio))
    ratio = np.interp(frames, frames[valid], ratio[valid])
    opened = np.percentile(ratio[valid], config.open_percentile)
    closed = np.percentile(ratio[valid], config.closed_percentile)
    closed = min(closed, config.closed_ratio * opened)
    return CLOSED_AU45 * np.clip((opened - ratio) / (opened - closed), 0, 1)


def main(*, clip: Path, landmarks: Path, au: Output, config: Config = Config()) -> None:
    """Write the eye closure of every frame as OpenFace's csv.

    Args:
        clip: clip.json of the dataset.
        landmarks: the mesh points, per frame.
        au: csv to write, with the column " AU45_r" (0..5).
        config: options.
    """
    meshes = load_per_frame(landmarks, Clip.load(clip).frames, "points")
    valid = meshes["valid"]
    closure = au45(meshes["points"], valid, config)
    rows = [
        f"{i + 1}, {i / FPS:.2f}, {int(ok):.2f}, {int(ok)}, {value:.3f}"
        for i, (ok, value) in enumerate(zip(valid, closure, strict=True))
    ]
    with replacing(au) as (scratch,):
        scratch.write_text("\n".join([HEADER, *rows]) + "\n")
    half = closure > CLOSED_AU45 / 2
    logger.info("eyes close %d times in %.1f s", (half[1:] > half[:-1]).sum(), len(half) / FPS)
