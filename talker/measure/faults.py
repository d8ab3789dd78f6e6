"""Find everything in a dataset folder that breaks its contract (docs/conventions.md).

Folders of the published AD-NeRF-family scripts are checked too: they have no clip.json, and their
audio may differ a little from the length of their frames.
"""

import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talker.clip import (
    FPS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    SOUND_TOLERANCE,
    Clip,
    check_regular,
    load_array,
    load_per_frame,
    published_train_length,
    train_length,
)
from talker.core.parallel import ordered_map
from talker.data import layout
from talker.data.formats import read_eye, read_track_params, read_transforms
from talker.data.layout import COLORS, HEAD, SPARE_ROWS, speech_file
from talker.encoders import ENCODERS
from talker.errors import UserError, counted
from talker.head.camera import transform_matrices
from talker.head.landmarks68 import read_lms
from talker.media.images import image_header, read_image

POSE_TOLERANCE = 1e-5
"""Largest accepted difference between the entries of pose matrices in two files."""
NAMED_FRAMES = 5
"""Number of frames that a message names."""
THREADS = 8
"""Number of files whose headers are read at the same time, which takes time but no computing."""


@dataclass(frozen=True)
class FolderSpec:
    """A dataset folder, and the length and image size that its files should have."""

    path: Path
    frames: int
    height: int
    width: int
    own: bool
    """whether talker made the folder: clip.json or landmarks.npz exists"""
    sample: int = 12
    """number of masks of which every pixel is checked"""

    @classmethod
    def of(cls, path: Path, sample: int = 12) -> "FolderSpec":
        """Read the length and the image size from clip.json, or else from the frames.

        Raises:
            UserError: the folder contains neither.
        """
        own = (path / layout.CLIP).exists() or (path / layout.LANDMARKS).exists()
        try:
            clip = Clip.load(path / layout.CLIP)
            own = not clip.adopted
        except UserError:
            images = (path / layout.FRAMES.folder).glob(f"*{layout.FRAMES.suffix}")
            numbers = [int(image.stem) for image in images if image.stem.isdigit()]
            if not numbers:
                raise UserError(
                    f"{path} is not a dataset folder: it contains neither clip.json nor "
                    "ori_imgs/0.jpg. `talker frames` writes both from a video."
                ) from None
            height, width, _ = image_header(layout.FRAMES.path(path, min(numbers)))
            return cls(path, max(numbers) + 1, height, width, own, sample)
        return cls(path, clip.frames, clip.height, clip.width, own, sample)

    @property
    def train_frames(self) -> int:
        """Number of training frames; the scripts of the AD-NeRF family use the published split."""
        return train_length(self.frames) if self.own else published_train_length(self.frames)

    @property
    def ids(self) -> range:
        return range(self.frames)

    def allows_rows(self, rows: int) -> bool:
        """Return whether a file of other scripts has an extra row, which their readers ignore."""
        return not self.own and self.frames < rows <= self.frames + SPARE_ROWS

    def list_frames(self, ids: Iterable[int]) -> str:
        """Return a text such as `frames 3, 4, 5, 6, 7 and 17 more`."""
        all_ids = sorted(ids)
        named = ", ".join(map(str, all_ids[:NAMED_FRAMES]))
        rest = len(all_ids) - NAMED_FRAMES
        more = f" and {rest} more" if rest > 0 else ""
        return f"{'frame' if len(all_ids) == 1 else 'frames'} {named}{more}"

    def check_frames(self, check: Callable[[int], str | None]) -> dict[str, list[int]]:
        """Run a check for every frame in threads; return {fault: frames that have it}."""
        faults: dict[str, list[int]] = {}
        for i, fault in enumerate(ordered_map(check, self.ids, THREADS)):
            if fault is not None:
                faults.setdefault(fault, []).append(i)
        return faults


