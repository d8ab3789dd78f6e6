"""Read a prepared dataset folder: poses, speech, blinks and images of a clip.

It reads folders prepared by talker or by the scripts of the AD-NeRF family, and the file that
`talker pack` makes from such a folder.
"""

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from talker.clip import (
    WINDOW,
    load_array,
    load_arrays,
    load_json,
)
from talker.core.config import DEFAULT_ENCODER
from talker.core.progress import progress
from talker.data import layout
from talker.data.formats import read_eye, read_track_params, read_transforms
from talker.data.layout import HEAD, SPARE_ROWS, Folder, FrameFiles, class_mask, speech_file
from talker.errors import UserError
from talker.head.camera import intrinsics, viewmats_from_pose
from talker.head.landmarks68 import read_lms
from talker.media.images import read_image


@dataclass(frozen=True)
class Images:
    """Images of B frames, uint8: the frame, the background of the head, the mask of the head."""

    frame: np.ndarray
    """[B, H, W, 3]"""
    background: np.ndarray
    """[B, H, W, 3], the torso over the background plate"""
    head_mask: np.ndarray
    """[B, H, W], 0..255"""


MAX_FEATURE = 1e6
"""Largest absolute value of a speech feature; those of all encoders are below 1,000."""


@dataclass(frozen=True)
class Dataset:
    """A prepared clip of T frames, its images scaled so that the longer side has `size` pixels."""

    folder: Folder
    height: int
    width: int
    original_size: tuple[int, int]
    """height and width of the images on disk"""
    valid: np.ndarray
    """bool [T]"""
    viewmats: np.ndarray
    """float32 [T, 4, 4], world to OpenCV camera, dm"""
    K: np.ndarray
    """float32 [3, 3], pixels of the scaled image"""
    speech: np.ndarray
    """float32 [T, 16, C]"""
    silence: np.ndarray | None
    """float32 [C], the features of a pause; None if `talker speech` did not compute the features"""
    speech_scale: np.ndarray | None
    """float32 [C], standard deviation of each speech component before it was whitened; None in the
    same case"""
    eye: np.ndarray
    """float32 [T, 2], eye closure, 0 open to 1 closed, and raise of the brows, -1 lowered to 1
    raised"""
    landmarks: np.ndarray
    """float32 [T, 68, 2], pixels of the scaled image"""
    expression: np.ndarray
    """float32 [T, E], the tracker's expression coefficients"""
    vertices: np.ndarray
    """float32 [V, 3], mean head mesh, dm"""
    faces: np.ndarray | None
    """int64 [F, 3], or None if the tracker stored none"""
    train_ids: np.ndarray
    """int64, valid frames of the training split"""
    val_ids: np.ndarray
    """int64, valid frames of the held-out split"""

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self.valid)

    @classmethod
    def load(cls, folder: Folder, size: int, encoder: str = DEFAULT_ENCODER) -> "Dataset":
        """Read everything except the images.

        Raises:
            UserError: a file is missing or damaged, or does not have one row for each frame.
                `talker verify` lists all faults of a folder at once.
        """
        folder = open_folder(folder)
        params_path = folder / layout.TRACK_PARAMS
        params = read_track_params(params_path)
        if params.vertices is None:
            raise UserError(
                f"{params_path} has no head mesh (`vertices`), from which training "
                "starts. Run `talker track`, which estimates it."
            )
        frames = len(params.euler)
        train, val = (
            read_transforms(folder / name, frames)
            for name in (layout.TRANSFORMS_TRAIN, layout.TRANSFORMS_VAL)
        )
        full_height, full_width = read_image(_image(folder, layout.FRAMES, 0)).shape[:2]
        scale = size / max(full_height, full_width)
        height, width = round(full_height * scale), round(full_width * scale)
        K = intrinsics(train.focal, full_width, full_height)
        K[:2] *= scale
        speech_path = speech_file(folder, encoder)
        statistics = folder / layout.speech_statistics(encoder)
        au_path = folder / layout.ACTION_UNITS
        landmarks = np.stack(
            [read_lms(folder / layout.FRAME_LANDMARKS.relative(i)) for i in range(frames)]
        )
        speech = read_speech(speech_path, frames)
        silence, speech_scale = _load_statistics(statistics, speech.shape[2])
        return cls(
            folder=folder,
            height=height,
            width=width,
            original_size=(full_height, full_width),
            valid=params.valid,
            viewmats=viewmats_from_pose(params.euler, params.trans).astype(np.float32),
            K=K.astype(np.float32),
            speech=speech,
            silence=silence,
            speech_scale=speech_scale,
            eye=rows(read_eye(au_path), frames, au_path),
            landmarks=landmarks * np.float32(scale),
            expression=params.expression,
            vertices=params.vertices,
            faces=params.faces,
            train_ids=train.ids[params.valid[train.ids]],
            val_ids=val.ids[params.valid[val.ids]],
        )

    def training_files(self, encoder: str) -> Iterator[Folder]:
        """Yield the files that training on features of `encoder` reads."""
        folder = self.folder
        for name in (
            layout.TRACK_PARAMS,
            layout.TRANSFORMS_TRAIN,
            layout.ACTION_UNITS,
            layout.PLATE,
        ):
            yield folder / name
        yield speech_file(folder, encoder)
        if (statistics := folder / layout.speech_statistics(encoder)).exists():
            yield statistics
        for i in map(int, self.train_ids):
            yield folder / layout.FRAME_LANDMARKS.relative(i)
            yield folder / layout.MASKS.relative(i)
            yield _image(folder, layout.FRAMES, i)
            yield _image(folder, layout.TORSOS, i)

    def frame(self, i: int) -> np.ndarray:
        """Read the real frame i, uint8 [H, W, 3]."""
        return self._scaled(self._read(layout.FRAMES, i))

    def background(self, i: int) -> np.ndarray:
        """Read the background of the head in frame i, uint8 [H, W, 3]: the torso over the plate."""
        torso = self._read(layout.TORSOS, i)
        colors, alpha = cv2.cvtColor(torso, cv2.COLOR_RGBA2RGB), cv2.extractChannel(torso, 3)
        return self._scaled(over(colors, self._plate, alpha))

    @cached_property
    def _plate(self) -> np.ndarray:
        path = self.folder / layout.PLATE
        return self._checked(read_image(path), path, 3)

    @cached_property
    def cuts(self) -> np.ndarray:
        """First frames of new shots, int64; empty if there is no track_report.json."""
        report = self.folder / layout.TRACK_REPORT
        if not report.exists():
            return np.empty(0, np.int64)
        try:
            firsts = [int(shot["first"]) for shot in load_json(report)["segments"][1:]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The list of shots (`segments`) in {report} is not valid ({error!r}). Run "
                "`talker track` again."
            ) from error
        return np.array([first for first in firsts if 0 < first < self.frames], np.int64)

    def torso(self, i: int) -> np.ndarray:
        """Read the torso alone, premultiplied RGBA uint8 [H, W, 4]."""
        return self._scaled(cv2.cvtColor(self._read(layout.TORSOS, i), cv2.COLOR_RGBA2mRGBA))

    def head_mask(self, i: int) -> np.ndarray:
        """Read how much of each pixel of frame i belongs to the head, uint8 [H, W], 0..255."""
        path = self.folder / layout.MASKS.relative(i)
        return self._scaled(class_mask(self._checked(read_image(path), path, 3), HEAD))

    def images(self, ids: np.ndarray, name: str = "images") -> Images:
        """Decode the frames `ids` [B] on all cores; `name` labels the progress bar."""
        images = Images(
            np.empty((len(ids), self.height, self.width, 3), np.uint8),
            np.empty((len(ids), self.height, self.width, 3), np.uint8),
            np.empty((len(ids), self.height, self.width), np.uint8),
        )

        def fill(row: int) -> None:
            i = int(ids[row])
            images.frame[row] = self.frame(i)
            images.background[row] = self.background(i)
            images.head_mask[row] = self.head_mask(i)

        with ThreadPoolExecutor() as pool:
            for _ in progress(pool.map(fill, range(len(ids))), name, total=len(ids)):
                pass
        return images

    def _read(self, kind: FrameFiles, i: int) -> np.ndarray:
        path = _image(self.folder, kind, i)
        return self._checked(read_image(path), path, kind.channels or 3)

    def _checked(self, image: np.ndarray, path: Folder, channels: int) -> np.ndarray:
        """Return `image` if it has the size of frame 0 and the expected number of channels."""
        expected = (*self.original_size, channels)
        if image.shape != expected:
            height, width, depth = image.shape
            raise UserError(
                f"{path} has {width}x{height} pixels and {depth}. It must have "
                f"{expected[1]}x{expected[0]} pixels and {channels} channels. `talker "
                "verify` lists all files with such faults."
            )
        return image

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.height, self.width):
            return image
        shrinks = self.height < image.shape[0]
        mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image, (self.width, self.height), interpolation=mode)


