"""The per-frame contract: index i means frame i at 25 fps, in every file of a dataset folder.

`clip.json` holds the clip's length, size, crop and split. Every per-frame array is [T, ...] and is
stored together with `valid` [T]: frames are marked invalid, never dropped. The readers of JSON,
.npy and .npz below allocate no more than the file itself justifies, so that a damaged or hostile
file leads to an error message instead of exhausting the memory.
"""

import dataclasses
import io
import json
import math
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.lib import format as npy
from pydantic import Field

from talker.core.config import AtLeast0, NonNegative, Positive, from_mapping, validated
from talker.core.files import atomic_write
from talker.errors import UserError, counted

FPS = 25
"""Frames per second of every clip."""
SAMPLE_RATE = 16_000
"""Audio samples per second of every clip."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
"""Audio samples per frame: 640."""
SOUND_TOLERANCE = 1.0
"""Largest difference in seconds between the durations of the audio and of the frames, in folders
that other scripts prepared."""
SLOT_RATE = 50
"""Time steps per second: there is one vector of speech features for each 20 ms of audio."""
SLOT = SAMPLE_RATE // SLOT_RATE
"""Audio samples per time step: 320."""
SLOTS_PER_FRAME = SLOT_RATE // FPS
"""Time steps per frame; time step k is centered on 10 + 20 k ms."""
WINDOW = 16
"""Time steps in the speech window that belongs to a frame: 320 ms around it."""
MIN_HELD_OUT = 3 * FPS
"""Smallest number of held-out frames of a clip of `MIN_HELD_OUT_CLIP` frames or more."""
MIN_HELD_OUT_CLIP = 10 * FPS
"""Number of frames from which a clip can spare `MIN_HELD_OUT` frames."""
CHUNK = 64
"""Number of frames that are processed together, so that temporary arrays do not grow with the
length of a clip; few enough to fit into the processor's cache."""
VERSION = 1
"""Version of the format of clip.json."""
TEXT_BYTES = 2**28
"""Largest text file that is read, in bytes: an hour of poses as JSON takes a quarter of it."""
PIECE = 2**20
"""Number of bytes of an array that are read at once."""
INFLATED_BYTES = 2**26
"""Size in bytes up to which an array in an .npz may be compressed by any factor."""
INFLATION = 20
"""Largest compression factor of a larger array; measured values compress by less than 3."""


BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, KeyError)
"""Exceptions that zipfile raises for archives that are damaged, encrypted or of an unknown
method."""


Frames = Annotated[int, Field(ge=1, le=500_000)]
"""Number of frames; at most 5.5 hours, so that a damaged clip.json cannot request all memory."""
Pixels = Annotated[int, Field(ge=1, le=32_768)]
"""Width or height of an image."""
MAX_SIZE = 8192
"""Largest side in pixels of the images that avatars are trained on and rendered at (8K video)."""
Seconds = Annotated[float, Field(ge=-100_000, le=100_000)]
"""A start time; the clock of a transport stream counts up to 95,444 s."""


@validated
class Color:
    """How the frames of a video encode color (names of ITU-T H.273)."""

    matrix: str
    transfer: str
    primaries: str
    full_range: bool
    guessed: bool
    """Whether the file does not specify the matrix, so that it was chosen by the size of the
    frame."""


