"""Make a video from an avatar: the held-out or the training part of its clip, or any new speech.

    talker render --data data/me --avatar results/me/avatar --video val.mp4 --split val
    talker render --data data/me --avatar results/me/avatar --video hello.mp4 \
        --speech hello.npy --wav hello.wav
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from talker.avatar.drive import (
    blink_track,
    expression_track,
    natural_blinks,
    nearest_valid,
    pose_track,
    recorded_path,
    scaled_poses,
)
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, Windows, avatar_dataset, load_avatar, render_frames
from talker.avatar.speech_prior import EXPRESSIONS
from talker.clip import SAMPLES_PER_FRAME
from talker.core.config import AtLeast0, validated
from talker.core.files import Output
from talker.core.progress import progress
from talker.dataset import Dataset
from talker.encoders.features import WindowsFile
from talker.errors import UserError
from talker.media.audio import WavFile, write_wav
from talker.media.backdrop import backdrop
from talker.media.video_writer import FORMATS, video_writer

logger = logging.getLogger(__name__)

PLATE, TRANSPARENT = "plate", "transparent"


@validated
class Config:
    """Options of `talker render`."""

    batch: AtLeast0 = 0
    """frames rendered at once; 0: 32 on a GPU, 8 without. It bounds the memory, however long the
    speech"""
    crf: int = 18
    """quality of an .mp4 or .webm: 0 is lossless, 51 (63) the worst"""
    background: str = PLATE
    """what stands behind the person: plate (that of the clip), transparent (.webm, .mov or a folder
    of .png), or the path of a picture or a video, which starts anew when it ends"""
    blinks: Literal["natural", "recorded", "none"] = "natural"
    """for new speech: drawn at random from the subject's own, those of the replayed frames, none"""
    blink_scale: float = 1.0
    """factor of the eyes' closure"""
    pose_frame: int = -1
    """for new speech: hold the pose of this frame; -1 moves on as recorded"""
    pose_scale: float = 1.0
    """factor of the head's motion about its mean; the torso stays as recorded"""
    expression_scale: float = 1.0
    """factor of the mouth's motion about its mean"""
    seed: int = 0
    """of the natural blinks"""


@dataclass(frozen=True)
class Tracks:
    """Files that say what the head does, a row for each output frame; None: nothing is said."""

    pose: Path | None = None
    blink: Path | None = None
    expression: Path | None = None


def split_drive(dataset: Dataset, split: Literal["train", "val"]) -> Drive:
    """Replay a split with its own sound; a frame that is not valid shows its nearest valid one.

    Raises:
        UserError: the split has no valid frame.
    """
    ids = dataset.train_ids if split == "train" else dataset.val_ids
    if len(ids) == 0:
        raise UserError(
            f"{dataset.folder / f'transforms_{split}.json'}: holds no valid frame to render"
        )
    heard = np.arange(ids[0], ids[-1] + 1)
    return Drive(nearest_valid(heard, dataset.valid), dataset.speech, heard)


def speech_drive(dataset: Dataset, windows: Windows, config: Config = Config()) -> Drive:
    """Drive with new speech, windows [N, 16, C]: N frames, N >= 1, of any length.

    Pose, torso and plate walk to and fro over the longest recorded stretch.

    Raises:
        UserError: the dataset has no valid frame, or not the one whose pose is to be held.
    """
    frames = recorded_path(dataset, len(windows))
    if config.pose_frame >= dataset.frames:
        raise UserError(
            f"pose_frame: expected at most {dataset.frames - 1}, found {config.pose_frame}"
        )
    if config.pose_frame >= 0:
        frames = nearest_valid(np.full(len(windows), config.pose_frame), dataset.valid)
    eye = {
        "natural": lambda: natural_blinks(
            dataset.eye[dataset.train_ids], len(windows), config.seed
        ),
        "recorded": lambda: dataset.eye[frames],
        "none": lambda: np.zeros(len(windows), np.float32),
    }[config.blinks]()
    return Drive(frames, windows, np.arange(len(windows)), eye)


def directed(drive: Drive, dataset: Dataset, tracks: Tracks, config: Config) -> Drive:
    """A drive as the tracks and the scale factors want it."""
    count = len(drive)
    if tracks.pose:
        frames, viewmats = pose_track(tracks.pose, count, dataset)
        drive = replace(drive, frames=frames, viewmats=viewmats)
    if tracks.blink:
        drive = replace(drive, eye=blink_track(tracks.blink, count))
    if tracks.expression:
        drive = replace(drive, expression=expression_track(tracks.expression, count, EXPRESSIONS))
    if config.pose_scale != 1:
        moving = dataset.viewmats[drive.frames] if drive.viewmats is None else drive.viewmats
        drive = replace(drive, viewmats=scaled_poses(moving, config.pose_scale))
    if config.blink_scale != 1:
        eye = dataset.eye[drive.frames] if drive.eye is None else drive.eye
        drive = replace(drive, eye=np.clip(config.blink_scale * eye, 0, 1).astype(np.float32))
    return replace(drive, expression_scale=config.expression_scale)


