"""Find the cuts of a clip, and reject frames whose face cannot be used.

`talker shots --clip clip.json --images ori_imgs --landmarks landmarks.npz --shots shots.npz`
"""

import logging
from pathlib import Path

import numpy as np

from talker.clip import Clip, load_per_frame
from talker.core.config import AtLeast1, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.data.formats import Shots, write_shots
from talker.errors import UserError
from talker.head.shots import find_cuts, outside_fraction

logger = logging.getLogger(__name__)

MAX_OUTSIDE = 0.1
"""Fraction of mesh points outside the image above which a frame is rejected. In a close shot whose
border cuts the chin, up to 0.03 of the points are outside."""


@validated
class Config:
    """Which frames are used."""

    all_segments: bool = False
    """Use all shots (segments) of a clip that contains cuts. A shot ends at a cut to another camera
    or scene; a jump cut within the same camera view does not end it. By default, only the longest
    shot is used."""
    min_face: NonNegative = 64.0
    """Minimum width of a usable face in pixels."""
    min_frames: AtLeast1 = 25
    """Minimum number of frames with a usable face in the shots that are used."""


def find_shots(
    clip: Clip, images: Path, points: np.ndarray, valid: np.ndarray, config: Config
) -> Shots:
    """Find the cuts of a clip, and reject frames whose face cannot be used.

    Args:
        clip: the clip.
        images: folder of its frames.
        points: face meshes [T, 478, 3] in pixels.
        valid: bool [T], frames in which a face was detected.
        config: options.

    Raises:
        UserError: too few frames show a usable face.
    """
    shots = Shots([], reject_reasons(clip, points, valid, config))
    shots.cuts = find_cuts(clip, images, points, shots.accepted_frames)
    if shots.cuts and not config.all_segments:
        keep_longest_shot(shots)
    require_faces(images, points[valid, :, 0], shots, config)
    return shots


def reject_reasons(clip: Clip, points: np.ndarray, valid: np.ndarray, config: Config) -> list[str]:
    """Return why each frame is rejected because of its mesh [T, 478, 3]; empty if it is not."""
    width = np.ptp(points[..., 0].astype(float), axis=1)
    rejected = {
        f"the face is narrower than {config.min_face:g} pixels": width < config.min_face,
        "the face leaves the image": outside_fraction(clip, points) > MAX_OUTSIDE,
        "no face": ~valid,
    }
    reasons = [""] * clip.frames
    for reason, bad in rejected.items():
        for i in np.flatnonzero(bad):
            reasons[i] = reason
    return reasons


def keep_longest_shot(shots: Shots) -> None:
    """Reject the frames of all shots except the shot with the most accepted frames."""
    ids = shots.accepted_frames
    longest = max(np.split(ids, np.searchsorted(ids, shots.cuts)), key=len)
    shots.reject(np.setdiff1d(ids, longest), "another shot")


def require_faces(images: Path, x: np.ndarray, shots: Shots, config: Config) -> None:
    """Raise a UserError if too few frames show a whole face that is large enough.

    Args:
        images: folder of the frames.
        x: horizontal coordinates [N, 478] of the meshes of all frames with a face, in pixels.
        shots: the shots.
        config: options.
    """
    count = len(shots.accepted_frames)
    if count < config.min_frames:
        width = np.ptp(x, axis=1) if len(x) else np.zeros(1)
        raise UserError(
            f"Only {count} of the {len(shots.reasons)} frames in {images} are usable. A "
            "usable frame belongs to a selected shot and shows the whole face, at least "
            f"{config.min_face:g} pixels wide. At least {config.min_frames} such frames are "
            f"required. (The median face is {np.median(width):.0f} pixels wide.) Use a longer "
            "clip, or one in which the face is larger."
        )


def main(
    *, clip: Path, images: Path, landmarks: Path, shots: Output, config: Config = Config()
) -> None:
    """Find the cuts of the clip, and reject frames whose face cannot be used.

    Args:
        clip: clip.json of the dataset.
        images: Folder of the frames, %d.jpg.
        landmarks: landmarks.npz, the face mesh of every frame.
        shots: shots.npz to write: the cuts, and why frames were rejected.
        config: Options.
    """
    described = Clip.load(clip)
    faces = load_per_frame(landmarks, described.frames, "points")
    found = find_shots(described, images, faces["points"], faces["valid"], config)
    with atomic_write(shots) as (scratch,):
        write_shots(scratch, found)
    logger.info(
        "%d of %d frames show a usable face. Cuts to another shot: %d.",
        len(found.accepted_frames),
        described.frames,
        len(found.cuts),
    )