@validated
class Source:
    """The contents of the video file that the clip was made from, and how it was read.

    Sizes are those of the upright frame with square pixels. Times are in seconds on the clock of
    the file; time zero of the clip is `video_start`, for its frames and its audio.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\\x00]*$")]
    width: Pixels
    height: Pixels
    fps: Positive
    variable_rate: bool
    rotation: int
    duration: NonNegative
    video_start: Seconds
    audio_start: Seconds | None
    codec: str
    mirrored: bool = False
    """Whether the frame was mirrored left to right after its rotation."""
    pixel_aspect: Positive = 1.0
    """Width of a stored pixel divided by its height."""
    interlaced: bool = False
    """Whether the first frames are interlaced, so that frames were deinterlaced."""
    timestamps: Literal["pts", "dts", "none"] = "pts"
    """Times used: presentation times, decoding times if those do not increase, or frame numbers."""
    color: Color | None = None
    """Color description of the first frame; None in files of older versions."""
    audio_tracks: AtLeast0 = 1
    """Number of audio tracks of the file."""


@validated
class Crop:
    """The square that was cut out of the upright source frame, in source pixels."""

    x: int
    y: int
    size: Pixels


@validated
class Clip:
    """A clip of `frames` images of `height` x `width` pixels at 25 fps."""

    frames: Frames
    height: Pixels
    width: Pixels
    source: Source
    crop: Crop | None = None
    fps: Annotated[int, Field(ge=FPS, le=FPS)] = FPS
    adopted: bool = False
    """Whether other scripts prepared the folder, so that its audio may have another format."""
    version: int = VERSION

    @property
    def train_frames(self) -> int:
        """Number of training frames: these are frames [0, train_frames), the rest are held out."""
        return published_train_length(self.frames) if self.adopted else train_length(self.frames)

    @property
    def samples(self) -> int:
        """Number of audio samples of the clip: 640 per frame."""
        return self.frames * SAMPLES_PER_FRAME

    @classmethod
    def load(cls, path: Path) -> "Clip":
        """Read a `clip.json`.

        Raises:
            UserError: the file is missing, damaged or of another version.
        """
        values = load_json(path)
        if values.get("version") != VERSION:
            raise UserError(
                f"{path} has version {values.get('version')!r} of the clip format, but "
                f"this version of talker reads version {VERSION}. Run `talker frames` "
                "again."
            )
        return from_mapping(cls, values, str(path))

    def save(self, path: Path) -> None:
        """Write a `clip.json`."""
        _save_record(self, path)


IN_SYNC = 2.0
"""Largest lag or lead of the audio, in frames, of a clip that counts as in sync."""


@validated
class Verified:
    """What `talker verify` knows about a folder without faults: its size and facts of each frame.

    `talker lipsync` and `talker check` judge these facts.
    """

    height: Pixels
    width: Pixels
    train_frames: AtLeast0
    own: bool
    """Whether talker made the folder, not other scripts."""
    valid: tuple[bool, ...]
    """Whether the head is tracked."""
    mouth_opening: tuple[NonNegative, ...]
    """Distance between the inner lips, in multiples of that between the outer eye corners."""
    face_width: tuple[NonNegative, ...]
    """Width of the face in pixels."""
    au45: tuple[NonNegative, ...]
    """Intensity of AU45, the eye closure."""
    rival: tuple[NonNegative, ...] | None
    """Size of another face relative to the subject's; None if it is unknown."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.valid)

    def array(self, name: str) -> np.ndarray:
        """Return the facts of a name as float32 [T]."""
        return np.array(getattr(self, name), np.float32)

    @classmethod
    def load(cls, path: Path) -> "Verified":
        """Read a `verified.json`.

        Raises:
            UserError: the file is missing or damaged.
        """
        verified = _load_record(cls, path, "verify")
        lengths = {len(values) for values in vars(verified).values() if isinstance(values, tuple)}
        if lengths != {verified.frames} or not verified.frames:
            raise UserError(
                f"Each list in {path} must have one value for every frame. Run `talker verify` "
                "again."
            )
        return verified

    def save(self, path: Path) -> None:
        """Write a `verified.json`."""
        _save_record(self, path)


