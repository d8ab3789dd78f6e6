"""Pictures of a clip: 25 fps by timestamps, a square around the face, at most 512 pixels wide.

`talker frames --video me.mp4 --clip clip.json --images ori_imgs`
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from talker.clip import FPS, Clip, Crop, Source
from talker.core.config import validated
from talker.core.files import Output, replacing
from talker.core.parallel import ordered_map
from talker.core.progress import progress
from talker.errors import UserError
from talker.media.images import write_image
from talker.media.mediapipe import detect_faces
from talker.media.video import frame_count, probe, read_frames

MIN_FRAMES = 2 * FPS
MIN_FACE = 48  # pixels; less is too coarse for a face mesh
PORTRAIT_FACE = 0.3  # a square video whose face is this wide (of its width) needs no crop

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker frames`."""

    size: int = 512
    """Largest side of the images in pixels; a smaller picture keeps its size."""
    quality: int = 95
    """JPEG quality, 0..100."""
    crop: tuple[int, int, int] | None = None
    """Square to cut out: left, top, size in pixels of the upright picture. Found if not given."""
    look_every: int = 10
    """The search for the face looks at every so many frames."""


def find_face(video: Path, source: Source, every: int) -> np.ndarray:
    """Find one person's face in every `every`-th frame: the largest one and whatever is near it.

    Returns:
        float32 [N, 4]: x0, y0, x1, y1 in pixels, a row for each frame looked at that has a face.

    Raises:
        UserError: less than half of those frames have a face, or it is too small.
    """
    looked = -(-frame_count(source) // every)
    images = progress(read_frames(video, source, every), "face", looked)
    faces = [found[:, :4] for found in detect_faces(images)]
    boxes = np.concatenate(faces)
    seen = [found for found in faces if len(found)]
    if 2 * len(seen) < looked:
        raise UserError(
            f"{video}: expected one person's face in every frame, found a face in {len(seen)} of "
            f"{looked} frames looked at; cut the video to where the person talks to the camera"
        )
    widths = boxes[:, 2] - boxes[:, 0]
    anchor = _centres(boxes[widths.argmax()])
    chosen = np.stack(
        [found[np.linalg.norm(_centres(found) - anchor, axis=-1).argmin()] for found in seen]
    )
    width = np.median(chosen[:, 2] - chosen[:, 0])
    if width < MIN_FACE:
        raise UserError(
            f"{video}: expected a face at least {MIN_FACE} pixels wide, found {width:.0f}; use a "
            "video of higher resolution or a closer shot"
        )
    if len(boxes) > 1.5 * len(seen):
        logger.warning(
            "%s: shows several faces; the crop follows the largest (--crop picks another)", video
        )
    return chosen


def choose_crop(boxes: np.ndarray, width: int, height: int) -> Crop | None:
    """Choose the square that shows head and shoulders all through the clip.

    Published talking-head clips are square, with a detected face half as wide as the picture and a
    little below its middle; the crop is made the same, with room for the head's whole range.

    Args:
        boxes: [N, 4] face boxes in pixels, as `find_face` returns.
        width, height: size of the picture in pixels.

    Returns:
        The square, of even size and inside the picture; None if the picture is a portrait already.
    """
    face = float(np.median(boxes[:, 2] - boxes[:, 0]))
    if width == height and width % 2 == 0 and face >= PORTRAIT_FACE * width:
        return None
    left, top = np.percentile(boxes[:, :2], 2, axis=0)
    right, bottom = np.percentile(boxes[:, 2:], 98, axis=0)
    wanted = max(right - left, bottom - top) + face
    size = int(min(wanted, width, height)) // 2 * 2
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2 - 0.04 * size
    return Crop(
        x=int(np.clip(round(middle_x - size / 2), 0, width - size)),
        y=int(np.clip(round(middle_y - size / 2), 0, height - size)),
        size=size,
    )


def plan(source: Source, crop: Crop | None, size: int) -> Clip:
    """Describe the clip that `source` gives with this crop and at most `size` pixels a side."""
    height, width = (crop.size, crop.size) if crop else (source.height, source.width)
    scale = min(1.0, size / max(height, width))
    return Clip(
        frames=frame_count(source),
        height=2 * max(1, round(height * scale / 2)),
        width=2 * max(1, round(width * scale / 2)),
        source=source,
        crop=crop,
    )


def write_frames(video: Path, clip: Clip, folder: Path, quality: int) -> None:
    """Write frame i of a clip as `folder`/i.jpg, for all its frames.

    Raises:
        UserError: the video cannot be decoded to its end.
    """
    folder.mkdir()

    def write(numbered: tuple[int, np.ndarray]) -> None:
        i, image = numbered
        write_image(folder / f"{i}.jpg", fit(image, clip), quality)

    written = ordered_map(write, enumerate(read_frames(video, clip.source)))
    for _ in progress(written, "frames", clip.frames):
        pass


def fit(image: np.ndarray, clip: Clip) -> np.ndarray:
    """Crop and scale a picture of the source to the clip's [H, W, 3]."""
    if clip.crop:
        x, y, size = clip.crop.x, clip.crop.y, clip.crop.size
        image = image[y : y + size, x : x + size]
    if image.shape[:2] == (clip.height, clip.width):
        return image
    return cv2.resize(image, (clip.width, clip.height), interpolation=cv2.INTER_AREA)


def main(*, video: Path, clip: Output, images: Output, config: Config = Config()) -> None:
    """Write a video's pictures at 25 fps and the clip.json that describes them.

    Args:
        video: the raw video.
        clip: clip.json to write.
        images: folder of %d.jpg to write.
        config: options.
    """
    source = probe(video)
    _refuse_unfit(video, source)
    if config.crop:
        crop = _given_crop(config.crop, video, source)
    else:
        boxes = find_face(video, source, config.look_every)
        crop = choose_crop(boxes, source.width, source.height)
    result = plan(source, crop, config.size)
    with replacing(images, clip) as (folder, file):
        write_frames(video, result, folder, config.quality)
        result.save(file)


def _refuse_unfit(video: Path, source: Source) -> None:
    if frame_count(source) < 2:
        raise UserError(f"{video}: expected a video, found a single picture")
    if source.audio_start is None:
        raise UserError(f"{video}: expected a video with sound, but it holds no sound track")
    if frame_count(source) < MIN_FRAMES:
        raise UserError(
            f"{video}: lasts {source.duration:.2f} s, expected at least {MIN_FRAMES / FPS:.0f} s "
            "(and some minutes for a good avatar)"
        )


def _given_crop(values: Sequence[int], video: Path, source: Source) -> Crop:
    x, y, size = values
    if x < 0 or y < 0 or size < 2 or x + size > source.width or y + size > source.height:
        raise UserError(
            f"crop {x} {y} {size} (left, top, size) does not lie inside the {source.width} x "
            f"{source.height} picture of {video}"
        )
    return Crop(x, y, size)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