def render(
    avatar: Avatar, dataset: Dataset, drive: Drive, wav: Path, video: Path, config: Config
) -> None:
    """Write a video of the drive's frames with the sound of `wav` (16 kHz mono).

    Raises:
        UserError: the background cannot be read, or the video's format cannot be transparent.
    """
    start = time.monotonic()
    transparent = config.background == TRANSPARENT
    kind = FORMATS.get(video.suffix.lower())
    if transparent and kind and not kind.transparent:
        able = ", ".join(suffix for suffix, one in FORMATS.items() if one.transparent)
        raise UserError(f"{video}: cannot be transparent; take {able}, or a folder of .png")
    own = config.background in (PLATE, TRANSPARENT)
    plates = None if own else backdrop(Path(config.background), dataset.height, dataset.width)
    frames = render_frames(avatar, dataset, drive, config.batch, plates, transparent)
    with video_writer(video, wav, crf=config.crf) as write:
        for frame in progress(frames, "render", len(drive)):
            write(frame)
    logger.info(
        "%s: %d frames of %dx%d, %.1f frames/s with encoding",
        *(video, len(drive), dataset.width, dataset.height),
        len(drive) / (time.monotonic() - start),
    )


def main(
    *,
    data: Path,
    avatar: Path,
    video: Output,
    split: Literal["train", "val"] | None = None,
    speech: Path | None = None,
    wav: Path | None = None,
    pose: Path | None = None,
    blink: Path | None = None,
    expression: Path | None = None,
    config: Config = Config(),
) -> None:
    """Render an avatar over its recorded torso and background, with sound.

    The tracks have a row for each output frame: .csv with a header, or .npz of arrays [N].

    Args:
        data: dataset folder, or the file of `talker pack`.
        avatar: folder that `talker train` wrote.
        video: .mp4, .webm, .mov (ProRes 4444), or a folder of .png, to write.
        split: replay this part of the clip with its own sound.
        speech: or: features of new speech, from `talker speech`.
        wav: the sound they were made from, from `talker audio`.
        pose: a column `frame` (whose pose is replayed), or rx ry rz tx ty tz as in track_params.pt.
        blink: a column `blink`, 0 open to 1 closed, or OpenFace's `AU45_r`.
        expression: columns e0 to e9 instead of what the speech tells.
        config: options.
    """
    if (split is None) == (speech is None) or (speech is None) != (wav is None):
        raise UserError("expected either --split, or --speech together with --wav")
    model = load_avatar(avatar)
    dataset = avatar_dataset(data, model)
    tracks = Tracks(pose, blink, expression)
    if split is not None:
        drive = directed(split_drive(dataset, split), dataset, tracks, config)
        with _excerpt(dataset, drive.heard) as sound:
            render(model, dataset, drive, sound, video, config)
    elif speech is not None and wav is not None:
        windows = _read_windows(speech, dataset.speech.shape[1:])
        _check_length(wav, speech, len(windows))
        drive = directed(speech_drive(dataset, windows, config), dataset, tracks, config)
        render(model, dataset, drive, wav, video, config)


@contextmanager
def _excerpt(dataset: Dataset, frames: np.ndarray) -> Iterator[Path]:
    """The sound of consecutive frames, cut by sample index, as a file for the time being."""
    start, end = int(frames[0]) * SAMPLES_PER_FRAME, int(frames[-1] + 1) * SAMPLES_PER_FRAME
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "aud.wav"
        write_wav(part, dataset.sound[start:end])
        yield part


def _read_windows(path: Path, shape: tuple[int, ...]) -> WindowsFile:
    """Windows [N, *shape]; UserError if they are missing, none, or of another feature."""
    windows = WindowsFile(path)
    if windows.shape[1:] != shape or len(windows) == 0:
        raise UserError(
            f"{path}: expected speech windows {('N', *shape)} with N >= 1 like the dataset's, "
            f"found {windows.shape}; make them with `talker speech` and the dataset's statistics"
        )
    return windows


def _check_length(wav: Path, speech: Path, frames: int) -> None:
    samples = len(WavFile(wav))
    if abs(samples - frames * SAMPLES_PER_FRAME) >= SAMPLES_PER_FRAME:
        raise UserError(
            f"{wav}: lasts {samples / SAMPLES_PER_FRAME:.1f} frames, but {speech} has {frames} "
            "windows; make both from the same sound with `talker audio` and `talker speech`"
        )
