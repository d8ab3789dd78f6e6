"""Extract the frames of a clip: 25 fps, a square around the face, at most 512 pixels per side.

`talker frames --video me.mp4 --clip clip.json --images ori_imgs`
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
from pydantic import Field

from talker.clip import FPS, Clip, Crop, Source
from talker.core.config import AtLeast1, validated
from talker.core.files import Output, atomic_write
from talker.core.parallel import one_opencv_thread, ordered_map
from talker.core.progress import progress
from talker.errors import UserError
from talker.media.ffmpeg import filtered
from talker.media.images import write_image
from talker.media.mediapipe import detect_faces
from talker.media.video_reader import (
    UprightConverter,
    decode_frames,
    frame_count,
    probe,
    read_frames,
)

MIN_FRAMES = 2 * FPS
"""Length of the shortest accepted clip in frames at 25 fps."""
MIN_FACE_WIDTH = 48
"""Width of the smallest accepted face in pixels; smaller ones are too coarse for a face mesh."""
PORTRAIT_FACE_RATIO = 0.3
"""If the face takes at least this fraction of the width of a square video, it is not cropped."""

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker frames`."""

    size: Annotated[int, Field(ge=2, le=8192)] = 512
    """Maximum width and height of the frames in pixels. Smaller crops are not enlarged."""
    quality: Annotated[int, Field(ge=0, le=100)] = 95
    """JPEG quality of the frames, from 0 to 100."""
    crop: tuple[int, int, int] | None = None
    """Square to crop: left, top and size, in pixels of the video after its rotation has been
    applied. By default, the square is placed around the largest face."""
    filters: str = ""
    """FFmpeg filters that are applied to the video first, in the syntax of ffmpeg's option -vf; for
    example `hqdn3d` reduces noise. This requires `pip install '.[ffmpeg]'`. After the filters,
    interlaced video is deinterlaced and HDR video is converted to SDR, which also happens if no
    filters are given."""
    look_every: AtLeast1 = 10
    """Detect faces in every N-th frame. Smaller values take longer, but follow fast movements
    better."""


