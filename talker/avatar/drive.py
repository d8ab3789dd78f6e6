"""What a head does besides speaking: a pose path of any length, blinks, and tracks from files."""

import csv
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from talker.clip import FPS, load_arrays, runs
from talker.data.formats import eye_closure
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import viewmats_from_pose

BRIDGE = 2
"""frames in a row that may be missing in a recorded stretch; their neighbours stand in"""
SHORT_RUN = 3 * FPS
"""frames; shorter stretches are walked from end to end, wherever the head moves there"""
CLOSED = 0.5
"""eye closure from which on an eye counts as blinking"""
BLINK_REACH = 7
"""frames around a blink's middle that belong to it"""
USUAL_INTERVAL = 4.0
"""seconds between blinks of people who talk, for subjects who did not blink thrice"""
SHORTEST_INTERVAL = 0.5
FOLLOW = 12
"""frames that the torso may walk to come nearer to a given pose"""
ASTRAY = 0.03
"""dm"""
CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)
"""points on the head [8, 3], dm"""


def ping_pong(length: int, period: int) -> np.ndarray:
    """Walk 0 .. period-1 and back again, without standing still at the ends, `length` steps long.

    Returns:
        int64 [length], neighbours differ by exactly 1 (or are all 0 where period is 1).
    """
    steps = np.arange(length) % max(2 * period - 2, 1)
    return np.minimum(steps, 2 * period - 2 - steps)


def longest_run(valid: np.ndarray) -> np.ndarray:
    """The longest stretch of consecutive true entries of bool [T]: int64 ids, maybe none."""
    starts, ends = runs(valid)
    if len(starts) == 0:
        return np.empty(0, np.int64)
    best = int(np.argmax(ends - starts))
    return np.arange(starts[best], ends[best])


def bridged(valid: np.ndarray, most: int = BRIDGE) -> np.ndarray:
    """Fill gaps of at most `most` frames between valid ones: bool [T] -> bool [T]."""
    filled = valid.copy()
    for start, end in zip(*runs(~valid), strict=True):
        if start > 0 and end < len(valid) and end - start <= most:
            filled[start:end] = True
    return filled


