"""What stands behind a person instead of the plate: a picture or a video, filling the frame."""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np

from talker.errors import UserError
from talker.media.images import read_image
from talker.media.video import probe, read_frames

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def backdrop(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield RGB uint8 [height, width, 3] without end: a picture, or a video over and over.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; the background is a picture or a video")
    if path.suffix.lower() in PICTURES:
        yield from repeat(covering(read_image(path)[..., :3], height, width))
    source = probe(path)
    while True:
        for image in read_frames(path, source):
            yield covering(image, height, width)


def covering(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image until it covers height x width, and cut out its middle."""
    scale = max(height / image.shape[0], width / image.shape[1])
    size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    whole = cv2.resize(image, size, interpolation=mode)
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    return whole[top : top + height, left : left + width]
