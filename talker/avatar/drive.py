"""Generate or read the motion that speech does not determine: head poses, blinks and brows."""

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Real
from scipy.ndimage import gaussian_filter1d

from talker.avatar.model import Avatar
from talker.clip import FPS, load_arrays, load_text, runs
from talker.data.formats import BROW_UNITS, brow_raise, eye_closure
from talker.data.layout import ACTION_UNITS
from talker.dataset import Dataset
from talker.errors import UserError
from talker.head.camera import viewmats_from_pose

MAX_GAP = 2
"""Longest gap in frames within a stretch; its invalid frames are replaced by valid neighbors."""
SHORT_STRETCH = 3 * FPS
"""Length in frames above which a stretch is cut where the head is nearly still; shorter stretches
are used whole."""
CLOSED = 0.5
"""Eye closure (0..1) above which an eye counts as closed."""
BLINK_REACH = 7
"""Number of frames before and after the middle of a blink that belong to the blink."""
USUAL_INTERVAL = 4.0
"""Mean time in seconds between two blinks for subjects who blinked fewer than three times."""
SHORTEST_INTERVAL = 0.5
"""Shortest time in seconds between two blinks."""
FOLLOW = 12
"""Largest number of frames by which the torso may move forward or back at once to follow a pose."""
JUMP_DISTANCE = 0.03
"""The torso jumps to a distant frame only if that frame is closer to the given pose by more than
this distance in dm."""
CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)
"""Points on the head [8, 3] in dm that represent its pose."""


def ping_pong(length: int, period: int) -> Int64[np.ndarray, "{length}"]:
    """Count from 0 to period - 1 and back repeatedly, without repeating the ends.

    Returns:
        int64 [length]; neighbors differ by exactly 1 (or are all 0 where period is 1).
    """
    steps = np.arange(length) % max(2 * period - 2, 1)
    return np.minimum(steps, 2 * period - 2 - steps)


def longest_run(valid: Bool[np.ndarray, "T"]) -> Int64[np.ndarray, "N"]:
    """Return the ids of the longest run of true entries of bool [T], int64, possibly empty."""
    starts, ends = runs(valid)
    if len(starts) == 0:
        return np.empty(0, np.int64)
    best = int(np.argmax(ends - starts))
    return np.arange(starts[best], ends[best])


def close_gaps(valid: Bool[np.ndarray, "T"], longest: int = MAX_GAP) -> Bool[np.ndarray, "T"]:
    """Fill gaps of at most `longest` frames between valid ones: bool [T] -> bool [T]."""
    filled = valid.copy()
    for start, end in zip(*runs(~valid), strict=True):
        if start > 0 and end < len(valid) and end - start <= longest:
            filled[start:end] = True
    return filled


def nearest_valid(
    frames: Int64[np.ndarray, "N"], valid: Bool[np.ndarray, "T"]
) -> Int64[np.ndarray, "N"]:
    """Replace invalid frame ids by the nearest valid ones (the earlier of two equally near)."""
    good = np.flatnonzero(valid)
    right = np.searchsorted(good, frames).clip(0, len(good) - 1)
    left = (right - 1).clip(0)
    takes_left = np.abs(frames - good[left]) <= np.abs(good[right] - frames)
    return np.where(takes_left, good[left], good[right])


def head_speed(viewmats: Float[np.ndarray, "T 4 4"]) -> Float[np.ndarray, "T"]:
    """Return the smoothed speed of the head relative to the camera, [T, 4, 4] -> [T], dm/frame."""
    points = _points(viewmats)
    velocity = np.gradient(points, axis=0) if len(points) > 1 else np.zeros_like(points)
    return gaussian_filter1d(np.linalg.norm(velocity, axis=-1).mean(-1), 1.5, mode="nearest")


def recorded_path(dataset: Dataset, length: int) -> Int64[np.ndarray, "{length}"]:
    """Return frame ids, int64 [length], that play the longest recorded stretch back and forth.

    Raises:
        UserError: the dataset has no valid frame.
    """
    ids = longest_stretch(dataset)
    return ids[ping_pong(length, len(ids))]


def longest_stretch(dataset: Dataset) -> Int64[np.ndarray, "N"]:
    """Return the frame ids, int64, of the longest recorded stretch of one shot.

    It begins and ends where the head is nearly still, within the first and the last third of the
    recording, so that reversing the motion there causes no visible jerk. Invalid frames in short
    gaps are replaced by valid neighbors.

    Raises:
        UserError: the dataset has no valid frame.
    """
    firsts = np.concatenate([[0], dataset.cuts])
    shots = np.split(dataset.valid, dataset.cuts)
    ids = max(
        (
            first + nearest_valid(longest_run(close_gaps(valid)), valid)
            for first, valid in zip(firsts, shots, strict=True)
        ),
        key=len,
    )
    if len(ids) == 0:
        raise UserError(
            f"{dataset.folder} has no tracked frame, so there is no pose to render. Run `talker "
            "check` to see why the frames were rejected."
        )
    if len(ids) > SHORT_STRETCH:
        speed = head_speed(dataset.viewmats[ids]) + dataset.eye[ids, 0]
        third = len(ids) // 3
        ids = ids[speed[:third].argmin() : len(ids) - third + speed[-third:].argmin() + 1]
    return ids


