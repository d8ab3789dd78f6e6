"""Detect landmarks in real and rendered frames in the same way."""

import math
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import Float

from talker.head.landmarks68 import landmarks68
from talker.media.mediapipe import MESH_POINTS, track_meshes

MIN_DETECTOR_SIZE = 384
"""Longer side in pixels below which images are enlarged before landmarks are detected, because the
detector is less accurate on small faces. Real and rendered frames are treated alike."""


def detect_landmarks(images: Iterable[np.ndarray]) -> Float[np.ndarray, "N 68 2"]:
    """Detect 68 landmarks in consecutive frames with MediaPipe.

    Args:
        images: RGB uint8 [H, W, 3] of any size.

    Returns:
        float32 [N, 68, 2] in pixels of the frames, nan where no face was detected.
    """
    return landmarks68(detect_meshes(images))


def detect_meshes(images: Iterable[np.ndarray]) -> Float[np.ndarray, "N 478 3"]:
    """Detect face meshes in consecutive frames with MediaPipe.

    Args:
        images: RGB uint8 [H, W, 3] of any size.

    Returns:
        float32 [N, 478, 3] in pixels of the frames, nan where no face was detected.
    """
    scales: list[int] = []

    def enlarged() -> Iterator[np.ndarray]:
        for image in images:
            scale = math.ceil(MIN_DETECTOR_SIZE / max(image.shape[:2]))
            scales.append(scale)
            yield cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

    missing = np.full((MESH_POINTS, 3), np.nan, np.float32)
    detected = [meshes[0] if len(meshes) else missing for meshes in track_meshes(enlarged())]
    return np.stack(detected) / np.array(scales, np.float32)[:, None, None]