def folder_faults(folder: FolderSpec) -> list[str]:
    """Return one sentence for every fault of a dataset folder."""
    faults: list[str] = []
    for check in CHECKS:
        try:
            for fault in check(folder):
                faults.append(fault)
        except UserError as error:
            faults.append(str(error))
    return faults


def clip_faults(folder: FolderSpec) -> Iterable[str]:
    """Check that clip.json can be read, in a folder that talker made."""
    if folder.own:
        Clip.load(folder.path / layout.CLIP)
    return ()


def image_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that every frame has an image of every kind, complete and of the clip's size."""
    for kind in layout.IMAGES:
        images = folder.path / kind.folder
        if not images.is_dir():
            yield f"{images} does not exist. Run `talker {kind.stage}`, which writes it."
            continue
        expected = folder.height, folder.width, kind.channels or 3

        def check(i: int, kind=kind, expected=expected) -> str | None:
            path = kind.path(folder.path, i)
            return "is missing" if not path.exists() else _header_fault(path, expected)

        for text, ids in folder.check_frames(check).items():
            where = folder.list_frames(ids)
            yield f"{images}: {where}: The image {text}. Run `talker {kind.stage}` again."
        names = {kind.file_name(i) for i in folder.ids}
        extra = sorted(p.name for p in images.glob(f"*{kind.suffix}") if p.name not in names)
        if extra:
            yield (
                f"{images} contains {counted(len(extra), 'image')}, such as {extra[0]}, that "
                f"the clip of {counted(folder.frames, 'frame')} does not need. Run `talker "
                f"{kind.stage}` again."
            )
    plate = folder.path / layout.PLATE
    if not plate.exists():
        yield f"{plate} does not exist. Run `talker background`, which writes it."
    elif text := _header_fault(plate, (folder.height, folder.width, 3)):
        yield f"{plate} {text}. Run `talker background` again."


def _header_fault(path: Path, expected: tuple[int, int, int]) -> str | None:
    try:
        actual = image_header(path)
    except UserError as error:
        return str(error).removeprefix(f"{path} ").rstrip(".")
    if actual == expected:
        return None
    (height, width, channels), (h, w, c) = actual, expected
    return (
        f"has {width}x{height} pixels and {counted(channels, 'channel')}, but it must have {w}x{h} "
        f"and {c}"
    )


def color_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that a sample of masks contains a head and only the four exact mask colors."""
    known = _code(COLORS).tolist()
    sample = np.unique(np.linspace(0, folder.frames - 1, folder.sample).astype(int))
    for i in sample:
        path = layout.MASKS.path(folder.path, int(i))
        if not path.exists():
            continue
        codes = set(np.unique(_code(read_image(path)[..., :3])).tolist())
        if foreign := codes - set(known):
            yield (
                f"{path} contains {counted(len(foreign), 'color')}, such as #{min(foreign):06x}, "
                "other than the four mask colors. Masks must not be resized or compressed. Run "
                "`talker parsing` again."
            )
        elif known[HEAD] not in codes:
            yield f"{path} shows no head. Run `talker parsing` again."


def _code(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.int64) @ np.array([65536, 256, 1])


def landmark_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that every frame has 68 finite landmarks."""

    def check(i: int) -> str | None:
        path = layout.FRAME_LANDMARKS.path(folder.path, i)
        try:
            points = read_lms(path)
        except UserError as error:
            return str(error).removeprefix(f"{path} ").rstrip(".")
        return None if np.isfinite(points).all() else "contains values that are not finite"

    for text, ids in folder.check_frames(check).items():
        images = folder.path / layout.FRAME_LANDMARKS.folder
        yield (
            f"{images}: {folder.list_frames(ids)}: The .lms file {text}. Run `talker landmarks` "
            "again."
        )


