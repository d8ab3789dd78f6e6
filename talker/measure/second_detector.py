"""Measure the mouth with a second landmark detector, independent of the one that the avatar uses.

MediaPipe's landmarks are inputs of the training, so an error that it makes in both real and
rendered frames is not noticed. FAN (Bulat and Tzimiropoulos 2017) or dlib's predictor (Kazemi and
Sullivan 2014) detects the landmarks with another model, which was trained on other annotations.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from talker.backends import load_backend
from talker.head.landmarks68 import mouth_opening
from talker.measure import metrics as m
from talker.media.mediapipe import detect_faces

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps RGB uint8 [H, W, 3] and a face box [4] (x0, y0, x1, y1) to landmarks [68, 2], in pixels."""


def load_second_detector(name: Literal["fan", "dlib"], weights: str | None) -> Predict:
    """Load a landmark backend as a detector.

    Args:
        name: name of the backend.
        weights: path of its weights; None selects those of `talker weights fetch`.

    Raises:
        UserError: its package is not installed, or its weights are missing or wrong.
    """
    return load_backend("landmarks", name).predictor(weights)


def second_detector_metrics(
    predict: Predict,
    rendered: Iterable[np.ndarray],
    real: Iterable[np.ndarray],
    real_landmarks: np.ndarray,
) -> dict[str, float]:
    """Compare the mouths of rendered and real frames by the landmarks of a second detector.

    Both frames of a pair are given the same face box, which MediaPipe detects in the real frame.

    Args:
        predict: output of `load_second_detector`.
        rendered: N frames, RGB uint8 [H, W, 3].
        real: the N real frames, RGB uint8 [H, W, 3].
        real_landmarks: landmarks that MediaPipe detected in `real` [N, 68, 2], nan without a face.

    Returns:
        `lmd_mouth_second` in pixels and `mouth_correlation_second`.
    """
    real = list(real)
    boxes = [
        _box_around(faces, points)
        for faces, points in zip(detect_faces(real), real_landmarks, strict=True)
    ]
    detected, expected = (
        np.stack([_points(predict, *pair) for pair in zip(images, boxes, strict=True)])
        for images in (rendered, real)
    )
    return {
        "lmd_mouth_second": m.finite(m.mouth_distance(detected, expected)),
        "mouth_correlation_second": m.correlation(mouth_opening(detected), mouth_opening(expected)),
    }


def _box_around(faces: np.ndarray, points: np.ndarray) -> np.ndarray | None:
    """Return the box [4] whose center is nearest to that of the landmarks [68, 2], or None."""
    if not len(faces) or not np.isfinite(points).all():
        return None
    boxes = faces[:, :4]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return boxes[np.linalg.norm(centers - points.mean(axis=0), axis=1).argmin()]


def _points(predict: Predict, image: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    return np.full((68, 2), np.nan) if box is None else predict(image, box)
