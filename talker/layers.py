"""Split every frame into what the avatar must match and what lies behind it (as AD-NeRF does).

gt_imgs are the frames on the clean plate; torso_imgs (RGBA) are neck and clothes, continued upward
behind the chin so that a moving jaw uncovers no hole.
`talker layers --clip clip.json --images ori_imgs --masks parsing --plate bc.jpg --truth gt_imgs
--torso torso_imgs`
"""

from pathlib import Path

import cv2
import numpy as np

from talker.clip import Clip
from talker.core.config import validated
from talker.core.files import Output, replacing
from talker.core.parallel import ordered_map
from talker.core.progress import progress
from talker.data.masks import BACKGROUND, HEAD, NECK, TORSO, to_classes
from talker.errors import UserError
from talker.media.images import read_image, read_numbered, write_image


@validated
class Config:
    """Lengths are in pixels of a 512-pixel image (longer side) and follow the image's size."""

    clothes_up: float = 9.0
    """how far clothes go on under the head"""
    neck_up: float = 53.0
    """how far the neck goes on under the head"""
    neck_grow: float = 3.0
    """how far the neck first grows up, over the soft edge of the chin"""
    neck_sample: float = 4.0
    """how far below the grown neck's top its colour is taken"""
    blur: float = 5.0
    """window of the Gaussian blur over the continued neck"""
    darkening: float = 0.98
    """factor on the colour for each pixel up"""


def split(
    image: np.ndarray, mask: np.ndarray, plate: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Make the two layers of one frame.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: uint8 [H, W], classes of talker.data.masks.
        plate: background, RGB uint8 [H, W, 3].

    Returns:
        truth uint8 [H, W, 3] and torso RGBA uint8 [H, W, 4], black where it is transparent.
    """
    scale = max(mask.shape) / 512
    shade = config.darkening ** (1 / scale)
    head, neck, clothes = mask == HEAD, mask == NECK, mask == TORSO
    truth = np.where((mask == BACKGROUND)[..., None], plate, image)
    torso = np.where(head[..., None], plate, truth)
    filled = _continue_up(torso, clothes, head, round(config.clothes_up * scale), 0, shade)

    reach = max(1, round(config.neck_grow * scale))
    grown = cv2.dilate(neck.astype(np.uint8), np.ones((2 * reach + 1, 1), np.uint8)) > 0
    grown &= mask != BACKGROUND
    up, down = round(config.neck_up * scale), round(config.neck_sample * scale)
    filled_neck = _continue_up(torso, grown, head, up, down, shade)
    window = 2 * round(config.blur * scale / 2 - 0.5) + 1
    torso[filled_neck] = cv2.GaussianBlur(torso, (window, window), 0)[filled_neck]

    opaque = neck | clothes | filled | filled_neck
    alpha = np.where(opaque, np.uint8(255), np.uint8(0))
    return truth, np.dstack([torso * opaque[..., None], alpha])


def _continue_up(
    image: np.ndarray, part: np.ndarray, head: np.ndarray, length: int, down: int, shade: float
) -> np.ndarray:
    """Continue the part's upper edge under the head, column by column; changes `image`.

    A column takes part where the pixel above the topmost one of `part` is head. Its colour, taken
    `down` pixels lower inside the part, goes up `length` pixels, times `shade` for each.

    Returns:
        the pixels that were written, bool [H, W]: they belong to the part or the head.
    """
    top = part.argmax(0)
    above_is_head = head[top - 1, np.arange(part.shape[1])]
    columns = np.flatnonzero(part.any(0) & (top > 0) & above_is_head)
    start = top[columns] + np.minimum(down, part.sum(0)[columns] - 1)
    steps = np.arange(length)[:, None]
    rows = start - steps
    colours = image[start, columns] * (shade**steps)[..., None]
    ok = (rows >= 0) & (head | part)[rows, columns]
    columns = np.broadcast_to(columns, rows.shape)
    written = np.zeros(part.shape, bool)
    written[rows[ok], columns[ok]] = True
    image[rows[ok], columns[ok]] = colours[ok].astype(np.uint8)
    return written


def main(
    *,
    clip: Path,
    images: Path,
    masks: Path,
    plate: Path,
    truth: Output,
    torso: Output,
    config: Config = Config(),
) -> None:
    """Write the ground truth and the torso layer of every frame.

    Args:
        clip: clip.json of the dataset.
        images: folder of the frames, %d.jpg.
        masks: folder of the parsing masks, %d.png.
        plate: the background without the person.
        truth: folder to write: frames on the clean background, %d.jpg.
        torso: folder to write: neck and clothes, %d.png with alpha.
        config: options.
    """
    about = Clip.load(clip)
    background = read_image(plate)
    if background.shape != (about.height, about.width, 3):
        raise UserError(
            f"{plate}: expected {about.width}x{about.height} pixels as clip.json says, found "
            f"{background.shape[1]}x{background.shape[0]}; make the background again"
        )
    with replacing(truth, torso) as (truth_folder, torso_folder):
        truth_folder.mkdir()
        torso_folder.mkdir()

        def write(i: int, image: np.ndarray, colours: np.ndarray) -> None:
            classes = to_classes(colours, masks / f"{i}.png")
            made_truth, made_torso = split(image, classes, background, config)
            write_image(truth_folder / f"{i}.jpg", made_truth)
            write_image(torso_folder / f"{i}.png", made_torso)

        frames = zip(
            range(about.frames),
            read_numbered(images, about),
            read_numbered(masks, about, ".png"),
            strict=True,
        )
        for _ in progress(ordered_map(lambda frame: write(*frame), frames), "layers", about.frames):
            pass
