"""Backgrounds that replace the recorded one: an image, or a video that repeats."""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np

from talker.errors import UserError
from talker.media.images import read_image
from talker.media.video_reader import probe, read_frames

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
"""Files with these suffixes are read as images, all others as videos."""


def backdrop(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield RGB uint8 [height, width, 3] without end: one image, or a video that repeats.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist. Give the path of an image or a video.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield from repeat(resize_to_cover(read_image(path)[..., :3], height, width))
    source = probe(path)
    while True:
        for image in read_frames(path, source):
            yield resize_to_cover(image, height, width)


def resize_to_cover(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the center [height, width, 3] of an image scaled to cover that size."""
    scale = max(height / image.shape[0], width / image.shape[1])
    size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, size, interpolation=mode)
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    return scaled[top : top + height, left : left + width]