def followed_path(dataset: Dataset, viewmats: Float[np.ndarray, "N 4 4"]) -> Int64[np.ndarray, "N"]:
    """Return frames whose recorded poses are close to given poses: [N, 4, 4] -> int64 [N].

    Consecutive frames of the result are neighbors in time, unless another frame is closer to the
    given pose by more than `JUMP_DISTANCE`.
    """
    valid = np.flatnonzero(dataset.valid)
    recorded, given = _points(dataset.viewmats[valid]), _points(viewmats)
    path = np.empty(len(given), np.int64)
    low, high = 0, len(valid)
    for k, points in enumerate(given):
        distance = np.linalg.norm(recorded - points, axis=-1).mean(-1)
        at = low + int(distance[low:high].argmin())
        if distance[at] > distance.min() + JUMP_DISTANCE:
            at = int(distance.argmin())
        low, high = max(at - FOLLOW, 0), at + FOLLOW + 1
        path[k] = valid[at]
    return path


def scaled_poses(
    viewmats: Float[np.ndarray, "N 4 4"], factor: float
) -> Float32[np.ndarray, "N 4 4"]:
    """Scale head motion about its mean pose, [N, 4, 4] -> float32 [N, 4, 4]; 0 stops it."""
    from scipy.spatial.transform import Rotation  # takes 0.4 s, and few renderings need it

    rotations = Rotation.from_matrix(viewmats[:, :3, :3].astype(np.float64))
    mean = rotations.mean()
    scaled = np.tile(np.eye(4), (len(viewmats), 1, 1))
    offset = (rotations * mean.inv()).as_rotvec()
    scaled[:, :3, :3] = (Rotation.from_rotvec(factor * offset) * mean).as_matrix()
    position = viewmats[:, :3, 3].astype(np.float64)
    scaled[:, :3, 3] = position.mean(0) + factor * (position - position.mean(0))
    return scaled.astype(np.float32)


def natural_blinks(
    eye: Real[np.ndarray, "T"], length: int, seed: int
) -> Float32[np.ndarray, "{length}"]:
    """Sample eye closure with the subject's own blinks at its own intervals.

    Args:
        eye: recorded eye closure [T], 0 open .. 1 closed.
        length: number of frames.
        seed: seed of the random numbers.

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


def pose_track(
    path: Path, frames: int, dataset: Dataset
) -> tuple[Int64[np.ndarray, "{frames}"], Float32[np.ndarray, "{frames} 4 4"] | None]:
    """Read a pose for each of N = `frames` output frames.

    A table with a column `frame` replays recorded poses, one with the columns `rx ry rz tx ty tz`
    gives poses in the convention of `euler` and `trans` in track_params.pt (docs/conventions.md).

    Returns:
        Frame ids [N] of the torso, and viewmats float32 [N, 4, 4], or None for the recorded poses.

    Raises:
        UserError: the file cannot be read, is too short, or names a frame that does not exist.
    """
    names = ("rx", "ry", "rz", "tx", "ty", "tz")
    table = read_track(path, frames)
    if "frame" in table:
        ids = table["frame"]
        wrong = (ids < 0) | (ids >= dataset.frames) | (ids % 1 != 0)
        if wrong.any():
            raise UserError(
                f"{path} has the value {ids[wrong][0]:g} in the column 'frame'. The "
                f"values must be whole numbers from 0 to {dataset.frames - 1}, which are "
                f"the frames of {dataset.folder}."
            )
        return nearest_valid(ids.astype(np.int64), dataset.valid), None
    if not set(names) <= set(table):
        raise UserError(
            f"{path} has the columns {', '.join(table)}. It must have a column 'frame', "
            f"or the columns {' '.join(names)}."
        )
    values = np.stack([table[name] for name in names], 1)
    viewmats = viewmats_from_pose(values[:, :3], values[:, 3:]).astype(np.float32)
    return followed_path(dataset, viewmats), viewmats


def blink_track(path: Path, frames: int) -> Float32[np.ndarray, "{frames}"]:
    """Read eye closure float32 [frames]: a column `blink`, 0 open .. 1, or OpenFace's `AU45_r`."""
    table = read_track(path, frames)
    if "blink" in table:
        return np.clip(table["blink"], 0, 1).astype(np.float32)
    if "AU45_r" in table:
        return eye_closure(table["AU45_r"])
    raise UserError(
        f"{path} has the columns {', '.join(table)}. It must have a column 'blink' or 'AU45_r'."
    )


