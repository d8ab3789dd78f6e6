"""Folders of numbered images, `0.jpg`, `1.jpg` ...: one a frame, read ahead of use."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from talker.clip import Clip
from talker.errors import UserError
from talker.media.image import read_image
from talker.parallel import ordered_map


def read_numbered(
    folder: Path, clip: Clip, suffix: str = ".jpg", ids: Iterable[int] | None = None
) -> Iterator[np.ndarray]:
    """Yield the images of `clip`'s frames `ids` (all of them if None) in order.

    Raises:
        UserError: an image is missing, unreadable or not of the clip's size.
    """

    def read(i: int) -> np.ndarray:
        path = folder / f"{i}{suffix}"
        image = read_image(path)
        if image.shape[:2] != (clip.height, clip.width):
            raise UserError(
                f"{path}: expected {clip.width}x{clip.height} pixels as clip.json says, "
                f"found {image.shape[1]}x{image.shape[0]}; make the frames again"
            )
        return image

    return ordered_map(read, range(clip.frames) if ids is None else ids)
