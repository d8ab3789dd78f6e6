"""Adopt a dataset folder that the scripts of another method prepared, without changing its files.

    talker adopt --data data/me

Recognizes the conventions of AD-NeRF, RAD-NeRF, ER-NeRF, GaussianTalker, TalkingGaussian and
SyncTalk by the names of the files, prints a table of what is present, missing and inconsistent, and
writes clip.json, which the stages `speech`, `landmarks`, `blink` and `layers` need.
"""

import logging
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from talker.clip import (
    FPS,
    SOUND_TOLERANCE,
    Clip,
    Source,
    load_array,
    load_json,
    train_length,
)
from talker.core.config import AtLeast1, validated
from talker.core.files import Output
from talker.data import layout
from talker.data.formats import (
    TrackParams,
    read_eye,
    read_table,
    read_track_params,
    read_transforms,
)
from talker.data.layout import FrameFiles
from talker.errors import UserError, counted
from talker.head.camera import transform_matrices
from talker.measure.faults import split_of_transforms
from talker.media.audio import decode_audio
from talker.media.images import image_header

logger = logging.getLogger(__name__)

FAMILIES = {
    "SyncTalk": ("bs.npy", "aud_ave.npy", "parsing/0_face.png"),
    "TalkingGaussian": ("teeth_mask",),
    "ER-NeRF": ("aud_hu.npy",),
    "RAD-NeRF": ("aud_eo.npy",),
    "AD-NeRF": ("HeadNeRF_config.txt", "head_imgs", "com_imgs", "transforms_val_ba.json"),
    "GaussianTalker": (layout.DEEPSPEECH_FEATURES,),
}
"""Files and folders that only the scripts of one method write, by the name of the method."""

SPEECH_FILES = ("aud.npy", "aud_eo.npy", "aud_hu.npy", "aud_ave.npy", layout.DEEPSPEECH_FEATURES)
"""Speech features of the published methods; only DeepSpeech's can train an avatar here."""

POSE_TOLERANCE = 1e-4
"""Largest difference between a matrix of a transforms file and the tracked pose."""

TRACK_AGAIN = (
    f"Move {layout.TRACK_PARAMS}, {layout.TRANSFORMS_TRAIN} and {layout.TRANSFORMS_VAL} to another "
    "folder; `talker track` then estimates the poses"
)
"""What to do if the poses cannot be used."""

Status = Literal["present", "derived", "missing", "inconsistent"]


@validated
class Config:
    """How a folder is adopted."""

    listed: AtLeast1 = 5
    """The command prints a table with a row for each kind of file. If a row reports that files of
    some frames are missing or inconsistent, it lists at most this number of frames, and counts the
    others."""


@dataclass(frozen=True)
class Row:
    """A row of the table: a file or kind of file and its state."""

    name: str
    status: Status
    text: str = ""


@dataclass(frozen=True)
class Folder:
    """What the rows of the table are computed from."""

    path: Path
    frames: int
    """number of tracked frames, or of images if there are no poses"""
    images: frozenset[int]
    """numbers of the frames in ori_imgs"""
    params: TrackParams | None
    skipped: frozenset[int]
    """frames without landmarks, which the published tracker omitted, so that later poses are
    shifted"""
    config: Config

    def some(self, ids: Set[int]) -> str:
        """Return a phrase such as `frames 3, 4, 5 and 17 more`."""
        named = ", ".join(map(str, sorted(ids)[: self.config.listed]))
        rest = len(ids) - self.config.listed
        more = f" and {rest} more" if rest > 0 else ""
        return f"{'frame' if len(ids) == 1 else 'frames'} {named}{more}"


def recognize(path: Path) -> str:
    """Return the name of the method whose scripts prepared a folder, by the names of its files."""
    for family, names in FAMILIES.items():
        if any((path / name).exists() for name in names):
            return family
    return "the AD-NeRF family"


