"""Adopt a dataset folder that the scripts of another method prepared, without changing its files.

    talker adopt --data data/me

Recognizes the conventions of AD-NeRF, RAD-NeRF, ER-NeRF, GaussianTalker, TalkingGaussian and
SyncTalk by the names of the files, prints a table of what is present, missing and inconsistent, and
writes clip.json, which the stages `speech`, `landmarks`, `blink` and `layers` need.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from talker.clip import FPS, Clip, Source, load_array, load_json, train_length
from talker.core.config import AtLeast1, validated
from talker.core.files import Output
from talker.data import layout
from talker.data.formats import (
    TrackParams,
    read_au45,
    read_table,
    read_track_params,
    read_transforms,
)
from talker.dataset import SPARE_ROWS
from talker.errors import UserError
from talker.head.camera import transform_matrices
from talker.media.audio import SOUND_TOLERANCE, decode_audio
from talker.media.images import image_header

logger = logging.getLogger(__name__)

FAMILIES = {
    "SyncTalk": ("aud_ave.npy", "bs.npy", "face_mask"),
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

Status = Literal["present", "derived", "missing", "inconsistent"]


@validated
class Config:
    """How a folder is adopted."""

    listed: AtLeast1 = 5
    """Maximum number of frames that a row of the table lists individually. The rest are only
    counted."""


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
    config: Config

    def some(self, ids: set[int]) -> str:
        """Return a phrase such as `frames 3, 4, 5 and 17 more`."""
        named = ", ".join(map(str, sorted(ids)[: self.config.listed]))
        rest = len(ids) - self.config.listed
        return f"frame{'s' * (len(ids) > 1)} {named}{f' and {rest} more' if rest > 0 else ''}"


def recognize(path: Path) -> str:
    """Return the name of the method whose scripts prepared a folder, by the names of its files."""
    for family, names in FAMILIES.items():
        if any((path / name).exists() for name in names):
            return family
    return "AD-NeRF family"


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
        raise UserError(
            f"{path}: expected frames {kind.relative(0)}, {kind.relative(1)}, ...; found none"
        )
    try:
        params = read_track_params(path / layout.TRACK_PARAMS)
        frames = len(params.euler)
    except UserError:
        params, frames = None, max(images) + 1
    return Folder(path, frames, images, params, config)


def frame_rows(folder: Folder) -> Iterator[Row]:
    """Compare the files that every frame has with the tracked frames."""
    expected = set(range(folder.frames))
    for kind in (*layout.IMAGES, layout.FRAME_LANDMARKS):
        name = f"{kind.folder}/*{kind.suffix}"
        if not (folder.path / kind.folder).is_dir():
            yield Row(name, "missing", f"`talker {kind.stage}` writes them")
            continue
        absent = {i for i in expected if not kind.path(folder.path, i).is_file()}
        if len(absent) == folder.frames:
            yield Row(name, "missing", f"`talker {kind.stage}` writes them")
        elif not absent:
            yield Row(name, "present", f"{folder.frames}")
        elif kind is layout.FRAME_LANDMARKS and len(folder.images) - folder.frames == len(absent):
            yield Row(
                name,
                "inconsistent",
                f"{folder.some(absent)} missing, and there are fewer poses than frames by the same "
                "number: the tracker skipped these frames, so all later poses belong to the wrong "
                "frames; run `talker track`",
            )
        else:
            yield Row(name, "inconsistent", f"{folder.some(absent)} missing")
    if 0 not in folder.images:
        first = min(folder.images)
        yield Row(
            "frame numbers",
            "inconsistent",
            f"the frames start at {first}, expected 0: the poses and the sound of frame i belong "
            f"to image i + {first}; rename the images",
        )
    if beyond := folder.images - expected:
        yield Row(
            "frame numbers",
            "inconsistent",
            f"{folder.some(set(beyond))} have no pose and are not used",
        )


def pose_rows(folder: Folder) -> Iterator[Row]:
    """Check the poses, and that the transforms files contain the same ones."""
    name = layout.TRACK_PARAMS
    if not (folder.path / name).exists():
        yield Row(name, "missing", "`talker track` writes it")
        return
    if folder.params is None:
        yield from _fault(name, lambda: read_track_params(folder.path / name))
        return
    yield Row(name, "present", f"{folder.frames} poses, focal length {folder.params.focal:.1f} px")
    if folder.params.vertices is None:
        yield Row(
            f"{name}: vertices",
            "missing",
            "training starts from the head mesh; `talker track` estimates one",
        )
    matrices = transform_matrices(
        folder.params.euler.astype(float), folder.params.trans.astype(float)
    )
    split = train_length(folder.frames)
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
        raise UserError(f"lists {folder.some(foreign)}, which belong to the other split")
    expected = matrices[listed.ids]
    for unit, scale in (("m", 1.0), ("dm, as in track_params.pt", 10.0)):
        scaled = expected.copy()
        scaled[:, :3, 3] *= scale
        if np.abs(listed.matrices - scaled).max(initial=0) < POSE_TOLERANCE * scale:
            return f"{len(listed.ids)} frames, translations in {unit}"
    shifted = np.roll(matrices, -1, axis=0)[listed.ids]
    hint = ""
    if np.abs(listed.matrices - shifted)[:-1].max(initial=0) < POSE_TOLERANCE:
        hint = ": they are those of the next frame, so frame numbers are shifted by 1"
    raise UserError(f"the poses differ from {layout.TRACK_PARAMS}{hint}")


def blink_rows(folder: Folder) -> Iterator[Row]:
    """Check that au.csv has a row for each frame, and at which rate it was measured."""
    name = layout.ACTION_UNITS
    path = folder.path / name
    if not path.exists():
        yield Row(name, "missing", "`talker blink` writes it, after `talker landmarks`")
        return
    yield from _fault(name, lambda: _blinks(path, folder.frames))


def _blinks(path: Path, frames: int) -> str:
    count = len(read_au45(path))
    if frames <= count <= frames + SPARE_ROWS:
        return f"{count} rows"
    times = read_table(path).get("timestamp", [])
    rate = _rate(times)
    if rate is not None and abs(rate - FPS) > 0.1:
        raise UserError(
            f"{count} rows at {rate:g} frames per second, expected {frames} at {FPS}; run OpenFace "
            "on a video of the frames at 25 fps, or `talker blink` with the backend openface"
        )
    raise UserError(f"{count} rows for {frames} frames")


def _rate(times: list[str]) -> float | None:
    """Return the rows per second of OpenFace's timestamps, or None if there are none."""
    try:
        values = np.array(times, float)
    except ValueError:
        return None
    step = np.median(np.diff(values)) if len(values) > 1 else 0.0
    return round(float(1 / step), 2) if step > 0 else None


