"""Eye closure from the blendshapes of MediaPipe's face landmarker."""

import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from talker.backends.weights import require_weights, wrong_weights
from talker.clip import Clip
from talker.core.progress import progress
from talker.data.formats import AU45_CLOSED
from talker.data.weights import WEIGHTS
from talker.errors import UserError
from talker.media.images import read_numbered
from talker.media.mediapipe_tasks import predict_blendshapes

PUBLISHED = WEIGHTS["blendshapes"]
"""The published weights."""

EYES = ("eyeBlinkLeft", "eyeBlinkRight")
"""Names of the blendshapes that close the eyes."""


class Options(Protocol):
    """The options of the stage that this backend reads."""

    weights: str | None


def measure(
    clip: Clip, images: Path | None, points: np.ndarray, valid: np.ndarray, options: Options
) -> np.ndarray:
    """Return the eye closure of every frame, float64 [T] from 0 (open) to 5 (closed).

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
    return closure(list(progress(shapes, "blendshapes", clip.frames)), images)


def closure(shapes: list[dict[str, float] | None], images: Path) -> np.ndarray:
    """Return the mean of both eyes' weights on the scale of AU45; gaps are interpolated.

    Raises:
        UserError: no frame shows a face.
    """
    known = [i for i, each in enumerate(shapes) if each is not None]
    if not known:
        raise UserError(f"{images} contains no frame in which a face was detected.")
    values = [np.mean([each[eye] for eye in EYES]) for each in shapes if each is not None]
    return AU45_CLOSED * np.interp(np.arange(len(shapes)), known, values)