def open_folder(path: Path, config: Config) -> Folder:
    """Read the frame numbers and the poses of a folder.

    Raises:
        UserError: there are no frames.
    """
    kind = layout.FRAMES
    images = frozenset(
        int(file.stem)
        for file in (path / kind.folder).glob(f"*{kind.suffix}")
        if re.fullmatch(r"0|[1-9]\d{0,8}", file.stem)
    )
    if not images:
        raise UserError(f"{path} contains no frames {kind.relative(0)}, {kind.relative(1)}, ...")
    try:
        params = read_track_params(path / layout.TRACK_PARAMS)
    except UserError:
        return Folder(path, max(images) + 1, images, None, frozenset(), config)
    frames = len(params.euler)
    untracked = frozenset(i for i in images if not layout.FRAME_LANDMARKS.path(path, i).is_file())
    if len(images) - frames == len(untracked) and min(untracked, default=frames) < frames:
        return Folder(path, max(images) + 1, images, params, untracked, config)
    return Folder(path, frames, images, params, frozenset(), config)


def frame_rows(folder: Folder) -> Iterator[Row]:
    """Compare the files that every frame has with the tracked frames."""
    expected = set(range(folder.frames))
    if 0 not in folder.images:
        first = min(folder.images)
        yield Row(
            "frame numbers",
            "inconsistent",
            f"the frames start at {first}, so the pose and the audio of frame i belong to image i "
            f"+ {first}. Rename the images so that they start at 0",
        )
    elif beyond := set(folder.images - expected):
        spare = len(beyond) <= layout.SPARE_ROWS
        yield Row(
            "frame numbers",
            "present" if spare else "inconsistent",
            f"{folder.some(beyond)} {_have(beyond)} no pose"
            + (" and will not be used" if spare else f". {TRACK_AGAIN}"),
        )
    for kind in (*layout.IMAGES, layout.FRAME_LANDMARKS):
        absent = {i for i in expected if not kind.path(folder.path, i).is_file()}
        if kind is layout.FRAME_LANDMARKS:
            yield _landmarks_row(folder, absent)
        elif kind is not layout.FRAMES or 0 in folder.images:
            yield _images_row(folder, kind, absent)


def _images_row(folder: Folder, kind: FrameFiles, absent: set[int]) -> Row:
    name = f"{kind.folder}/*{kind.suffix}"
    if not absent:
        return Row(name, "present", f"{folder.frames} frames")
    if len(absent) == folder.frames:
        return Row(name, "missing", f"`talker {kind.stage}` writes them")
    text = (
        f"{folder.some(absent)} {_is(absent)} missing. Restore {_them(absent)} from another copy "
        "of the dataset"
    )
    if kind is not layout.FRAMES:
        text += f", or move {kind.folder} to another folder; `talker {kind.stage}` then writes it"
    return Row(name, "inconsistent", text)


def _landmarks_row(folder: Folder, absent: set[int]) -> Row:
    name = f"{layout.FRAME_LANDMARKS.folder}/*{layout.FRAME_LANDMARKS.suffix}"
    if not absent:
        return Row(name, "present", f"{folder.frames} frames")
    if len(absent) == folder.frames:
        return Row(name, "missing", "`talker landmarks` writes them")
    text = f"{folder.some(absent)} {_have(absent)} no landmarks; `talker landmarks` writes them"
    return Row(name, "missing", text)


def _is(ids: Set[int]) -> str:
    return "is" if len(ids) == 1 else "are"


def _have(ids: Set[int]) -> str:
    return "has" if len(ids) == 1 else "have"


def _them(ids: Set[int]) -> str:
    return "it" if len(ids) == 1 else "them"


def pose_rows(folder: Folder) -> Iterator[Row]:
    """Check the poses, and that the transforms files contain the same ones."""
    name = layout.TRACK_PARAMS
    if not (folder.path / name).exists():
        yield Row(name, "missing", "`talker track` writes it")
        return
    if folder.params is None:
        yield from _fault(name, lambda: read_track_params(folder.path / name))
        return
    if folder.skipped:
        yield Row(
            name,
            "inconsistent",
            f"{len(folder.params.euler)} poses for {len(folder.images)} frames, and "
            f"{folder.some(folder.skipped)} {_have(folder.skipped)} no landmarks: the tracker "
            f"skipped {_them(folder.skipped)}, so every later pose belongs to another frame. "
            f"{TRACK_AGAIN}",
        )
        return
    yield Row(name, "present", f"{folder.frames} poses, focal length {folder.params.focal:.1f} px")
    if folder.params.vertices is None:
        yield Row(
            f"{name}: vertices",
            "inconsistent",
            f"the head mesh, from which training starts, is missing. {TRACK_AGAIN} and the mesh",
        )
    matrices = transform_matrices(
        folder.params.euler.astype(float), folder.params.trans.astype(float)
    )
    split = split_of_transforms(folder.path, folder.frames, train_length(folder.frames))
    halves = {
        layout.TRANSFORMS_TRAIN: range(split),
        layout.TRANSFORMS_VAL: range(split, folder.frames),
    }
    for file, ids in halves.items():
        if not (folder.path / file).exists():
            yield Row(file, "missing", "`talker track` writes it")
        else:
            yield from _fault(
                file, lambda file=file, ids=ids: _transforms(folder, file, ids, matrices)
            )


