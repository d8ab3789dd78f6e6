"""Verify that a dataset folder is complete, and that its files show the same frames of one clip.

All faults are listed at once, including files that belong to another frame or clip. The facts of
each frame by which `talker lipsync` and `talker check` judge the clip are written to one file.

    talker verify --data data/me --verified data/me/verified.json
"""

import logging
from pathlib import Path

import numpy as np

from talker.clip import Verified, load_per_frame
from talker.core.config import AtLeast1, validated
from talker.core.files import Output
from talker.data import layout
from talker.data.formats import read_au45, read_track_params
from talker.errors import UserError, counted
from talker.head.landmarks68 import mouth_opening
from talker.measure.content import all_landmarks, content_faults
from talker.measure.faults import FolderSpec, folder_faults

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker verify`."""

    sample: AtLeast1 = 12
    """Number of frames whose mask is checked: every pixel must have one of the four mask colors."""


def main(*, data: Path, verified: Output, config: Config = Config()) -> None:
    """Verify that a dataset folder is complete and consistent.

    Args:
        data: Dataset folder.
        verified: JSON file to write: the height and width of the frames, the number of training
            frames, and the measurements of each frame (such as the mouth opening) by which `talker
            lipsync` and `talker check` judge the clip.
        config: Options.
    """
    folder = FolderSpec.of(data, config.sample)
    if faults := folder_faults(folder) or content_faults(folder):
        count = counted(len(faults), "fault")
        raise UserError(
            "\n  ".join([f"{data} is not a complete and consistent dataset ({count})", *faults])
        )
    measure(folder).save(verified)
    logger.info("%s is complete and consistent: %s", data, counted(folder.frames, "frame"))


def measure(folder: FolderSpec) -> Verified:
    """Return the facts of each frame of a folder without faults."""
    landmarks = all_landmarks(folder)
    valid = read_track_params(folder.path / layout.TRACK_PARAMS).valid
    au45 = read_au45(folder.path / layout.ACTION_UNITS)[: folder.frames]
    with np.errstate(divide="ignore", invalid="ignore"):  # frames without a face may hold zeros
        opening = np.nan_to_num(mouth_opening(landmarks), posinf=0.0)
    rival = rival_size(folder)
    return Verified(
        height=folder.height,
        width=folder.width,
        train_frames=folder.train_frames,
        own=folder.own,
        valid=tuple(valid.tolist()),
        mouth_opening=tuple(opening.tolist()),
        face_width=tuple(np.ptp(landmarks[..., 0], axis=1).tolist()),
        au45=tuple(au45.tolist()),
        rival=None if rival is None else tuple(rival.tolist()),
    )


def rival_size(folder: FolderSpec) -> np.ndarray | None:
    """Return the relative size of another face in each frame [T], in a folder that talker made.

    Raises:
        UserError: the sizes are not numbers.
    """
    path = folder.path / layout.LANDMARKS
    rival = load_per_frame(path, folder.frames).get("rival") if folder.own else None
    if rival is not None and (rival.ndim != 1 or rival.dtype.kind not in "iuf"):
        raise UserError(
            f"{path} has an array 'rival' of type {rival.dtype} and shape {list(rival.shape)}. It "
            "must have one number for each frame. Run `talker landmarks` again."
        )
    return None if rival is None else np.nan_to_num(rival.astype(float)).clip(0)