def brow_track(path: Path, frames: int, relaxed: float) -> Float32[np.ndarray, "{frames}"]:
    """Read the raise of the brows float32 [frames], in the unit of the recording.

    It is the sum of `relaxed` and a column `brows`, -1 lowered .. 1 raised, or it is computed from
    OpenFace's `AU01_r`, `AU02_r` and `AU04_r`.

    Args:
        path: table.
        frames: number of frames.
        relaxed: raise of relaxed brows (`relaxed_brows`).

    Raises:
        UserError: the file cannot be read, is too short, or has none of these columns.
    """
    table = read_track(path, frames)
    raised = relaxed + table["brows"].clip(-1, 1) if "brows" in table else brow_raise(table)
    if raised is None:
        raise UserError(
            f"{path} has the columns {', '.join(table)}. It must have a column 'brows', or at "
            f"least one of the columns {', '.join(BROW_UNITS)}."
        )
    return np.clip(raised, -1, 1).astype(np.float32)


def brow_range(dataset: Dataset) -> tuple[float, float]:
    """Return the lowest and the highest recorded raise of the brows.

    The brows are only moved in this range, because larger motion would distort them.
    """
    brows = dataset.eye[dataset.valid, 1]
    return float(brows.min()), float(brows.max())


def relaxed_brows(dataset: Dataset) -> float:
    """Return the raise of relaxed brows, which is its median over the recording.

    `talker blink` subtracts the median where it measures the brows itself, but the tables of
    OpenFace and py-feat have another one.
    """
    return float(np.median(dataset.eye[dataset.valid, 1]))


def why_brows_are_still(avatar: Avatar, dataset: Dataset) -> str:
    """Return why the brows of an avatar cannot move and what to do, or "" if they can move."""
    if not avatar.moves_brows:
        return (
            "The brows of this avatar do not move, because an older version of talker trained it. "
            "Train it again with `talker train`."
        )
    low, high = brow_range(dataset)
    if low == high:
        return (
            f"The brows of this avatar do not move, because {dataset.folder} contains no motion of "
            f"the brows (columns {', '.join(BROW_UNITS)} of {ACTION_UNITS}). Run `talker blink`, "
            "and train the avatar again."
        )
    return ""


def expression_track(
    path: Path, frames: int, width: int
) -> Float32[np.ndarray, "{frames} {width}"]:
    """Read expressions float32 [frames, width] from columns `e0`, `e1`, ...; 0 if missing."""
    table = read_track(path, frames)
    names = [f"e{k}" for k in range(width)]
    if not set(names) & set(table):
        raise UserError(
            f"{path} has the columns {', '.join(table)}. It must have at least one of the "
            f"columns {', '.join(names)}."
        )
    zeros = np.zeros(frames)
    return np.stack([table.get(name, zeros) for name in names], 1).astype(np.float32)


def read_track(path: Path, frames: int) -> dict[str, np.ndarray]:
    """Read a table with one row for each frame: a .csv with a header, or an .npz of arrays [N].

    Returns:
        The first `frames` rows of each column.

    Raises:
        UserError: the file cannot be read, has too few rows, or holds values that are not numbers.
    """
    try:
        table = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of numbers ({error}).") from error
    if not table:
        raise UserError(f"{path} is empty. It must have a header and one row for each frame.")
    for name, column in table.items():
        if len(column) < frames or not np.isfinite(column[:frames]).all():
            raise UserError(
                f"{path} must have a number for each of the {frames} frames in the column "
                f"'{name}', but the column has only {int(np.isfinite(column).sum())} finite "
                "numbers."
            )
    return {name: column[:frames] for name, column in table.items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = load_arrays(path)
    if any(column.ndim != 1 for column in arrays.values()):
        raise ValueError("each array must have one dimension")
    return {name: column.astype(float, casting="same_kind") for name, column in arrays.items()}


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    rows = csv.reader(load_text(path).splitlines(keepends=True))
    names = [name.strip() for name in next(rows, [])]
    values = [[float(value) for value in row] for row in rows if row]
    if any(len(row) != len(names) for row in values):
        raise ValueError("the rows have different lengths")
    columns = np.array(values, float).reshape(len(values), len(names)).T
    return dict(zip(names, columns, strict=True))


def _points(viewmats: np.ndarray) -> np.ndarray:
    """Return points on the head in camera coordinates in dm, [T, 4, 4] -> [T, 8, 3]."""
    return CORNERS @ viewmats[:, :3, :3].transpose(0, 2, 1) + viewmats[:, None, :3, 3]


def _blink_shape(eye: np.ndarray, middle: int, open_eye: float) -> np.ndarray:
    """Return the closure [15] that a blink adds to the open eye, fading out at both ends."""
    around = eye[np.arange(middle - BLINK_REACH, middle + BLINK_REACH + 1).clip(0, len(eye) - 1)]
    fade = np.minimum(1, np.hanning(2 * BLINK_REACH + 3)[1:-1] * 3)
    return np.clip(around - open_eye, 0, 1) * fade