def mesh_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that the mesh has a finite row for each frame, in a folder that talker made."""
    path = folder.path / layout.LANDMARKS
    if folder.own:
        points = load_per_frame(path, folder.frames, "points")["points"]
        if points.shape[1:] != (478, 3):
            yield (
                f"{path} has points of shape {list(points.shape)}, but it must be "
                f"[{folder.frames}, 478, 3]. Run `talker landmarks` again."
            )
        elif not np.isfinite(points).all():
            yield (
                f"{path} has points that are not finite in {_bad_rows(folder, points)}. Run "
                "`talker landmarks` again."
            )


def _bad_rows(folder: FolderSpec, values: np.ndarray) -> str:
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return folder.list_frames(np.flatnonzero(bad).tolist())


def sound_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that the audio and its two parts last exactly as long as their frames."""
    split = folder.train_frames
    lengths = {
        layout.SOUND: folder.frames,
        layout.TRAIN_SOUND: split,
        layout.NOVEL_SOUND: folder.frames - split,
    }
    for name, frames in lengths.items():
        path = folder.path / name
        if not path.exists():
            if folder.own or name == layout.SOUND:
                yield f"{path} does not exist. Run `talker audio`, which writes it."
            continue
        check_regular(path)
        try:
            with wave.open(str(path)) as file:
                rate, samples = file.getframerate(), file.getnframes()
                kind = rate, file.getnchannels(), 8 * file.getsampwidth()
        except (wave.Error, EOFError, OSError, RuntimeError) as error:
            yield (
                f"{path} cannot be read as a wav file ({error}). Delete it and run "
                "`talker audio` again."
            )
            continue
        size = path.stat().st_size - kind[1] * kind[2] // 8 * samples
        expected = frames * SAMPLES_PER_FRAME
        if size < 0:
            yield f"{path} is too short by {-size} bytes of audio. Run `talker audio` again."
        elif folder.own and kind != (SAMPLE_RATE, 1, 16):
            yield (
                f"{path} has a sample rate of {rate} Hz, {counted(kind[1], 'channel')} and "
                f"{kind[2]} bits. It must have 16000 Hz, 1 channel and 16 bits. Run `talker audio` "
                "again."
            )
        elif folder.own and samples != expected:
            yield (
                f"{path} has {samples} samples. It must have {expected} samples for {frames} "
                "frames. Run `talker audio` again."
            )
        elif not folder.own and abs(samples / rate - frames / FPS) > SOUND_TOLERANCE:
            yield (
                f"{path} lasts {samples / rate:.2f} s, but the frames of the dataset last "
                f"{frames / FPS:.2f} s. Replace it with audio of the same length as the frames."
            )


def speech_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that the speech features in the folder have a window for each frame."""
    for path in {speech_file(folder.path, name): None for name in ENCODERS}:
        if not path.exists():
            continue
        try:
            features = load_array(path)
        except UserError as error:
            yield str(error)
            continue
        if features.ndim == 3 and folder.allows_rows(len(features)):
            features = features[: folder.frames]
        if features.dtype.kind != "f":
            yield f"{path} has the type {features.dtype}, but it must be floating-point."
        elif features.ndim != 3 or features.shape[:2] != (folder.frames, 16):
            yield (
                f"{path} has the shape {list(features.shape)}, but it must be [{folder.frames}, "
                "16, C]. Run `talker speech` again."
            )
        elif features.dtype.kind != "f":
            yield f"{path} has the type {features.dtype}, but it must have floating-point numbers."
        elif not np.isfinite(features).all():
            yield (
                f"{path} has values that are not finite in {_bad_rows(folder, features)}. Run "
                "`talker speech` again."
            )


def blink_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that au.csv has the eye closure, and brows if any, of each frame."""
    path = folder.path / layout.ACTION_UNITS
    eye = read_eye(path)
    if len(eye) != folder.frames and not folder.allows_rows(len(eye)):
        yield (
            f"{path} has {counted(len(eye), 'row')}, but there are {folder.frames} frames. Run "
            "`talker blink` again."
        )


