"""Split every frame into the layers that training composes (as in AD-NeRF).

gt_imgs are the frames with the background replaced by the plate; torso_imgs (RGBA) are neck and
clothes, continued upward behind the chin so that a moving jaw does not uncover a hole.
`talker layers --clip clip.json --images ori_imgs --masks parsing --plate bc.jpg --truth gt_imgs
--torso torso_imgs`
"""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from talker.clip import Clip
from talker.core.config import NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.core.parallel import one_opencv_thread, ordered_map
from talker.core.progress import progress
from talker.data.layout import BACKGROUND, COMPOSITES, HEAD, MASKS, NECK, TORSO, TORSOS, to_classes
from talker.errors import UserError
from talker.media.images import read_frame, read_image, write_image


@validated
class Config:
    """How the layers are made.

    Lengths are in pixels of an image whose longer side is 512 pixels, and are scaled to the size of
    the frames.
    """

    clothes_up: NonNegative = 9.0
    """Length by which the clothes are extended upward behind the head, in pixels of an image whose
    longer side is 512 pixels. This and the other lengths are scaled to the size of the frames."""
    neck_up: NonNegative = 53.0
    """Length by which the neck is extended upward behind the head, in the unit of `clothes_up`."""
    neck_grow: NonNegative = 3.0
    """Length by which the mask of the neck is first enlarged upward, in the unit of `clothes_up`.
    The enlarged mask covers the soft edge of the chin."""
    neck_sample: NonNegative = 4.0
    """Distance below the top of the enlarged neck at which its color is sampled, in the unit of
    `clothes_up`."""
    blur: NonNegative = 5.0
    """Window size of the Gaussian blur of the extended neck, in the unit of `clothes_up`."""
    darkening: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Factor that darkens the extended neck and clothes: the color of each pixel is that of the
    pixel below it, multiplied by this factor."""


def split(
    image: np.ndarray, mask: np.ndarray, plate: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Make the two layers of one frame.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: uint8 [H, W], classes of talker.data.layout.
        plate: background plate, RGB uint8 [H, W, 3].
        config: options.

    Returns:
        The frame on the plate, uint8 [H, W, 3], and the torso layer, RGBA uint8 [H, W, 4], black
        where it is transparent.
    """
    scale = max(mask.shape) / 512
    shade = config.darkening ** (1 / scale)
    head, neck, clothes = mask == HEAD, mask == NECK, mask == TORSO
    truth = image.copy()
    cv2.copyTo(plate, _to_bytes(mask == BACKGROUND), truth)
    torso = truth.copy()
    cv2.copyTo(plate, _to_bytes(head), torso)
    filled = _continue_up(torso, clothes, head, round(config.clothes_up * scale), 0, shade)

    reach = max(1, round(config.neck_grow * scale))
    grown = cv2.dilate(_to_bytes(neck), np.ones((2 * reach + 1, 1), np.uint8)) > 0
    grown &= mask != BACKGROUND
    up, down = round(config.neck_up * scale), round(config.neck_sample * scale)
    filled_neck = _continue_up(torso, grown, head, up, down, shade)
    window = 2 * round(config.blur * scale / 2 - 0.5) + 1
    cv2.copyTo(cv2.GaussianBlur(torso, (window, window), 0), _to_bytes(filled_neck), torso)

    opaque = neck | clothes | filled | filled_neck
    return truth, cv2.copyTo(cv2.cvtColor(torso, cv2.COLOR_RGB2RGBA), _to_bytes(opaque))


def _to_bytes(region: np.ndarray) -> np.ndarray:
    """Return bool [H, W] as the uint8 mask that OpenCV expects, without copying it."""
    return region.view(np.uint8)


def _continue_up(
    image: np.ndarray, part: np.ndarray, head: np.ndarray, length: int, down: int, shade: float
) -> np.ndarray:
    """Continue the upper edge of a part behind the head, column by column, in place.

    A column is continued if the pixel above its topmost pixel of `part` is head. The color is
    sampled `down` pixels below that pixel and copied `length` pixels upward, multiplied by `shade`
    for each pixel.

    Returns:
        The written pixels, bool [H, W]; all of them belong to the part or the head.
    """
    top = part.argmax(0)
    above_is_head = head[top - 1, np.arange(part.shape[1])]
    columns = np.flatnonzero(part.any(0) & (top > 0) & above_is_head)
    start = top[columns] + np.minimum(down, part.sum(0)[columns] - 1)
    steps = np.arange(length)[:, None]
    rows = start - steps
    colors = image[start, columns] * (shade**steps)[..., None]
    ok = (rows >= 0) & (head | part)[rows, columns]
    columns = np.broadcast_to(columns, rows.shape)
    written = np.zeros(part.shape, bool)
    written[rows[ok], columns[ok]] = True
    image[rows[ok], columns[ok]] = colors[ok].astype(np.uint8)
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
    """Replace the background of every frame with the background plate, and extract the torso.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg.
        masks: Folder of the parsing masks, %d.png.
        plate: Background plate, bc.jpg.
        truth: Folder for the output images of the person composited over the plate, %d.jpg.
        torso: Folder for the output images of the neck and the clothes, %d.png with alpha.
        config: Options.
    """
    described = Clip.load(clip)
    background = read_image(plate)
    if background.shape != (described.height, described.width, 3):
        raise UserError(
            f"{plate} has {background.shape[1]}x{background.shape[0]} pixels, but "
            f"clip.json describes {described.width}x{described.height} pixels. Run "
            "`talker background` again."
        )
    with atomic_write(truth, torso) as (truth_folder, torso_folder):
        truth_folder.mkdir()
        torso_folder.mkdir()

        def write(i: int) -> None:
            image = read_frame(images, described, i)
            colors = read_frame(masks, described, i, ".png")
            classes = to_classes(colors, masks / MASKS.file_name(i))
            composite, layer = split(image, classes, background, config)
            write_image(truth_folder / COMPOSITES.file_name(i), composite)
            write_image(torso_folder / TORSOS.file_name(i), layer)

        written = ordered_map(write, range(described.frames))
        with one_opencv_thread():
            for _ in progress(written, "layers", described.frames):
                pass
