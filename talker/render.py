"""Render an avatar as a video: a part of its own clip, or new speech.

    talker render --data data/me --avatar results/me/avatar --video val.mp4 --split val
    talker render --data data/me --avatar results/me/avatar --video hello.mp4 \
        --speech hello.npy --wav hello.wav
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from talker.avatar.attention import write_attention
from talker.avatar.bundle import disclosure_of, load_subject
from talker.avatar.drive import (
    blink_track,
    brow_range,
    brow_track,
    expression_track,
    natural_blinks,
    nearest_valid,
    pose_track,
    recorded_path,
    relaxed_brows,
    scaled_poses,
    why_brows_are_still,
)
from talker.avatar.expression import EXPRESSIONS
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive, Windows, render_frames
from talker.clip import SAMPLES_PER_FRAME
from talker.core.config import AtLeast0, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.data import layout
from talker.dataset import Dataset
from talker.encoders.features import WindowsFile
from talker.errors import UserError
from talker.media.audio import WavFile, clip_sound, write_wav
from talker.media.backdrop import backdrop
from talker.media.disclosure import labeled
from talker.media.ffmpeg import side_by_side as write_side_by_side
from talker.media.signature import Signature
from talker.media.video_writer import FORMATS, video_writer

logger = logging.getLogger(__name__)

PLATE, TRANSPARENT = "plate", "transparent"


@validated
class Config:
    """Options of `talker render`."""

    batch: AtLeast0 = 0
    """Number of frames rendered at once. The default of 0 means 32 on a GPU and 8 on a CPU. Larger
    batches need more memory. The memory needed does not depend on the length of the speech."""
    crf: AtLeast0 = 18
    """Constant rate factor, from 0 (best quality) to 51 (.mp4) or 63 (.webm). Larger values give
    smaller files of lower quality."""
    video_codec: Literal["libx264", "h264_nvenc"] = "libx264"
    """Encoder of an .mp4: `libx264` on the CPU (default), or `h264_nvenc` on an NVIDIA GPU with
    NVENC, which is faster and gives larger files of the same quality."""
    background: str = PLATE
    """Background behind the person: `plate` (that of the clip), `transparent` (for .webm, .mov or a
    folder of PNG images), or the path of an image or of a video, which is repeated when it ends."""
    blinks: Literal["natural", "recorded", "none"] = "natural"
    """Blinks during new speech: `natural` samples the subject's own blinks at random, `recorded`
    repeats the blinks of the recorded frames from which the torso is taken, and `none` keeps the
    eyes open."""
    blink_scale: NonNegative = 1.0
    """Factor by which the eye closure is multiplied. The default of 1 leaves it unchanged."""
    brow_scale: NonNegative = 1.0
    """Factor by which the motion of the brows away from relaxed ones is multiplied, within the
    recorded range. The default of 1 leaves it unchanged."""
    pose_frame: Annotated[int, Field(ge=-1)] = -1
    """Frame of the clip whose head pose is held during new speech. The default of -1 replays the
    recorded poses."""
    pose_scale: NonNegative = 1.0
    """Factor by which the head's motion about its mean pose is multiplied. The torso keeps the
    recorded motion. The default of 1 leaves the motion unchanged."""
    expression_scale: NonNegative = 1.0
    """Factor by which the mouth's motion about its mean shape is multiplied. The default of 1
    leaves it unchanged."""
    label: str = ""
    """Text that is drawn in the lower left corner of every frame, such as "Synthetic". By default,
    there is none. The metadata of the video always states that it is synthetic."""
    signature: Signature = field(default_factory=Signature)
    """Certificate for a signed statement that the video is synthetic (C2PA content credentials)."""
    seed: AtLeast0 = 0
    """Seed of the random numbers of the `natural` blinks."""


@dataclass(frozen=True)
class Tracks:
    """Files that control the head, one row for each output frame, or None."""

    pose: Path | None = None
    blink: Path | None = None
    brows: Path | None = None
    expression: Path | None = None


def split_drive(dataset: Dataset, split: Literal["train", "val"]) -> Drive:
    """Return the drive that replays a split of the clip; invalid frames show the nearest valid one.

    Raises:
        UserError: the split has no valid frame.
    """
    ids = dataset.train_ids if split == "train" else dataset.val_ids
    if len(ids) == 0:
        raise UserError(
            f"{dataset.folder / f'transforms_{split}.json'} lists no tracked frame to render. Run "
            "`talker check` to see why the frames were rejected."
        )
    window_ids = np.arange(ids[0], ids[-1] + 1)
    return Drive(nearest_valid(window_ids, dataset.valid), dataset.speech, window_ids)


def speech_drive(dataset: Dataset, windows: Windows, config: Config = Config()) -> Drive:
    """Return the drive of new speech windows [N, 16, C], N >= 1.

    Pose, brows, torso and background plate play the longest recorded stretch back and forth.

    Raises:
        UserError: the dataset has no valid frame, or lacks the frame whose pose is to be held.
    """
    frames = recorded_path(dataset, len(windows))
    if config.pose_frame >= dataset.frames:
        raise UserError(
            f"The option `pose_frame` is {config.pose_frame}, but the last frame of "
            f"{dataset.folder} is {dataset.frames - 1}. Choose a smaller number, or -1 for the "
            "recorded poses."
        )
    if config.pose_frame >= 0:
        frames = nearest_valid(np.full(len(windows), config.pose_frame), dataset.valid)
    recorded, brows = dataset.eye[frames].T
    closure = {
        "natural": lambda: natural_blinks(
            dataset.eye[dataset.train_ids, 0], len(windows), config.seed
        ),
        "recorded": lambda: recorded,
        "none": lambda: np.zeros(len(windows), np.float32),
    }[config.blinks]()
    return Drive(frames, windows, np.arange(len(windows)), np.stack([closure, brows], axis=1))


def apply_tracks(
    drive: Drive, avatar: Avatar, dataset: Dataset, tracks: Tracks, config: Config
) -> Drive:
    """Return a drive with the motion of the tracks and the scale factors of the options.

    Raises:
        UserError: a file cannot be read or does not fit, or it moves brows that cannot move.
    """
    count = len(drive)
    if tracks.brows or config.brow_scale != 1:
        reason = why_brows_are_still(avatar, dataset)
        if reason and tracks.brows:
            raise UserError(f"{tracks.brows} cannot be used. {reason} Otherwise, omit `--brows`.")
        if reason:
            logger.warning("The option `brow_scale` has no effect. %s", reason)
    if tracks.pose:
        frames, viewmats = pose_track(tracks.pose, count, dataset)
        drive = replace(drive, background_frame_ids=frames, viewmats=viewmats)
    if tracks.expression:
        drive = replace(drive, expression=expression_track(tracks.expression, count, EXPRESSIONS))
    ids = drive.background_frame_ids
    if config.pose_scale != 1:
        viewmats = dataset.viewmats[ids] if drive.viewmats is None else drive.viewmats
        drive = replace(drive, viewmats=scaled_poses(viewmats, config.pose_scale))
    closure, brows = (dataset.eye[ids] if drive.eye is None else drive.eye).T
    if tracks.blink:
        closure = blink_track(tracks.blink, count)
    relaxed = relaxed_brows(dataset)
    if tracks.brows:
        brows = brow_track(tracks.brows, count, relaxed)
    closure = np.clip(config.blink_scale * closure, 0, 1)
    brows = config.brow_scale * brows + (1 - config.brow_scale) * relaxed
    brows = np.clip(brows, *brow_range(dataset))
    eye = np.stack([closure, brows], axis=1).astype(np.float32)
    return replace(drive, eye=eye, expression_scale=config.expression_scale)


def rendered_frames(
    avatar: Avatar, dataset: Dataset, drive: Drive, config: Config
) -> Iterator[np.ndarray]:
    """Return the frames of a drive, with the background and the label of the options.

    They are RGB uint8 [H, W, 3], or RGBA uint8 [H, W, 4] if the background is transparent.

    Raises:
        UserError: the background cannot be read.
    """
    backgrounds = None
    if config.background not in (PLATE, TRANSPARENT):
        backgrounds = backdrop(Path(config.background), dataset.height, dataset.width)
    transparent = config.background == TRANSPARENT
    frames = render_frames(avatar, dataset, drive, config.batch, backgrounds, transparent)
    return (labeled(frame, config.label) for frame in frames) if config.label else frames


def render(
    avatar: Avatar, dataset: Dataset, drive: Drive, sound: Path, video: Path, config: Config
) -> None:
    """Render a drive and write it as a video with `sound`, a file of any format, at its own rate.

    Raises:
        UserError: the background cannot be read, or the video's format cannot be transparent.
    """
    start = time.monotonic()
    transparent = config.background == TRANSPARENT
    kind = FORMATS.get(video.suffix.lower())
    if transparent and kind and not kind.transparent:
        formats = ", ".join(suffix for suffix, one in FORMATS.items() if one.transparent)
        raise UserError(
            f"{video} has a format that cannot store transparency. Use {formats}, or a "
            "folder of .png."
        )
    frames = rendered_frames(avatar, dataset, drive, config)
    disclosure = disclosure_of(avatar, dataset, signature=config.signature)
    with video_writer(
        video, sound, crf=config.crf, codec=config.video_codec, disclosure=disclosure
    ) as write:
        for frame in progress(frames, "render", len(drive)):
            write(frame)
    logger.info(
        "Wrote %s: %d frames of %dx%d pixels, rendered and encoded at %.1f frames/s.",
        *(video, len(drive), dataset.width, dataset.height),
        len(drive) / (time.monotonic() - start),
    )


def main(
    *,
    avatar: Path,
    data: Path | None = None,
    video: Output,
    side_by_side: Output | None = None,
    attention: Output | None = None,
    split: Literal["train", "val"] | None = None,
    speech: Path | None = None,
    wav: Path | None = None,
    sound: Path | None = None,
    pose: Path | None = None,
    blink: Path | None = None,
    brows: Path | None = None,
    expression: Path | None = None,
    config: Config = Config(),
) -> None:
    """Render an avatar over its recorded torso and background, with audio.

    The files given with `--pose`, `--blink`, `--brows` and `--expression` contain one row for each
    output frame. They are .csv files with a header, or .npz files with one array for each column.

    Args:
        avatar: Avatar folder written by `talker train`, or file written by `talker bundle`.
        data: Dataset folder, or file written by `talker pack`. It is not needed for new speech if
            the avatar is a file.
        video: Video to write, with the extension .mp4, .webm or .mov (ProRes 4444). A path without
            extension becomes a folder of PNG images.
        side_by_side: Second video to write (.mp4), with the real frames on the left and the
            rendered frames on the right. It requires `--split`, a `--video` that ends in .mp4, and
            `pip install '.[ffmpeg]'`.
        attention: Folder for videos and still images of the attention, which show how much each
            part of the head attends to the speech, the eye closure and the head pose, or to none of
            these (the null token).
        split: Frames to render with the audio of the clip: `train` (training frames) or `val`
            (held-out frames).
        speech: Features of new speech, written by `talker speech`; an alternative to `--split`.
        wav: Audio of the new speech, written by `talker audio`.
        sound: Original file from which `--wav` was extracted. Its audio is written to the video
            with the original sample rate and channels. By default, the video has the 16 kHz mono
            audio of `--wav`.
        pose: File with head poses: a column `frame` with the number of the frame whose pose is
            used, or the columns rx ry rz tx ty tz in the convention of track_params.pt
            (see docs/conventions.md).
        blink: File with the eye closure: a column `blink` from 0 (open) to 1 (closed), or a column
            `AU45_r` as written by OpenFace.
        brows: File with the motion of the brows: a column `brows` from -1 (fully lowered) through 0
            (relaxed, the median of the recording) to 1 (fully raised), or columns `AU01_r`,
            `AU02_r` and `AU04_r` as written by OpenFace. Values outside the recorded range are
            limited to it.
        expression: File with columns e0 to e9: values of the 10 components of the avatar's
            expression, which replace the predicted ones. The components are the first principal
            components of the expressions that `talker fit` estimated in the training frames.
            Components without a column are 0.
        config: Options.
    """
    _require_consistent(data, video, side_by_side, split, speech, wav, sound)
    model, dataset = load_subject(avatar, data)
    tracks = Tracks(pose, blink, brows, expression)
    if split is not None:
        drive = apply_tracks(split_drive(dataset, split), model, dataset, tracks, config)
        with _excerpt(dataset, drive.window_ids) as part:
            _write_all(model, dataset, drive, part, video, attention, config)
        if side_by_side is not None and data is not None:
            disclosure = disclosure_of(model, dataset, signature=config.signature)
            write_side_by_side(
                data / layout.FRAMES.folder / f"%d{layout.FRAMES.suffix}",
                first=int(drive.window_ids[0]),
                rendered=video,
                size=(dataset.height, dataset.width),
                target=side_by_side,
                crf=config.crf,
                codec=config.video_codec,
                tags=disclosure.tags(),
                finish=lambda path: disclosure.complete(path, ".mp4"),
            )
    elif speech is not None and wav is not None:
        windows = read_speech(speech, wav, dataset)
        drive = speech_drive(dataset, windows, config)
        drive = apply_tracks(drive, model, dataset, tracks, config)
        _write_all(model, dataset, drive, sound or wav, video, attention, config)


def _require_consistent(
    data: Path | None,
    video: Path,
    side_by_side: Path | None,
    split: str | None,
    speech: Path | None,
    wav: Path | None,
    sound: Path | None,
) -> None:
    """Raise a UserError if arguments of `main` exclude or lack each other."""
    if (split is None) == (speech is None) or (speech is None) != (wav is None):
        raise UserError("Give either `--split`, or `--speech` together with `--wav`.")
    if split is not None and sound is not None:
        raise UserError("--sound can only be used with new speech. Also give --speech and --wav.")
    if split is not None and data is None:
        raise UserError(
            "--split also needs `--data`, because the audio of the clip is in its dataset folder."
        )
    if side_by_side is not None:
        if split is None or video.suffix.lower() != ".mp4":
            raise UserError("--side-by-side requires `--split` and a `--video` that ends in .mp4.")
        if data is None or not data.is_dir():
            raise UserError(
                f"{data} is not a dataset folder, but --side-by-side requires one as `--data`."
            )


def _write_all(
    avatar: Avatar,
    dataset: Dataset,
    drive: Drive,
    sound: Path,
    video: Path,
    attention: Path | None,
    config: Config,
) -> None:
    """Write the video of a drive and, if `attention` is a path, the folder of attention maps."""
    render(avatar, dataset, drive, sound, video, config)
    if attention is not None:
        with atomic_write(attention) as (folder,):
            folder.mkdir()
            write_attention(
                *(folder, avatar, dataset, drive, sound, config.batch, config.crf),
                signature=config.signature,
            )


@contextmanager
def _excerpt(dataset: Dataset, frames: np.ndarray) -> Iterator[Path]:
    """Yield the path of a temporary file with the audio of consecutive frames of the clip."""
    start, end = int(frames[0]) * SAMPLES_PER_FRAME, int(frames[-1] + 1) * SAMPLES_PER_FRAME
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / layout.SOUND
        write_wav(part, clip_sound(dataset.folder / layout.SOUND, dataset.frames)[start:end])
        yield part


def read_speech(speech: Path, wav: Path, dataset: Dataset) -> WindowsFile:
    """Open the windows [N, 16, C] of new speech, and compare their number with the audio.

    Raises:
        UserError: the windows are missing, empty or of another shape than those of the dataset, or
            the length of the audio differs by a frame or more.
    """
    windows, shape = WindowsFile(speech), dataset.speech.shape[1:]
    if windows.shape[1:] != shape or len(windows) == 0:
        raise UserError(
            f"{speech} has the shape {list(windows.shape)}. It must be [N, {shape[0]}, "
            f"{shape[1]}] with N >= 1, as in the dataset. Write it with `talker speech "
            "--statistics FILE`, where FILE is the speech.npz of the avatar."
        )
    frames, samples = len(windows), len(WavFile(wav))
    if abs(samples - frames * SAMPLES_PER_FRAME) >= SAMPLES_PER_FRAME:
        raise UserError(
            f"{wav} lasts {samples / SAMPLES_PER_FRAME:.1f} frames, but {speech} has {frames} "
            "windows. Write both from the same audio, with `talker audio` and `talker speech`."
        )
    return windows