def _transforms(folder: Folder, name: str, ids: range, matrices: np.ndarray) -> str:
    """Return what a transforms file contains; UserError if it differs from the poses."""
    listed = read_transforms(folder.path / name, folder.frames)
    if foreign := set(listed.ids.tolist()) - set(ids):
        raise UserError(
            f"it lists {folder.some(foreign)}, but must list only frames {ids[0]} to "
            f"{ids[-1]}. {TRACK_AGAIN}"
        )
    expected = matrices[listed.ids]
    for unit, scale in (("m", 1.0), ("dm, as in track_params.pt", 10.0)):
        scaled = expected.copy()
        scaled[:, :3, 3] *= scale
        if np.abs(listed.matrices - scaled).max(initial=0) < POSE_TOLERANCE * scale:
            return f"{len(listed.ids)} frames, translations in {unit}"
    for shift in (1, -1):
        shifted = np.roll(matrices, -shift, axis=0)[listed.ids]
        inner = slice(1, len(ids) - 1)
        if np.abs(listed.matrices - shifted)[inner].max(initial=0) < POSE_TOLERANCE:
            raise UserError(
                "the frame numbers are shifted: the pose of frame i is that of frame "
                f"i{shift:+d} in {layout.TRACK_PARAMS}. {TRACK_AGAIN}"
            )
    raise UserError(f"the poses differ from those in {layout.TRACK_PARAMS}. {TRACK_AGAIN}")


def blink_rows(folder: Folder) -> Iterator[Row]:
    """Check that au.csv has a row for each frame, and at which rate it was measured."""
    name = layout.ACTION_UNITS
    path = folder.path / name
    if not path.exists():
        yield Row(name, "missing", "`talker blink` writes it, after `talker landmarks`")
        return
    yield from _fault(name, lambda: _blinks(path, folder.frames))


def _blinks(path: Path, frames: int) -> str:
    count = len(read_eye(path))
    if frames <= count <= frames + layout.SPARE_ROWS:
        return counted(count, "row")
    rate = _rate(read_table(path).get("timestamp", []))
    if rate is not None and abs(rate - FPS) > 0.1:
        raise UserError(
            f"it has {count} rows at {rate:g} frames per second, but must have {frames} rows at "
            f"{FPS}. Rename it, for example to openface.csv, and set `blink: {{backend: openface, "
            "table: FILE}`, so that `talker blink` resamples the rows"
        )
    raise UserError(
        f"it has {count} rows for {frames} frames. Run OpenFace on the frames in "
        f"{layout.FRAMES.folder}, or move the file to another folder, so that `talker "
        "blink` writes it"
    )


def _rate(times: list[str]) -> float | None:
    """Return the rows per second of OpenFace's timestamps, or None if there are none."""
    try:
        values = np.array(times, float)
    except ValueError:
        return None
    duration = values[-1] - values[0] if len(values) > 1 else 0.0
    return round(float((len(values) - 1) / duration), 2) if duration > 0 else None


def sound_rows(folder: Folder) -> Iterator[Row]:
    """Check the duration of the audio and the length of the speech features."""
    path = folder.path / layout.SOUND
    if not path.exists():
        yield Row(layout.SOUND, "missing", "`talker audio` extracts it from the video")
    else:
        yield from _fault(layout.SOUND, lambda: _duration(path, folder.frames))
    for name in SPEECH_FILES:
        if (folder.path / name).exists():
            yield from _fault(name, lambda name=name: _features(folder.path / name, folder.frames))
    yield Row(
        layout.speech_features("ENCODER"),
        "derived",
        "`talker speech` extracts the features of any other encoder from aud.wav",
    )