def sound_rows(folder: Folder) -> Iterator[Row]:
    """Check the duration of the sound and the length of the speech features."""
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
            f"lasts {seconds:.2f} s, the frames {frames / FPS:.2f} s, which is "
            f"{abs(excess):.2f} s {'less' if excess > 0 else 'more'}; cut the sound at the place "
            "where the frames were cut"
        )
    return f"{seconds:.2f} s"


def _features(path: Path, frames: int) -> str:
    shape = load_array(path).shape
    if not frames <= shape[0] <= frames + SPARE_ROWS:
        raise UserError(f"{list(shape)}: {shape[0]} windows for {frames} frames")
    return f"{list(shape)}"


def plate_rows(folder: Folder) -> Iterator[Row]:
    """Check that the background plate is there."""
    if (folder.path / layout.PLATE).exists():
        yield Row(layout.PLATE, "present")
    else:
        yield Row(layout.PLATE, "missing", "`talker background` writes it")


def clip_rows(folder: Folder) -> Iterator[Row]:
    """Say whether clip.json exists."""
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
        yield Row(name, "inconsistent", re.sub(r"^\S*: ", "", lines[0]))


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
        raise UserError(f"{path}: expected {layout.FRAMES.relative(0)}, found no such frame")
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
    """Print what a folder contains, and write its clip.json if it has none and no inconsistencies.

    Args:
        data: dataset folder that was prepared with the scripts of another method. Existing files
            are not changed.
        clip: clip.json to write. By default, it is written in the folder, unless it exists there.
        config: options.

    Raises:
        UserError: something is inconsistent; the message lists it.
    """
    rows = inspect(data, config)
    logger.info("%s: prepared in the layout of %s", data, recognize(data))
    width = max(len(row.name) for row in rows)
    for row in rows:
        logger.info("%-*s  %-12s  %s", width, row.name, row.status, row.text)
    faults = [f"{row.name}: {row.text}" for row in rows if row.status == "inconsistent"]
    if faults:
        raise UserError("\n  ".join([f"{data}: {len(faults)} inconsistencies", *faults]))
    clip = clip or data / layout.CLIP
    if not clip.exists():
        derive_clip(data).save(clip)