def read_speech(path: Folder, frames: int) -> np.ndarray:
    """Read speech windows float32 [T, 16, C] of a clip of `frames` frames.

    Raises:
        UserError: the file is missing or damaged, has another shape or length, or holds values that
            are not finite or too large.
    """
    windows = load_array(path)
    if windows.ndim != 3 or windows.shape[1] != WINDOW or windows.dtype.kind != "f":
        raise UserError(
            f"{path} contains {windows.dtype} values of shape {list(windows.shape)}. It must "
            f"contain floating-point windows of shape [{frames}, {WINDOW}, C]. Run `talker speech` "
            "again."
        )
    windows = rows(windows, frames, path).astype(np.float32)
    if not (np.abs(windows) <= MAX_FEATURE).all():
        raise UserError(
            f"{path} contains values that are NaN, infinite, or of a magnitude above "
            f"{MAX_FEATURE:g}. Run `talker speech` again."
        )
    return windows


def _load_statistics(
    statistics: Folder, components: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read the features of silence and the scale of the components, float32 [C] each.

    Both are None if there are no statistics, as for windows of the published scripts.

    Args:
        statistics: file that `talker speech` writes next to the windows.
        components: number C of components of the windows.

    Raises:
        UserError: the file lacks one of them, or does not fit the windows.
    """
    if not statistics.exists():
        return None, None
    arrays = load_arrays(statistics)
    for name in ("silence", "scale"):
        if name not in arrays:
            raise UserError(
                f"{statistics} has no array '{name}'. Its arrays are: "
                f"{', '.join(arrays) or 'none'}. Run `talker speech` again."
            )
        array = arrays[name]
        smallest = 0 if name == "scale" else -np.inf
        if (
            array.shape != (components,)
            or array.dtype.kind != "f"
            or not ((array > smallest) & (np.abs(array) <= MAX_FEATURE)).all()
        ):
            raise UserError(
                f"{statistics} has an array '{name}' of type {array.dtype} and shape "
                f"{list(array.shape)}. It must contain {components} finite numbers, one for each "
                "component of the speech features. Their magnitude must be at most "
                f"{MAX_FEATURE:g}, and the numbers of 'scale' must be positive. Run `talker "
                "speech` again."
            )
    return arrays["silence"], arrays["scale"]


def open_folder(path: Folder) -> Folder:
    """Return a dataset folder, or the contents of the file that `talker pack` made from one.

    Raises:
        UserError: the file is not a pack.
    """
    if not (isinstance(path, Path) and path.is_file()):
        return path
    try:
        return zipfile.Path(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is neither a dataset folder nor a file of `talker pack` ({error})."
        ) from error


def over(front: np.ndarray, behind: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend `front` over `behind`, uint8 [H, W, 3], by alpha uint8 [H, W], rounded to nearest."""
    share = alpha.astype(np.float32)
    return cv2.blendLinear(front, behind, share, 255 - share)


def rows(array: np.ndarray, frames: int, path: Folder) -> np.ndarray:
    """Return the first `frames` rows of a per-frame array.

    Raises:
        UserError: it has fewer rows, or more than `SPARE_ROWS` extra rows.
    """
    if not frames <= len(array) <= frames + SPARE_ROWS:
        raise UserError(
            f"{path} has {len(array)} rows. It must have one for each of the {frames} "
            "tracked frames."
        )
    return array[:frames]


def _image(folder: Folder, kind: FrameFiles, i: int) -> Folder:
    """Return the path of an image; packs store frames and torsos as WebP."""
    if isinstance(folder, Path):
        return kind.path(folder, i)
    return folder / f"{kind.folder}/{i}.webp"
