"""Parsing by MediaPipe's multiclass selfie segmenter.

The network separates hair, face skin, body skin, clothes and accessories. The neck is the body skin
below the face; hands are part of the torso.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from talker.backends.weights import require_weights, wrong_weights
from talker.clip import Clip
from talker.core.parallel import ordered_map
from talker.data.layout import BACKGROUND, HEAD, NECK, TORSO
from talker.data.weights import WEIGHTS
from talker.media.images import read_numbered
from talker.media.mediapipe_tasks import segment_classes

PUBLISHED = WEIGHTS["multiclass"]
"""The published weights."""

HAIR, BODY_SKIN, FACE_SKIN, CLOTHES, OTHERS = range(1, 6)
"""Classes of the network; 0 is the background."""

NECK_WIDTH = 0.55
"""Maximum distance of neck skin from the vertical line through the chin, in face widths."""

NECK_LENGTH = 0.8
"""Maximum distance of neck skin below the chin, in face heights."""

FOREHEAD, CHIN = 10, 152
"""Indices of the top of the forehead and the chin in the mesh."""


class Options(Protocol):
    """The options of the stage that this backend reads."""

    weights: str | None


def parse(clip: Clip, images: Path, points: np.ndarray, options: Options) -> Iterator[np.ndarray]:
    """Yield the mask of each frame, uint8 [H, W] of the classes in talker.data.layout.

    Args:
        clip: the clip.
        images: folder of its frames.
        points: face meshes [T, 478, 3] in pixels.
        options: options of the stage.

    Raises:
        UserError: the weights are missing or wrong; raised before a frame is read.
    """
    file = require_weights(options.weights, "multiclass", PUBLISHED)
    with file.open("rb") as stream:
        if stream.read(8)[4:] != b"TFL3":
            raise wrong_weights(file, "it is not a TensorFlow Lite model", PUBLISHED)
    try:
        predicted = segment_classes(read_numbered(images, clip), file)
    except (RuntimeError, ValueError) as error:
        raise wrong_weights(file, str(error).splitlines()[0][:200], PUBLISHED) from error

    def mask(frame: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        probabilities, mesh = frame
        if len(probabilities) != OTHERS + 1:
            reason = f"it has {len(probabilities)} classes, not {OTHERS + 1}"
            raise wrong_weights(file, reason, PUBLISHED)
        return merge_classes(probabilities.argmax(0), mesh)

    return ordered_map(mask, zip(predicted, points, strict=True))


def merge_classes(classes: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Map the classes of the network to those of a mask.

    Args:
        classes: int [H, W], classes of the network.
        mesh: face mesh [478, 3] in pixels.

    Returns:
        uint8 [H, W].
    """
    height, width = classes.shape
    y, x = np.mgrid[:height, :width] + 0.5
    face_width = np.ptp(mesh[:, 0])
    face_height = np.linalg.norm(mesh[CHIN, :2] - mesh[FOREHEAD, :2])
    down = y - mesh[CHIN, 1]
    near = np.abs(x - mesh[CHIN, 0]) < NECK_WIDTH * face_width
    mask = np.full(classes.shape, TORSO, np.uint8)
    mask[classes == 0] = BACKGROUND
    mask[(classes == HAIR) | (classes == FACE_SKIN)] = HEAD
    skin = (classes == BODY_SKIN) & near
    mask[skin & (down > -0.5 * face_height) & (down < NECK_LENGTH * face_height)] = NECK
    mask[(classes == OTHERS) & (down < 0)] = HEAD
    return mask