@validated
class LipSync:
    """How well the mouth moves with the audio, as `talker lipsync` measured it.

    All values but the first are None if the clip is too short to measure them.
    """

    level_range_db: NonNegative
    """Range of the level of the audio in dB (5th to 95th percentile)."""
    sync_correlation: float | None
    """Correlation of the mouth opening with its prediction from the audio, at the best lag."""
    sync_lag_frames: float | None
    """Lag of the audio behind the video, in frames."""
    sync_z: float | None
    """Standard deviations by which the correlation exceeds the mean of the null distribution."""
    sync_frames: AtLeast0 | None
    """Number of frames that were compared."""
    sync_lag_z: float | None
    """Standard deviations by which the correlation at the best lag exceeds that at the lags of
    clips in sync (`IN_SYNC`)."""

    @classmethod
    def load(cls, path: Path) -> "LipSync":
        """Read a `lipsync.json`.

        Raises:
            UserError: the file is missing or damaged.
        """
        return _load_record(cls, path, "lipsync")

    def save(self, path: Path) -> None:
        """Write a `lipsync.json`."""
        _save_record(self, path)


Record = TypeVar("Record")


def _load_record(cls: type[Record], path: Path, stage: str) -> Record:
    """Read a record that a stage wrote as JSON."""
    if not path.exists():
        raise UserError(f"{path} does not exist. Run `talker {stage}`, which writes it.")
    return from_mapping(cls, load_json(path), str(path))


def _save_record(record: Any, path: Path) -> None:
    with atomic_write(path) as (scratch,):
        scratch.write_text(
            json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8"
        )


def train_length(frames: int) -> int:
    """Return the number of training frames of a clip; the frames after them are held out.

    The split is the published one, except that a clip of `MIN_HELD_OUT_CLIP` frames or more holds
    out at least `MIN_HELD_OUT` frames, because fewer do not show whether the mouth follows the
    speech.
    """
    train = published_train_length(frames)
    return train if frames < MIN_HELD_OUT_CLIP else min(train, frames - MIN_HELD_OUT)


def published_train_length(frames: int) -> int:
    """Return the number of training frames in AD-NeRF and its successors: the first 10/11."""
    return frames * 10 // 11


def check_regular(path: Path | zipfile.Path) -> None:
    """Refuse a path that is missing or is a folder, pipe or device, which might never end.

    Raises:
        UserError: it is not a regular file.
    """
    if not isinstance(path, Path):
        if not path.is_file():
            raise UserError(
                f"{path} is missing from the packed file. Pack the dataset again with `talker "
                "pack`."
            )
        return
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{path} is {kind}, not a regular file.")


def load_text(path: Path | zipfile.Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8, or larger than `TEXT_BYTES`.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            content = file.read(min(size, TEXT_BYTES) + 1)  # allocates this much at once
        if len(content) > TEXT_BYTES:
            raise UserError(
                f"{path} is larger than {TEXT_BYTES >> 20} MiB, which is the limit for text files."
            )
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, *BROKEN_ZIP) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}).") from error


