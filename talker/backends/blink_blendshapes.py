"""Eye closure and brows from the blendshapes of MediaPipe's face landmarker."""

import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from talker.backends.weights import require_weights, wrong_weights
from talker.clip import Clip
from talker.core.progress import progress
from talker.data.formats import AU_MAX, BROW_UNITS
from talker.data.weights import WEIGHTS
from talker.errors import UserError
from talker.media.images import read_numbered
from talker.media.mediapipe_tasks import predict_blendshapes

PUBLISHED = WEIGHTS["blendshapes"]
"""The published weights."""

SHAPES = {
    "AU45_r": ("eyeBlinkLeft", "eyeBlinkRight"),
    "AU01_r": ("browInnerUp",),
    "AU02_r": ("browOuterUpLeft", "browOuterUpRight"),
    "AU04_r": ("browDownLeft", "browDownRight"),
}
"""Names of the blendshapes that correspond to each action unit."""


class Options(Protocol):
    """The options of the stage that this backend reads."""

    weights: str | None


def measure(
    clip: Clip, images: Path | None, points: np.ndarray, valid: np.ndarray, options: Options
) -> dict[str, np.ndarray]:
    """Return the intensities of the action units of `SHAPES` in every frame, float64 [T], 0 to 5.

    Args:
        clip: the clip.
        images: folder of its frames.
        points: not used.
        valid: not used.
        options: options of the stage.

    Raises:
        UserError: the weights are missing or wrong, or no frame shows a face.
    """
    file = require_weights(options.weights, "blendshapes", PUBLISHED)
    if images is None:
        raise UserError(
            "The backend 'blendshapes' needs the folder of the frames. Give it with `--images`."
        )
    if not zipfile.is_zipfile(file):
        raise wrong_weights(file, "it is not a complete task file", PUBLISHED)
    try:
        shapes = predict_blendshapes(read_numbered(images, clip), file)
    except (RuntimeError, ValueError) as error:
        raise wrong_weights(file, str(error).splitlines()[0][:200], PUBLISHED) from error
    return action_units(list(progress(shapes, "blendshapes", clip.frames)), images)


def action_units(shapes: list[dict[str, float] | None], images: Path) -> dict[str, np.ndarray]:
    """Return the mean weights of the blendshapes of each action unit, scaled to 0..5.

    The median over the clip counts as relaxed brows. Gaps are interpolated.

    Raises:
        UserError: no frame shows a face.
    """
    known = [i for i, each in enumerate(shapes) if each is not None]
    if not known:
        raise UserError(f"{images} contains no frame in which a face was detected.")
    units = {}
    for unit, names in SHAPES.items():
        weights = [[each[name] for name in names] for each in shapes if each is not None]
        values = np.mean(weights, axis=1)
        relaxed = np.median(values) if unit in BROW_UNITS else 0.0
        intensity = AU_MAX * np.maximum(values - relaxed, 0)
        units[unit] = np.interp(np.arange(len(shapes)), known, intensity)
    return units
