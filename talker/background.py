"""Recover the plate behind the person from the moments at which it was visible (as AD-NeRF does).

Each pixel comes from the frame in which the person was farthest from it; what was never visible is
filled from its nearest neighbours.
`talker background --clip clip.json --images ori_imgs --masks parsing --plate bc.jpg`
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from talker.clip import Clip
from talker.core.config import validated
from talker.core.files import Output, replacing
from talker.core.progress import progress
from talker.data.masks import BACKGROUND, to_classes
from talker.errors import UserError
from talker.media.images import read_numbered, write_image

logger = logging.getLogger(__name__)


@validated
class Config:
    every: int = 20
    """every n-th frame is looked at; more of them in clips with fewer than `least` such frames"""
    least: int = 50
    """frames to look at, at least (all of a shorter clip)"""
    clearance: float = 5.0
    """a pixel was visible if the person was farther than this, in pixels of a 512-pixel image"""


def clean_plate(
    frames: Iterable[tuple[np.ndarray, np.ndarray]], size: tuple[int, int], clearance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Take each pixel from the frame in which the foreground was farthest away.

    Args:
        frames: pairs of an image, RGB uint8 [H, W, 3], and its mask, uint8 [H, W] of classes.
        size: H and W.
        clearance: distance in pixels above which a pixel counts as seen.

    Returns:
        plate uint8 [H, W, 3] and seen bool [H, W]; the plate is black where nothing was seen.
    """
    plate = np.zeros((*size, 3), np.uint8)
    farthest = np.full(size, clearance, np.float32)
    for image, mask in frames:
        visible = (mask == BACKGROUND).astype(np.uint8)
        distance = cv2.distanceTransform(visible, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        better = distance > farthest
        farthest[better] = distance[better]
        plate[better] = image[better]
    return plate, farthest > clearance


def fill(plate: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Give unseen pixels the colour of the nearest seen one, ever smoother away from the seen part.

    Args:
        plate: uint8 [H, W, 3].
        seen: bool [H, W], somewhere true.
    """
    nearest = np.empty((2, *seen.shape), np.int32)
    distance = np.empty(seen.shape)
    distance_transform_edt(~seen, return_indices=True, distances=distance, indices=nearest)
    filled = plate[nearest[0], nearest[1]]
    sigma = max(seen.shape) / 64
    weight = np.clip(distance / (2 * sigma), 0, 1)[..., None]
    smooth = cv2.GaussianBlur(filled.astype(np.float32), (0, 0), sigma)
    return np.round(filled * (1 - weight) + smooth * weight).astype(np.uint8)


def main(
    *, clip: Path, images: Path, masks: Path, plate: Output, config: Config = Config()
) -> None:
    """Write the background without the person.

    Args:
        clip: clip.json of the dataset.
        images: folder of the frames, %d.jpg.
        masks: folder of the parsing masks, %d.png.
        plate: image to write (.jpg).
        config: options.
    """
    about = Clip.load(clip)
    step = max(1, min(config.every, about.frames // config.least))
    ids = range(0, about.frames, step)
    classes = (
        to_classes(colours, masks / f"{i}.png")
        for i, colours in zip(ids, read_numbered(masks, about, ".png", ids), strict=True)
    )
    pairs = zip(read_numbered(images, about, ids=ids), classes, strict=True)
    size = about.height, about.width
    clearance = config.clearance * max(size) / 512
    found, seen = clean_plate(progress(pairs, "background", len(ids)), size, clearance)
    if not seen.any():
        raise UserError(
            f"{masks}: no frame shows any background; expected a person in front of a background "
            "that stays the same, with some of it visible around the head"
        )
    logger.info("%.0f %% of the background was visible", 100 * seen.mean())
    with replacing(plate) as (scratch,):
        write_image(scratch, fill(found, seen), quality=98)