def _duration(path: Path, frames: int) -> str:
    seconds = len(decode_audio(path)) / 16_000
    excess = seconds - frames / FPS
    if abs(excess) > SOUND_TOLERANCE:
        raise UserError(
            f"it lasts {seconds:.2f} s, but the {frames} frames last {frames / FPS:.2f} s. Replace "
            "it with the audio of the part of the video that the frames show, or move the file to "
            "another folder, so that `talker audio` extracts it from the video"
        )
    return f"{seconds:.2f} s"


def _features(path: Path, frames: int) -> str:
    shape = load_array(path).shape
    if not frames <= shape[0] <= frames + layout.SPARE_ROWS:
        raise UserError(
            f"it has {shape[0]} windows for {frames} frames. Extract them from {layout.SOUND} "
            "again, or move the file to another folder, so that talker extracts the "
            "features that it needs"
        )
    return f"{list(shape)}"


def plate_rows(folder: Folder) -> Iterator[Row]:
    """Check that the background plate is there."""
    if (folder.path / layout.PLATE).exists():
        yield Row(layout.PLATE, "present")
    else:
        yield Row(layout.PLATE, "missing", "`talker background` writes it")


def clip_rows(folder: Folder) -> Iterator[Row]:
    """Yield a row that says whether clip.json exists."""
    path = folder.path / layout.CLIP
    if not path.exists():
        yield Row(layout.CLIP, "derived", "from the frames and the poses")
    else:
        yield from _fault(layout.CLIP, lambda: f"{load_json(path).get('frames')} frames")


def _fault(name: str, describe: Callable[[], object]) -> Iterator[Row]:
    """Yield a row that says what `describe` returns, or the error that it raises."""
    try:
        text = describe()
        yield Row(name, "present", text if isinstance(text, str) else "")
    except UserError as error:
        lines = str(error).splitlines()
        reason = re.sub(r"^\S*: ", "", lines[0])
        yield Row(name, "inconsistent", re.sub(r"^\S+\.\w+ (?=[a-z])", "it ", reason))


def inspect(path: Path, config: Config = Config()) -> list[Row]:
    """Return the table of a folder: a row for each file or kind of file that training reads.

    Raises:
        UserError: the folder contains no frames.
    """
    folder = open_folder(path, config)
    parts = (clip_rows, frame_rows, plate_rows, sound_rows, blink_rows, pose_rows)
    return [row for part in parts for row in part(folder)]


def derive_clip(path: Path) -> Clip:
    """Return the clip that a folder without clip.json describes."""
    folder = open_folder(path, Config())
    if min(folder.images) != 0:
        raise UserError(
            f"{path} contains no {layout.FRAMES.relative(0)}. Give a dataset folder whose frames "
            "are numbered from 0."
        )
    height, width, _ = image_header(layout.FRAMES.path(path, 0))
    source = Source(
        name=path.resolve().name,
        width=width,
        height=height,
        fps=float(FPS),
        variable_rate=False,
        rotation=0,
        duration=folder.frames / FPS,
        video_start=0.0,
        audio_start=0.0,
        codec="unknown",
    )
    return Clip(folder.frames, height, width, source, adopted=True)


def main(*, data: Path, clip: Output | None = None, config: Config = Config()) -> None:
    """Print what a dataset folder contains, and write its clip.json if it is missing.

    Nothing is written if a fault is found.

    Args:
        data: Dataset folder that was prepared with the scripts of another project, such as
            GaussianTalker or ER-NeRF. Existing files are not changed.
        clip: clip.json to write. By default, it is written to the dataset folder, unless the folder
            contains one.
        config: Options.

    Raises:
        UserError: something is inconsistent; the message lists it.
    """
    rows = inspect(data, config)
    logger.info("The folder %s has the layout of %s.", data, recognize(data))
    width = max(len(row.name) for row in rows)
    for row in rows:
        logger.info("%-*s  %-12s  %s", width, row.name, row.status, row.text)
    faults = [f"{row.name}: {row.text}" for row in rows if row.status == "inconsistent"]
    if faults:
        count = counted(len(faults), "fault")
        raise UserError("\n  ".join([f"{data} has {count}. No file was changed.", *faults]))
    clip = clip or data / layout.CLIP
    if not clip.exists():
        derive_clip(data).save(clip)