def pose_faults(folder: FolderSpec) -> Iterator[str]:
    """Check that track_params.pt has a row for each frame and agrees with the transforms files."""
    path = folder.path / layout.TRACK_PARAMS
    params = read_track_params(path)
    if len(params.euler) != folder.frames:
        yield (
            f"{path} has {counted(len(params.euler), 'row')} in `euler`, but there are "
            f"{folder.frames} frames. Run `talker track` again."
        )
        return
    if params.vertices is None:
        yield f"{path} has no head mesh (`vertices`). Run `talker track` again."
    matrices = transform_matrices(params.euler.astype(float), params.trans.astype(float))
    split = split_of_transforms(folder.path, folder.frames, folder.train_frames)
    parts = (
        (layout.TRANSFORMS_TRAIN, range(split)),
        (layout.TRANSFORMS_VAL, range(split, folder.frames)),
    )
    for name, ids in parts:
        tracked = {i for i in ids if params.valid[i]}
        file = folder.path / name
        try:
            yield from transforms_faults(folder, file, tracked, matrices, params.focal)
        except UserError as error:
            yield str(error)


def split_of_transforms(folder: Path, frames: int, own: int) -> int:
    """Return the number of training frames that a folder's transforms files assume.

    Talker trains on the first `own` frames. Files of other programs, which may be in a folder that
    talker prepared, use the published split, which holds out fewer frames of a short clip.
    """
    with suppress(UserError):
        ids = read_transforms(folder / layout.TRANSFORMS_TRAIN, frames).ids
        if ids.max(initial=-1) >= own:
            return published_train_length(frames)
    return own


def transforms_faults(
    folder: FolderSpec, path: Path, expected: set[int], matrices: np.ndarray, focal: float
) -> Iterator[str]:
    """Check that a transforms file lists the `expected` frames once each, with their poses."""
    content = read_transforms(path, folder.frames)
    camera = (content.focal, *content.center)
    ids, poses = content.ids.tolist(), content.matrices
    if not np.allclose(camera, (focal, folder.width / 2, folder.height / 2), rtol=1e-4):
        yield (
            f"In {path}, focal_len, cx and cy are {camera}. They must be the focal length of "
            f"track_params.pt ({focal:.2f}) and the center of the image. Run `talker track` again."
        )
    if ids != content.audio_ids.tolist():
        yield f"{path} has frames whose img_id and aud_id differ. Run `talker track` again."
    if foreign := set(ids) - expected:
        yield (
            f"{path} lists {folder.list_frames(foreign)}, which are not tracked or belong to the "
            "other transforms file. Run `talker track` again."
        )
    if missing := expected - set(ids):
        yield f"{path} does not list {folder.list_frames(missing)}. Run `talker track` again."
    if len(set(ids)) < len(ids):
        yield f"{path} lists a frame more than once. Run `talker track` again."
    rows = [row for row, i in enumerate(ids) if i in expected]
    known = np.array([ids[row] for row in rows], int)
    error = _pose_errors(poses[rows], matrices[known])
    if not folder.own:  # some scripts write translations in dm
        in_dm = matrices[known]
        in_dm[:, :3, 3] *= 10
        error = min(error, _pose_errors(poses[rows], in_dm), key=lambda each: each.max(initial=0))
    if (wrong := ~(error <= POSE_TOLERANCE)).any():
        yield (
            f"{path} has poses that differ from track_params.pt by up to {error.max():.2g}, in "
            f"{folder.list_frames(known[wrong].tolist())}. Run `talker track` again."
        )


def _pose_errors(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the largest difference of each pair of matrices [N, 4, 4]."""
    return np.abs(actual - expected).max(axis=(1, 2), initial=0.0)


CHECKS = (
    clip_faults,
    image_faults,
    color_faults,
    landmark_faults,
    mesh_faults,
    sound_faults,
    speech_faults,
    blink_faults,
    pose_faults,
)
