"""Parsing masks: four classes, stored as the exact colors of the AD-NeRF family."""

from pathlib import Path

import numpy as np

from talker.errors import UserError
from talker.media.images import write_image

BACKGROUND, HEAD, NECK, TORSO = range(4)
"""Classes of a parsing mask."""
COLORS = np.array([(255, 255, 255), (0, 0, 255), (0, 255, 0), (255, 0, 0)], np.uint8)
"""RGB color of each class. The AD-NeRF family writes them with OpenCV, as BGR."""

_CLASS_OF_BITS = np.full(8, 255, np.uint8)
_CLASS_OF_BITS[(COLORS >> 7) @ [1, 2, 4]] = range(4)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask, uint8 [H, W] of classes, as an image of colors."""
    write_image(path, COLORS[mask])


def to_classes(colors: np.ndarray, path: Path) -> np.ndarray:
    """Convert mask colors, RGB uint8 [H, W, 3], to classes uint8 [H, W].

    Args:
        colors: the decoded image.
        path: the file that it was read from, for the error message.

    Raises:
        UserError: a pixel has none of the four colors.
    """
    bits = (colors[..., 0] >> 7) | ((colors[..., 1] >> 7) << 1) | ((colors[..., 2] >> 7) << 2)
    mask = _CLASS_OF_BITS[bits]
    wrong = (mask == 255) | ((colors != 0) & (colors != 255)).any(-1)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise UserError(
            f"{path}: pixel ({x}, {y}) has the color {tuple(colors[y, x].tolist())}; expected one "
            f"of the mask colors {[tuple(color) for color in COLORS.tolist()]}"
        )
    return mask


def class_mask(colors: np.ndarray, label: int) -> np.ndarray:
    """Return the pixels of one class, uint8 [H, W]: 255 inside, 0 outside.

    Args:
        colors: mask colors, RGB uint8 [H, W, 3].
        label: the class.
    """
    return np.all(colors == COLORS[label], axis=-1).astype(np.uint8) * 255
