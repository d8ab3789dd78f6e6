"""The per-frame contract: index i means frame i at 25 fps, in every file of a dataset folder.

`clip.json` holds the clip's length, size, crop and split; every per-frame array is [T, ...] and
comes with `valid` [T]. Frames are marked invalid, never dropped.
"""

import dataclasses
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.format import read_array

from talker.core.config import from_mapping, validated
from talker.core.files import atomic_write
from talker.errors import UserError

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
VERSION = 1


@validated
class Color:
    """How the pictures of a video encode color (names of ITU-T H.273)."""

    matrix: str
    transfer: str
    primaries: str
    full_range: bool
    guessed: bool
    """Whether the file does not say, so that the matrix was chosen by the size of the picture."""


@validated
class Source:
    """What the video file contains that the clip was made from, and how it was read.

    Sizes are those of the upright picture with square pixels. Times are in seconds on the clock of
    the file; time zero of the clip is `video_start`, for its pictures and its sound.
    """

    name: str
    width: int
    height: int
    fps: float
    variable_rate: bool
    rotation: int
    duration: float
    video_start: float
    audio_start: float | None
    codec: str
    mirrored: bool = False
    """Whether the picture was mirrored left to right after its rotation."""
    pixel_aspect: float = 1.0
    """Width of a stored pixel divided by its height."""
    interlaced: bool = False
    """Whether fields were found at the start, and frames deinterlaced."""
    timestamps: Literal["pts", "dts", "none"] = "pts"
    """Times used: presentation times, decoding times where those do not rise, or frame numbers."""
    color: Color | None = None
    """Color description of the first frame; None in files of older versions."""
    audio_tracks: int = 1
    """Number of audio tracks of the file."""


@validated
class Crop:
    """The square that was cut out of the (upright) source frame, in source pixels."""

    x: int
    y: int
    size: int


@validated
class Clip:
    """A clip of `frames` images of `height` x `width` pixels at 25 fps."""

    frames: int
    height: int
    width: int
    source: Source
    crop: Crop | None = None
    fps: int = FPS
    version: int = VERSION

    @property
    def train_frames(self) -> int:
        """Frames [0, train_frames) are for training, the rest is held out (AD-NeRF)."""
        return self.frames * 10 // 11

    @property
    def samples(self) -> int:
        """Audio samples that belong to the clip: 640 a frame."""
        return self.frames * SAMPLES_PER_FRAME

    @classmethod
    def load(cls, path: Path) -> "Clip":
        """Read a `clip.json`; UserError if it is missing, damaged or of another version."""
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UserError(f"{path}: is not JSON: {error}") from error
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise UserError(
                f"{path}: expected version {VERSION} of the clip format; run `talker frames` again"
            )
        return from_mapping(cls, values, str(path))

    def save(self, path: Path) -> None:
        with atomic_write(path) as (scratch,):
            scratch.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def save_per_frame(path: Path, valid: np.ndarray, **arrays: np.ndarray) -> None:
    """Write an .npz of arrays [T, ...] beside `valid` bool [T]."""
    for name, array in arrays.items():
        if len(array) != len(valid):
            raise ValueError(f"{name}: {len(array)} rows, but valid has {len(valid)}")
    with atomic_write(path) as (scratch,):
        np.savez_compressed(scratch, valid=valid.astype(bool), **arrays)


def load_array(path: Path | zipfile.Path) -> np.ndarray:
    """Read an .npy file; UserError if it is missing, damaged or of another kind."""
    try:
        return read_array(io.BytesIO(path.read_bytes()))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as .npy ({error})") from error


def load_arrays(path: Path | zipfile.Path) -> dict[str, np.ndarray]:
    """Read an .npz file; UserError if it is missing, damaged or of another kind."""
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            return {
                name.removesuffix(".npy"): read_array(io.BytesIO(archive.read(name)))
                for name in archive.namelist()
            }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as .npz ({error})") from error


def load_per_frame(path: Path, frames: int, *names: str) -> dict[str, np.ndarray]:
    """Read an .npz of per-frame arrays, `valid` and `names` among them.

    Raises:
        UserError: the file is missing or damaged, lacks an array, or one does not have `frames`
            rows.
    """
    arrays = load_arrays(path)
    for name in ("valid", *names):
        if name not in arrays:
            raise UserError(
                f"{path}: has no array '{name}'; found {', '.join(arrays) or 'nothing'}"
            )
    for name, array in arrays.items():
        rows = len(np.atleast_1d(array))
        if rows != frames:
            raise UserError(
                f"{path}: '{name}' has {rows} rows, expected one for each of {frames} frames"
            )
    return arrays


def runs(true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First ids of the runs of true entries of bool [T], and the ids after their last ones."""
    edges = np.diff(np.concatenate([[0], true.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
