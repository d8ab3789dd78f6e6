"""Parsing masks: the four classes and the exact colours that the AD-NeRF family gives them."""

from pathlib import Path

import numpy as np

from talker.errors import UserError
from talker.media.images import write_image

BACKGROUND, HEAD, NECK, TORSO = range(4)
COLOURS = np.array([(255, 255, 255), (0, 0, 255), (0, 255, 0), (255, 0, 0)], np.uint8)
"""RGB by class; OpenCV shows them as BGR."""

_CLASS_OF_BITS = np.full(8, 255, np.uint8)
_CLASS_OF_BITS[(COLOURS >> 7) @ [1, 2, 4]] = range(4)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write classes uint8 [H, W] as colours."""
    write_image(path, COLOURS[mask])


def to_classes(colours: np.ndarray, path: Path) -> np.ndarray:
    """The classes uint8 [H, W] of mask colours RGB uint8 [H, W, 3] that were read from `path`.

    Raises:
        UserError: a pixel has none of the four colours.
    """
    bits = (colours[..., 0] >> 7) | ((colours[..., 1] >> 7) << 1) | ((colours[..., 2] >> 7) << 2)
    mask = _CLASS_OF_BITS[bits]
    wrong = (mask == 255) | ((colours != 0) & (colours != 255)).any(-1)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise UserError(
            f"{path}: pixel ({x}, {y}) is {tuple(colours[y, x].tolist())}; expected one of the "
            f"mask colours {[tuple(colour) for colour in COLOURS.tolist()]}"
        )
    return mask
