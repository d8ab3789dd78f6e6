"""Classify every pixel as head, neck, torso or background.

`talker parsing --clip clip.json --images ori_imgs --landmarks landmarks.npz --masks parsing`
"""

from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from talker.backends import load_backend
from talker.clip import Clip, load_per_frame
from talker.core.config import AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.core.parallel import one_opencv_thread, ordered_map
from talker.core.progress import progress
from talker.data.layout import COLORS, MASKS
from talker.media.images import write_image


@validated
class Config:
    """How the masks are made."""

    backend: Literal["color", "bisenet", "multiclass"] = "color"
    """Method: `color` (a color model of this video, combined with the person segmentation network
    of the package mediapipe), `bisenet` (trained on CelebAMask-HQ) or `multiclass` (MediaPipe's
    multiclass selfie segmenter)."""
    weights: str | None = None
    """Path of the weights: 79999_iter.pth for `bisenet`, selfie_multiclass_256x256.tflite for
    `multiclass`. By default, the file that `talker weights fetch` downloads is used."""
    samples: AtLeast1 = 24
    """Number of frames, spread over the clip, from which `color` learns its model."""
    rounds: AtLeast1 = 4
    """Number of expectation-maximization iterations of `color`."""
    decision_size: Annotated[int, Field(ge=32)] = 256
    """Longer side, in pixels, of the images in which `color` separates hair, face, neck and
    clothes. The outline of the person is computed at full resolution."""


def main(
    *, clip: Path, images: Path, landmarks: Path, masks: Output, config: Config = Config()
) -> None:
    """Segment every frame into head, neck, torso and background.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg.
        landmarks: landmarks.npz, the face mesh of every frame.
        masks: Folder to write the masks to, as %d.png.
        config: Options.
    """
    described = Clip.load(clip)
    points = load_per_frame(landmarks, described.frames, "points")["points"]
    parse = load_backend("parsing", config.backend).parse
    with atomic_write(masks) as (scratch,), one_opencv_thread():
        scratch.mkdir()
        palette = np.resize(COLORS, (256, 1, 3))  # OpenCV requires 256 colors

        def write(numbered: tuple[int, np.ndarray]) -> None:
            i, mask = numbered
            write_image(scratch / MASKS.file_name(i), cv2.applyColorMap(mask, palette))

        parsed = progress(parse(described, images, points, config), "masks", described.frames)
        for _ in ordered_map(write, enumerate(parsed)):
            pass
