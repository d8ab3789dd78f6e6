"""Recover the background plate behind the person from the frames that show it (as in AD-NeRF).

Each pixel comes from the frame in which the person is farthest from it; pixels that are never
visible are filled from their nearest neighbors.
`talker background --clip clip.json --images ori_imgs --masks parsing --plate bc.jpg`
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from talker.clip import Clip
from talker.core.config import AtLeast1, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.data.layout import BACKGROUND, MASKS, to_classes
from talker.errors import UserError
from talker.media.images import read_numbered, write_image

logger = logging.getLogger(__name__)


@validated
class Config:
    """How the background plate is made."""

    every: AtLeast1 = 20
    """Read every N-th frame. In short clips, frames are read more often (see `least`)."""
    least: AtLeast1 = 50
    """Minimum number of frames to read. If a clip has fewer frames, all of them are read."""
    clearance: NonNegative = 5.0
    """Minimum distance from the person at which a background pixel counts as visible, in pixels of
    an image whose longer side is 512 pixels. It is scaled to the size of the frames."""


def clean_plate(
    frames: Iterable[tuple[np.ndarray, np.ndarray]], size: tuple[int, int], clearance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Take each pixel from the frame in which the foreground is farthest away.

    Args:
        frames: pairs of an image, RGB uint8 [H, W, 3], and its mask, uint8 [H, W] of classes.
        size: H and W.
        clearance: distance in pixels above which a pixel counts as visible.

    Returns:
        The plate uint8 [H, W, 3], black where the background was never visible, and bool [H, W]:
        where it was visible.
    """
    plate = np.zeros((*size, 3), np.uint8)
    farthest = np.full(size, clearance, np.float32)
    for image, mask in frames:
        distance = _distance_from_person(mask)
        better = distance > farthest
        farthest[better] = distance[better]
        plate[better] = image[better]
    return plate, farthest > clearance


def _distance_from_person(mask: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel from the foreground of uint8 [H, W], float32 [H, W].

    With one thread, OpenCV would call Intel's library, whose distances vary in the last digits.
    """
    clear = (mask == BACKGROUND).astype(np.uint8)
    uses_intel = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        return cv2.distanceTransform(clear, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    finally:
        cv2.ipp.setUseIPP(uses_intel)


def fill(plate: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Fill invisible pixels with the color of the nearest visible one, blurred with its distance.

    Args:
        plate: uint8 [H, W, 3].
        visible: bool [H, W], true for at least one pixel.
    """
    nearest = np.empty((2, *visible.shape), np.int32)
    distance = np.empty(visible.shape)
    distance_transform_edt(~visible, return_indices=True, distances=distance, indices=nearest)
    filled = plate[nearest[0], nearest[1]]
    sigma = max(visible.shape) / 64
    weight = np.clip(distance / (2 * sigma), 0, 1)[..., None]
    smooth = cv2.GaussianBlur(filled.astype(np.float32), (0, 0), sigma)
    return np.round(filled * (1 - weight) + smooth * weight).astype(np.uint8)


def main(
    *, clip: Path, images: Path, masks: Path, plate: Output, config: Config = Config()
) -> None:
    """Reconstruct the background plate, which shows the scene without the person.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg.
        masks: Folder of the parsing masks, %d.png.
        plate: Image to write, bc.jpg.
        config: Options.
    """
    described = Clip.load(clip)
    step = max(1, min(config.every, described.frames // config.least))
    ids = range(0, described.frames, step)
    classes = (
        to_classes(colors, masks / MASKS.file_name(i))
        for i, colors in zip(ids, read_numbered(masks, described, ".png", ids), strict=True)
    )
    pairs = zip(read_numbered(images, described, ids=ids), classes, strict=True)
    size = described.height, described.width
    clearance = config.clearance * max(size) / 512
    pixels, visible = clean_plate(progress(pairs, "background", len(ids)), size, clearance)
    if not visible.any():
        raise UserError(
            f"{masks} contains no mask with background. Use a video of a person in front of a "
            "static background, parts of which are visible around the head."
        )
    logger.info(
        "%.0f %% of the background pixels are visible in at least one frame.", 100 * visible.mean()
    )
    with atomic_write(plate) as (scratch,):
        write_image(scratch, fill(pixels, visible), quality=98)