def nearest_valid(frames: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace each frame id that is not valid by the nearest one that is (the earlier of two)."""
    good = np.flatnonzero(valid)
    right = np.searchsorted(good, frames).clip(0, len(good) - 1)
    left = (right - 1).clip(0)
    takes_left = np.abs(frames - good[left]) <= np.abs(good[right] - frames)
    return np.where(takes_left, good[left], good[right])


def head_speed(viewmats: np.ndarray) -> np.ndarray:
    """How fast the head moves before the camera, smoothed: [T, 4, 4] -> [T], dm a frame."""
    points = _points(viewmats)
    velocity = np.gradient(points, axis=0) if len(points) > 1 else np.zeros_like(points)
    return gaussian_filter1d(np.linalg.norm(velocity, axis=-1).mean(-1), 1.5, mode="nearest")


def recorded_path(dataset: Dataset, length: int) -> np.ndarray:
    """Walk to and fro over the longest recorded stretch: frame ids int64 [length].

    Raises:
        UserError: the dataset has no valid frame.
    """
    ids = stretch(dataset)
    return ids[ping_pong(length, len(ids))]


def stretch(dataset: Dataset) -> np.ndarray:
    """The longest recorded stretch of one shot: int64 ids, each the one before or near to it.

    It begins and ends where the head is nearly still, in the first and in the last third of what
    was recorded, so that turning there is no jerk.

    Raises:
        UserError: the dataset has no valid frame.
    """
    firsts = np.concatenate([[0], dataset.cuts])
    shots = np.split(dataset.valid, dataset.cuts)
    ids = max(
        (
            first + nearest_valid(longest_run(bridged(valid)), valid)
            for first, valid in zip(firsts, shots, strict=True)
        ),
        key=len,
    )
    if len(ids) == 0:
        raise UserError(f"{dataset.folder}: no frame is valid, so there is no pose to show")
    if len(ids) > SHORT_RUN:
        speed = head_speed(dataset.viewmats[ids]) + dataset.eye[ids]
        third = len(ids) // 3
        ids = ids[speed[:third].argmin() : len(ids) - third + speed[-third:].argmin() + 1]
    return ids


def followed_path(dataset: Dataset, viewmats: np.ndarray) -> np.ndarray:
    """Frames whose recorded poses are near to given ones: viewmats [N, 4, 4] -> int64 [N].

    They are neighbours in time unless that leads `ASTRAY` from the given pose.
    """
    valid = np.flatnonzero(dataset.valid)
    recorded, wanted = _points(dataset.viewmats[valid]), _points(viewmats)
    path = np.empty(len(wanted), np.int64)
    low, high = 0, len(valid)
    for k, points in enumerate(wanted):
        away = np.linalg.norm(recorded - points, axis=-1).mean(-1)
        at = low + int(away[low:high].argmin())
        if away[at] > away.min() + ASTRAY:
            at = int(away.argmin())
        low, high = max(at - FOLLOW, 0), at + FOLLOW + 1
        path[k] = valid[at]
    return path


def scaled_poses(viewmats: np.ndarray, factor: float) -> np.ndarray:
    """Scale head motion about its mean pose: [N, 4, 4] -> float32 [N, 4, 4]; 0 holds it still."""
    rotations = Rotation.from_matrix(viewmats[:, :3, :3].astype(np.float64))
    mean = rotations.mean()
    scaled = np.tile(np.eye(4), (len(viewmats), 1, 1))
    away = (rotations * mean.inv()).as_rotvec()
    scaled[:, :3, :3] = (Rotation.from_rotvec(factor * away) * mean).as_matrix()
    place = viewmats[:, :3, 3].astype(np.float64)
    scaled[:, :3, 3] = place.mean(0) + factor * (place - place.mean(0))
    return scaled.astype(np.float32)


def natural_blinks(eye: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Blink as the subject does: its own blinks at its own intervals, drawn at random.

    Args:
        eye: recorded closure [T], 0 open .. 1 closed.
        length: frames wanted.
        seed: of the draw.

    Returns:
        float32 [length], 0..1.
    """
    random = np.random.default_rng(seed)
    starts, ends = runs(eye > CLOSED)
    middles = (starts + ends) // 2
    open_eye = float(np.median(eye[eye <= CLOSED])) if (eye <= CLOSED).any() else 0.0
    shapes = [_blink_shape(eye, int(middle), open_eye) for middle in middles]
    intervals = np.diff(middles).astype(float)
    if len(shapes) < 3:
        shapes = [np.clip(np.hanning(2 * BLINK_REACH + 1) * 1.6 - 0.6, 0, 1)]
        intervals = random.lognormal(np.log(USUAL_INTERVAL * FPS), 0.4, 100)
    closure = np.zeros(length + 2 * BLINK_REACH, np.float32)
    at = random.choice(intervals) * random.random()
    while at < length:
        part = closure[int(at) : int(at) + 2 * BLINK_REACH + 1]
        shape = shapes[random.integers(len(shapes))][: len(part)]
        np.maximum(part, shape, out=part)
        at += max(SHORTEST_INTERVAL * FPS, random.choice(intervals) * random.uniform(0.8, 1.2))
    return np.clip(open_eye + closure[BLINK_REACH : BLINK_REACH + length], 0, 1).astype(np.float32)


def pose_track(path: Path, frames: int, dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a pose for each of `frames` frames.

    A table of frame numbers (`frame`) replays recorded poses; one of `rx ry rz tx ty tz` gives
    poses as `euler` and `trans` of track_params.pt do (docs/conventions.md).

    Returns:
        Frame ids [N] of the torso, and viewmats float32 [N, 4, 4], or None: those of the ids.

    Raises:
        UserError: the file cannot be read, is too short, or names a frame that is not valid.
    """
    names = ("rx", "ry", "rz", "tx", "ty", "tz")
    table = read_track(path, frames)
    if "frame" in table:
        ids = table["frame"]
        wrong = (ids < 0) | (ids >= dataset.frames) | (ids % 1 != 0)
        if wrong.any():
            raise UserError(
                f"{path}: frame {ids[wrong][0]:g}: expected whole numbers from 0 to "
                f"{dataset.frames - 1}, the frames of {dataset.folder}"
            )
        return nearest_valid(ids.astype(np.int64), dataset.valid), None
    if not set(names) <= set(table):
        raise UserError(
            f"{path}: expected a column 'frame', or columns {' '.join(names)}; found "
            f"{', '.join(table)}"
        )
    values = np.stack([table[name] for name in names], 1)
    viewmats = viewmats_from_pose(values[:, :3], values[:, 3:]).astype(np.float32)
    return followed_path(dataset, viewmats), viewmats


def blink_track(path: Path, frames: int) -> np.ndarray:
    """Read eye closure float32 [frames]: `blink` in 0 (open) .. 1, or OpenFace's `AU45_r`."""
    table = read_track(path, frames)
    if "blink" in table:
        return np.clip(table["blink"], 0, 1).astype(np.float32)
    if "AU45_r" in table:
        return eye_closure(table["AU45_r"])
    raise UserError(f"{path}: expected a column 'blink' or 'AU45_r', found {', '.join(table)}")


def expression_track(path: Path, frames: int, width: int) -> np.ndarray:
    """Read expressions float32 [frames, width]: columns `e0`, `e1`, ...; those left out are 0."""
    table = read_track(path, frames)
    names = [f"e{k}" for k in range(width)]
    if not set(names) & set(table):
        raise UserError(f"{path}: expected columns {', '.join(names)}; found {', '.join(table)}")
    zeros = np.zeros(frames)
    return np.stack([table.get(name, zeros) for name in names], 1).astype(np.float32)


def read_track(path: Path, frames: int) -> dict[str, np.ndarray]:
    """Read a table of numbers, one row a frame: a .csv with a header, or an .npz of arrays [N].

    Returns:
        The first `frames` rows of each column.

    Raises:
        UserError: the file cannot be read, holds what is no number, or too few rows.
    """
    try:
        table = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table of numbers ({error})") from error
    if not table:
        raise UserError(f"{path}: expected a header and a row for each frame, found nothing")
    for name, column in table.items():
        if len(column) < frames or not np.isfinite(column[:frames]).all():
            raise UserError(
                f"{path}: column '{name}': expected a number for each of {frames} frames, found "
                f"{int(np.isfinite(column).sum())}"
            )
    return {name: column[:frames] for name, column in table.items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = load_arrays(path)
    if any(column.ndim != 1 for column in arrays.values()):
        raise ValueError("every array has to be [N]")
    return {name: column.astype(float, casting="same_kind") for name, column in arrays.items()}


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        names = [name.strip() for name in next(rows, [])]
        values = [[float(value) for value in row] for row in rows if row]
    if any(len(row) != len(names) for row in values):
        raise ValueError("rows of different lengths")
    columns = np.array(values, float).reshape(len(values), len(names)).T
    return dict(zip(names, columns, strict=True))


def _points(viewmats: np.ndarray) -> np.ndarray:
    """Points on the head before the camera: [T, 4, 4] -> [T, 8, 3], dm."""
    return CORNERS @ viewmats[:, :3, :3].transpose(0, 2, 1) + viewmats[:, None, :3, 3]


def _blink_shape(eye: np.ndarray, middle: int, open_eye: float) -> np.ndarray:
    """What a blink adds to the open eye [15], fading to nothing at its ends."""
    around = eye[np.arange(middle - BLINK_REACH, middle + BLINK_REACH + 1).clip(0, len(eye) - 1)]
    fade = np.minimum(1, np.hanning(2 * BLINK_REACH + 3)[1:-1] * 3)
    return np.clip(around - open_eye, 0, 1) * fade