def load_json(path: Path | zipfile.Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing, is not JSON, is nested too deeply or does not contain an
            object.
    """
    try:
        values = json.loads(load_text(path))
    except RecursionError as error:
        raise UserError(f"{path} cannot be read as JSON (it is nested too deeply).") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path} contains a value of type {type(values).__name__}. It must contain a JSON "
            "object."
        )
    return values


def save_per_frame(path: Path, valid: np.ndarray, **arrays: np.ndarray) -> None:
    """Write an .npz of arrays [T, ...] and of `valid` bool [T]."""
    for name, array in arrays.items():
        if len(array) != len(valid):
            raise ValueError(
                f"{name} has {len(array)} rows, but the array 'valid' has {len(valid)} rows."
            )
    with atomic_write(path) as (scratch,):
        np.savez_compressed(scratch, valid=valid.astype(bool), **arrays)


def load_array(path: Path | zipfile.Path) -> np.ndarray:
    """Read an .npy file of numbers, booleans or text.

    Raises:
        UserError: the file is missing, damaged, of another kind, or shorter or longer than its
            header says.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            file.seek(0, io.SEEK_END)
            size = file.tell()
            file.seek(0)
            return _read_npy(file, size)
    except (OSError, ValueError, EOFError, MemoryError, *BROKEN_ZIP) as error:
        raise UserError(f"{path} cannot be read as .npy ({error}).") from error


def load_arrays(path: Path | zipfile.Path) -> dict[str, np.ndarray]:
    """Read an .npz file, in memory bounded by `INFLATED_BYTES` and `INFLATION`.

    Raises:
        UserError: the file is missing, damaged, encrypted, of another kind, or would take far more
            memory than its size justifies.
    """
    check_regular(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            arrays = {}
            for member in archive.infolist():
                limit = max(INFLATED_BYTES, INFLATION * member.compress_size)
                if member.file_size > limit:
                    raise ValueError(
                        f"{member.filename} would expand from "
                        f"{member.compress_size >> 10} KiB to {member.file_size >> 20} "
                        "MiB of memory"
                    )
                with archive.open(member) as content:
                    name = member.filename.removesuffix(".npy")
                    arrays[name] = _read_npy(content, member.file_size)
            return arrays
    except (OSError, ValueError, EOFError, MemoryError, *BROKEN_ZIP) as error:
        raise UserError(f"{path} cannot be read as .npz ({error}).") from error


def _read_npy(file: IO[bytes], size: int) -> np.ndarray:
    """Read an array from an open .npy file of `size` bytes; allocate only what it contains."""
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"its format version is {version}, but only 1.0 and 2.0 can be read")
    try:
        shape, fortran_order, dtype = read_header[version](file)
    except Exception as error:  # the header is a Python literal, which can be wrong in many ways
        raise ValueError(f"its header is damaged: {error}") from error
    if dtype.hasobject or dtype.kind not in "biufSU":
        raise ValueError(f"it contains {dtype}, but only numbers and text can be read")
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}, but lengths cannot be negative")
    claimed, stored = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed != stored:
        raise ValueError(
            f"an array of type {dtype} and shape {shape} needs {claimed} bytes, but the file has "
            f"{stored}"
        )
    content = bytearray(claimed)
    for start in range(0, claimed, PIECE):  # a member of an archive is copied while it is read
        piece = memoryview(content)[start : start + PIECE]
        if file.readinto(piece) != len(piece):  # pyright: ignore[reportAttributeAccessIssue]
            raise EOFError("the file is cut off")
    array = np.frombuffer(content, dtype) if claimed else np.empty(math.prod(shape), dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


def load_per_frame(path: Path, frames: int, *names: str) -> dict[str, np.ndarray]:
    """Read an .npz of per-frame arrays, `valid` and `names` among them.

    Raises:
        UserError: the file is missing or damaged, lacks an array, `valid` is not boolean, or an
            array does not have `frames` rows.
    """
    arrays = load_arrays(path)
    for name in ("valid", *names):
        if name not in arrays:
            raise UserError(
                f"{path} has no array '{name}'. Its arrays are: {', '.join(arrays) or 'none'}."
            )
    for name, array in arrays.items():
        rows = len(np.atleast_1d(array))
        if rows != frames:
            raise UserError(
                f"{path} has {counted(rows, 'row')} in the array '{name}'. It must have one for "
                f"each of the {frames} frames."
            )
    if (valid := arrays["valid"]).dtype != bool or valid.ndim != 1:
        raise UserError(
            f"{path} must have an array 'valid' of type bool and shape [{frames}], but it has the "
            f"type {valid.dtype} and the shape {list(valid.shape)}."
        )
    return arrays


def chunks(frames: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `CHUNK` frames that cover `frames` frames."""
    for start in range(0, frames, CHUNK):
        yield slice(start, min(start + CHUNK, frames))


def runs(true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the runs of consecutive true entries of bool [T].

    Returns:
        The index of the first entry of each run, and the index after its last one.
    """
    edges = np.diff(np.concatenate([[0], true.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
