"""Eye closure from the eye aspect ratio of the face mesh.

The ratio is scaled by the subject's own open and closed eyes, because it differs between people.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from talker.clip import Clip
from talker.data.formats import AU45_SATURATION
from talker.head.landmarks68 import eye_aspect_ratio, landmarks68


class Options(Protocol):
    """The options of the stage that this backend reads."""

    open_percentile: float
    closed_percentile: float
    closed_ratio: float


def measure(
    clip: Clip, images: Path | None, points: np.ndarray, valid: np.ndarray, options: Options
) -> dict[str, np.ndarray]:
    """Return the AU45 intensity of every frame as `AU45_r`, float64 [T], 0 (open) to 2 (closed).

    Readers of the AD-NeRF family clip AU45 at 2. With this scale, they can distinguish a
    half-closed eye from a closed one.

    Args:
        clip: the clip.
        images: not used.
        points: face meshes [T, 478, 3].
        valid: bool [T]; the ratio of the other frames is interpolated.
        options: options of the stage.
    """
    ratio = eye_aspect_ratio(landmarks68(points).astype(np.float64))
    frames = np.arange(clip.frames)
    ratio = np.interp(frames, frames[valid], ratio[valid])
    opened = np.percentile(ratio[valid], options.open_percentile)
    closed = np.percentile(ratio[valid], options.closed_percentile)
    closed = min(closed, options.closed_ratio * opened)
    return {"AU45_r": AU45_SATURATION * np.clip((opened - ratio) / (opened - closed), 0, 1)}
