"""A video of the tracked head mesh drawn over the frames."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from talker.clip import Clip
from talker.core.progress import progress
from talker.head.camera import intrinsics, project
from talker.head.track_result import Track
from talker.media.images import read_numbered
from talker.media.video_writer import video_writer

SUBPIXEL_BITS = 4
"""Fractional bits of the coordinates passed to OpenCV's drawing functions."""

MESH_COLOR = (120, 220, 255)
"""RGB color of the head mesh in tracked frames."""

REJECTED_COLOR = (255, 80, 80)
"""RGB color of the head mesh in rejected frames."""

POINT_COLOR = (90, 255, 90)
"""RGB color of the face points."""


def draw_overlay(
    image: UInt8[np.ndarray, "H W 3"], track: Track, frame: int, K: Float[np.ndarray, "3 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the head mesh and the face points of a frame over its image.

    Args:
        image: RGB uint8 [H, W, 3].
        track: the tracked clip.
        frame: index of the frame.
        K: [3, 3], pixels.

    Returns:
        RGB uint8 [H, W, 3].
    """
    view = track.viewmats[frame : frame + 1]
    scale = 2**SUBPIXEL_BITS
    corners = project(track.vertices, view, K)[0][track.faces]
    a, b = np.moveaxis(corners[:, 1:] - corners[:, :1], 1, 0)
    front = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0] < 0
    lines = np.round((corners[front] - 0.5) * scale).astype(np.int32)
    canvas = image.copy()
    color = REJECTED_COLOR if frame in track.rejected else MESH_COLOR
    cv2.polylines(canvas, list(lines), True, color, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    blended = cv2.addWeighted(image, 0.65, canvas, 0.35, 0)
    shape = track.mesh + np.tensordot(track.expression[frame], track.basis, 1)
    for x, y in np.round((project(shape, view, K)[0] - 0.5) * scale).astype(int).tolist():
        cv2.circle(blended, (x, y), scale, POINT_COLOR, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return blended


def write_overlay(path: Path, clip: Clip, images: Path, track: Track) -> None:
    """Write a video of every frame with the tracked head; the mesh is red in rejected frames."""
    K = intrinsics(track.focal, clip.width, clip.height)
    with video_writer(path, crf=20) as write:
        frames = progress(read_numbered(images, clip), "overlay", clip.frames)
        for i, image in enumerate(frames):
            write(draw_overlay(image, track, i, K))
