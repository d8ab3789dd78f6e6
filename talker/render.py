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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from talker.avatar.model import Avatar
from talker.avatar.renderer import (
    Drive,
    load_avatar,
    longest_run,
    nearest_valid,
    ping_pong,
    render_frames,
)
from talker.clip import SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.errors import UserError
from talker.files import Output
from talker.media.audio import read_wav, write_wav
from talker.media.video import video_writer
from talker.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Options of `talker render`."""

    batch: int = 8
    """frames rendered at once; it bounds the memory, whatever the length of the speech"""
    crf: int = 18
    """quality of the H.264 video: 0 is lossless, 51 the worst"""


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


def speech_drive(dataset: Dataset, windows: np.ndarray) -> Drive:
    """Drive with new speech, windows [N, 16, C]: N frames, N >= 1, of any length.

    Pose, blinks, torso and plate walk to and fro over the longest run of valid recorded frames.

    Raises:
        UserError: the dataset has no valid frame.
    """
    recorded = longest_run(dataset.valid)
    if len(recorded) == 0:
        raise UserError(f"{dataset.folder}: no frame is valid, so there is no pose to show")
    heard = np.arange(len(windows))
    return Drive(recorded[ping_pong(len(windows), len(recorded))], windows, heard)


def render(
    avatar: Avatar, dataset: Dataset, drive: Drive, wav: Path, video: Path, config: Config
) -> None:
    """Write an mp4 of the drive's frames with the sound of `wav` (16 kHz mono)."""
    start = time.monotonic()
    frames = render_frames(avatar, dataset, drive, config.batch)
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
    config: Config = Config(),
) -> None:
    """Render an avatar over its recorded torso and background, with sound.

    Args:
        data: dataset folder.
        avatar: folder that `talker train` wrote.
        video: mp4 to write.
        split: replay this part of the clip with its own sound.
        speech: or: features of new speech, from `talker speech`.
        wav: the sound they were made from, from `talker audio`.
        config: options.
    """
    if (split is None) == (speech is None) or (speech is None) != (wav is None):
        raise UserError("expected either --split, or --speech together with --wav")
    model = load_avatar(avatar)
    dataset = Dataset.load(data, model.config.image_size, model.config.encoder)
    if split is not None:
        drive = split_drive(dataset, split)
        with _excerpt(data / "aud.wav", drive.heard) as sound:
            render(model, dataset, drive, sound, video, config)
    elif speech is not None and wav is not None:
        windows = _read_windows(speech, dataset.speech.shape[1:])
        _check_length(wav, speech, len(windows))
        render(model, dataset, speech_drive(dataset, windows), wav, video, config)


@contextmanager
def _excerpt(wav: Path, frames: np.ndarray) -> Iterator[Path]:
    """The sound of consecutive frames, cut by sample index, as a file for the time being."""
    samples = read_wav(wav)
    start, end = int(frames[0]) * SAMPLES_PER_FRAME, int(frames[-1] + 1) * SAMPLES_PER_FRAME
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / wav.name
        write_wav(part, samples[start:end])
        yield part


def _read_windows(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Windows [N, *shape], left on disk.

    Raises:
        UserError: the file is missing, no array, empty, or of another feature.
    """
    try:
        windows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as .npy ({error})") from error
    if windows.shape[1:] != shape or len(windows) == 0:
        raise UserError(
            f"{path}: expected speech windows {('N', *shape)} with N >= 1 like the dataset's, "
            f"found {windows.shape}; make them with `talker speech` and the dataset's statistics"
        )
    return windows


def _check_length(wav: Path, speech: Path, frames: int) -> None:
    samples = len(read_wav(wav))
    if abs(samples - frames * SAMPLES_PER_FRAME) >= SAMPLES_PER_FRAME:
        raise UserError(
            f"{wav}: lasts {samples / SAMPLES_PER_FRAME:.1f} frames, but {speech} has {frames} "
            "windows; make both from the same sound with `talker audio` and `talker speech`"
        )