def detect_speaker(video: Path, source: Source, every: int) -> np.ndarray:
    """Detect the face of one person in every `every`-th frame.

    The largest face of the video selects the person; in each frame the nearest face is taken.

    Returns:
        float32 [N, 4]: x0, y0, x1, y1 in pixels, one row for each examined frame with a face.

    Raises:
        UserError: fewer than half of the examined frames have a face, or the face is too small.
    """
    examined = -(-frame_count(source) // every)
    images = progress(read_frames(video, source, every), "face", examined)
    boxes = [detections[:, :4] for detections in detect_faces(images, threads=None)]
    with_face = [frame_boxes for frame_boxes in boxes if len(frame_boxes)]
    if not with_face or 2 * len(with_face) < examined:
        raise UserError(
            f"{video} shows a face in only {len(with_face)} of {examined} examined "
            "frames. Cut it to the part in which one person talks to the camera."
        )
    all_boxes = np.concatenate(with_face)
    anchor = _centers(all_boxes[(all_boxes[:, 2] - all_boxes[:, 0]).argmax()])
    speaker = np.stack(
        [
            frame_boxes[np.linalg.norm(_centers(frame_boxes) - anchor, axis=-1).argmin()]
            for frame_boxes in with_face
        ]
    )
    width = np.median(speaker[:, 2] - speaker[:, 0])
    if width < MIN_FACE_WIDTH:
        raise UserError(
            f"{video} shows a face that is {width:.0f} pixels wide. It must be at least "
            f"{MIN_FACE_WIDTH} pixels wide. Use a video with a higher resolution, or one in which "
            "the face is larger."
        )
    if len(all_boxes) > 1.5 * len(with_face):
        logger.warning(
            "%s shows several faces. The crop is placed around the largest one. To select "
            "another face, set `--crop`.",
            video,
        )
    return speaker


def choose_crop(boxes: np.ndarray, width: int, height: int) -> Crop | None:
    """Choose a square that contains head and shoulders in the whole clip.

    In published talking-head clips the frame is square, the detected face is half as wide as
    the frame, and its center is slightly below the middle. The crop is chosen in the same way,
    with room for all positions of the head.

    Args:
        boxes: [N, 4] face boxes in pixels, as returned by `detect_speaker`.
        width, height: size of the frame in pixels.

    Returns:
        A square of even size inside the frame; None if the frame is a portrait already.
    """
    face = float(np.median(boxes[:, 2] - boxes[:, 0]))
    if width == height and width % 2 == 0 and face >= PORTRAIT_FACE_RATIO * width:
        return None
    left, top = np.percentile(boxes[:, :2], 2, axis=0)
    right, bottom = np.percentile(boxes[:, 2:], 98, axis=0)
    ideal = max(right - left, bottom - top) + face
    size = int(min(ideal, width, height)) // 2 * 2
    center_x, center_y = (left + right) / 2, (top + bottom) / 2 - 0.04 * size
    return Crop(
        x=int(np.clip(round(center_x - size / 2), 0, width - size)),
        y=int(np.clip(round(center_y - size / 2), 0, height - size)),
        size=size,
    )


def plan_clip(source: Source, crop: Crop | None, size: int) -> Clip:
    """Return the clip that results from `source`, this crop and at most `size` pixels per side."""
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
    """Write all frames of a clip as `folder`/0.jpg, 1.jpg, ...

    Raises:
        UserError: the video cannot be decoded to its end.
    """
    folder.mkdir()
    to_rgb = UprightConverter(video, clip.source)

    def write(numbered: tuple[int, av.VideoFrame]) -> None:
        i, frame = numbered
        write_image(folder / f"{i}.jpg", crop_and_resize(to_rgb(frame), clip), quality)

    written = ordered_map(write, enumerate(decode_frames(video, clip.source)))
    with one_opencv_thread():
        for _ in progress(written, "frames", clip.frames):
            pass


def crop_and_resize(image: np.ndarray, clip: Clip) -> np.ndarray:
    """Crop and resize a frame of the source to the [H, W, 3] of the clip."""
    if clip.crop:
        x, y, size = clip.crop.x, clip.crop.y, clip.crop.size
        image = image[y : y + size, x : x + size]
    if image.shape[:2] == (clip.height, clip.width):
        return image
    return cv2.resize(image, (clip.width, clip.height), interpolation=cv2.INTER_AREA)


def main(*, video: Path, clip: Output, images: Output, config: Config = Config()) -> None:
    """Extract the frames of a video at 25 fps, cropped around the face.

    Args:
        video: Video to read.
        clip: clip.json to write, which describes the frames.
        images: Folder to write the frames to, as %d.jpg.
        config: Options.
    """
    with filtered(video, config.filters, clip.parent) as readable:
        source = replace(probe(readable), name=video.name)
        _check_source(video, source)
        if config.crop:
            crop = _check_crop(config.crop, video, source)
        else:
            boxes = detect_speaker(readable, source, config.look_every)
            crop = choose_crop(boxes, source.width, source.height)
        planned = plan_clip(source, crop, config.size)
        with atomic_write(images, clip) as (folder, file):
            write_frames(readable, planned, folder, config.quality)
            planned.save(file)


def _check_source(video: Path, source: Source) -> None:
    if frame_count(source) < 2:
        raise UserError(f"{video} is a single image. Use a video.")
    if source.audio_start is None:
        raise UserError(f"{video} has no audio track. Use a video with audio.")
    if frame_count(source) < MIN_FRAMES:
        raise UserError(
            f"{video} lasts {source.duration:.2f} s. Use a video of at least "
            f"{MIN_FRAMES / FPS:.0f} s, or of a few minutes for a good avatar."
        )


def _check_crop(values: Sequence[int], video: Path, source: Source) -> Crop:
    x, y, size = values
    if x < 0 or y < 0 or size < 2 or x + size > source.width or y + size > source.height:
        raise UserError(
            f"The crop {x} {y} {size} (left, top, size) is not inside the frame of {source.width} "
            f"x {source.height} pixels of {video}."
        )
    return Crop(x, y, size)


def _centers(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
