"""Landmarks of one face by a detector of 68 landmarks that is given the box of the face."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from talker.clip import Clip
from talker.core.progress import progress
from talker.head.complete_mesh import complete_meshes
from talker.head.follow import follow_face, rival_area
from talker.media.images import read_numbered
from talker.media.mediapipe import MESH_POINTS, detect_faces


class Options(Protocol):
    """The options of the stage that these backends read."""

    weights: str | None
    min_overlap: float
    patience: int


def detect_with(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    clip: Clip,
    images: Path,
    options: Options,
) -> dict[str, np.ndarray]:
    """Follow one face, predict its landmarks in every frame and complete them to meshes.

    Args:
        predict: maps RGB uint8 [H, W, 3] and a face box [4] (x0, y0, x1, y1) to landmarks [68, 2],
            both in pixels with pixel centers at +0.5.
        clip: the clip.
        images: folder of its frames.
        options: options of the stage.

    Returns:
        As `talker.backends.landmarks_mediapipe.detect`.
    """
    faces = progress(detect_faces(read_numbered(images, clip), threads=None), "faces", clip.frames)
    boxes = [each[:, :4] for each in faces]
    rows = follow_face(boxes, options.min_overlap, options.patience)
    ids = np.flatnonzero(rows >= 0)
    frames = progress(read_numbered(images, clip, ids=ids.tolist()), "landmarks", len(ids))
    landmarks = [predict(image, boxes[i][rows[i]]) for i, image in zip(ids, frames, strict=True)]
    points = np.zeros((clip.frames, MESH_POINTS, 3), np.float32)
    if len(ids):
        points[ids] = complete_meshes(np.array(landmarks, float))
    rival = [rival_area(each, row) for each, row in zip(boxes, rows, strict=True)]
    return {
        "valid": rows >= 0,
        "points": points,
        "n_faces": np.array([len(each) for each in boxes], np.int32),
        "rival": np.array(rival, np.float32),
    }


def square(box: np.ndarray, up: float, size: float) -> np.ndarray:
    """Return the square (x0, y0, x1, y1) around a face box, moved up and scaled.

    Args:
        box: [4].
        up: distance by which the center moves up, in box widths.
        size: side of the square, in box widths.
    """
    width = box[2] - box[0]
    center = (box[:2] + box[2:]) / 2 - [0.0, up * width]
    half = size * width / 2
    return np.concatenate([center - half, center + half])
