"""Draw the tracked head and the detected landmarks over the frames, as a video to check by eye.

`talker overlay --clip clip.json --images ori_imgs --landmarks landmarks.npz --params
track_params.pt --video track_overlay.mp4`
"""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from talker.clip import Clip, load_per_frame
from talker.core.config import validated
from talker.core.files import Output
from talker.core.parallel import one_opencv_thread, ordered_map
from talker.core.progress import progress
from talker.data.formats import TrackParams, read_track_params
from talker.errors import UserError
from talker.head.camera import intrinsics, project, viewmats_from_pose
from talker.media.images import read_frame
from talker.media.video_writer import video_writer

SUBPIXEL_BITS = 4
"""Fractional bits of the coordinates passed to OpenCV's drawing functions."""

MESH_COLOR = (120, 220, 255)
"""RGB color of the head in frames whose pose was estimated."""

REJECTED_COLOR = (255, 80, 80)
"""RGB color of the head in rejected frames, whose pose is interpolated."""

LANDMARK_COLOR = (90, 255, 90)
"""RGB color of the detected landmarks."""

OPACITY = 0.35
"""Opacity of the head over the frame."""


@validated
class Config:
    """Options of `talker overlay`."""

    crf: Annotated[int, Field(ge=0, le=51)] = 20
    """Constant rate factor of the H.264 encoder. Smaller values give larger videos of better
    quality."""


def draw_head(
    image: np.ndarray, pixels: np.ndarray, faces: np.ndarray | None, color: tuple[int, int, int]
) -> np.ndarray:
    """Draw the visible edges of a head mesh, or its vertices if it has no triangles, over an image.

    Args:
        image: RGB uint8 [H, W, 3].
        pixels: projections [V, 2] of the vertices.
        faces: int [F, 3] or None.
        color: RGB.

    Returns:
        RGB uint8 [H, W, 3].
    """
    canvas = image.copy()
    if faces is None:
        height, width, _ = image.shape
        x, y = np.floor(pixels[(pixels >= 0).all(1) & (pixels < (width, height)).all(1)]).T
        canvas[y.astype(int), x.astype(int)] = color
    else:
        corners = pixels[faces]
        a, b = np.moveaxis(corners[:, 1:] - corners[:, :1], 1, 0)
        front = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0] < 0
        lines = _fixed_point(corners[front])
        cv2.polylines(canvas, list(lines), True, color, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    return cv2.addWeighted(image, 1 - OPACITY, canvas, OPACITY, 0)


def draw_points(image: np.ndarray, pixels: np.ndarray) -> None:
    """Draw points [P, 2] as dots of one pixel, in place."""
    for x, y in _fixed_point(pixels).tolist():
        radius = 1 << SUBPIXEL_BITS
        cv2.circle(image, (x, y), radius, LANDMARK_COLOR, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _fixed_point(pixels: np.ndarray) -> np.ndarray:
    """Convert pixels (centers at +0.5) to the fixed-point coordinates of OpenCV, int32."""
    return np.round((pixels - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def write_overlay(
    video: Path,
    clip: Clip,
    images: Path,
    points: np.ndarray,
    detected: np.ndarray,
    params: TrackParams,
    crf: int,
) -> None:
    """Write a video of every frame with the tracked head and the landmarks drawn over it.

    Args:
        video: path of the video.
        clip: clip of T frames.
        images: folder of the frames.
        points: face meshes [T, 478, 3] in pixels.
        detected: bool [T], whether a face was detected in the frame.
        params: poses and head mesh.
        crf: constant rate factor of the video.
    """
    K = intrinsics(params.focal, clip.width, clip.height)
    viewmats = viewmats_from_pose(params.euler.astype(float), params.trans.astype(float))

    def draw(i: int) -> np.ndarray:
        image = read_frame(images, clip, i)
        if params.vertices is not None:
            color = MESH_COLOR if params.valid[i] else REJECTED_COLOR
            pixels = project(params.vertices, viewmats[i : i + 1], K)[0]
            image = draw_head(image, pixels, params.faces, color)
        if detected[i]:
            draw_points(image, points[i, :, :2])
        return image

    drawn = ordered_map(draw, range(clip.frames))
    # Drawing takes longer than encoding, so one encoder keeps up.
    with one_opencv_thread(), video_writer(video, crf=crf, groups=False) as write:
        for image in progress(drawn, "overlay", clip.frames):
            write(image)


def main(
    *,
    clip: Path,
    images: Path,
    landmarks: Path,
    params: Path,
    video: Output,
    config: Config = Config(),
) -> None:
    """Draw the tracked head and the detected landmarks over the frames of a clip.

    The head is blue, or red in rejected frames, and the landmarks are green.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg.
        landmarks: landmarks.npz, the face mesh of every frame.
        params: track_params.pt, the poses and the head mesh.
        video: Video to write.
        config: Options.
    """
    described = Clip.load(clip)
    faces = load_per_frame(landmarks, described.frames, "points")
    tracked = read_track_params(params)
    if len(tracked.euler) != described.frames:
        raise UserError(
            f"{params} has {len(tracked.euler)} poses, but {clip} describes {described.frames} "
            "frames. Run `talker track` again."
        )
    write_overlay(video, described, images, faces["points"], faces["valid"], tracked, config.crf)
