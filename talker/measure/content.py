"""Find files of a dataset folder that belong to another frame or another clip.

Every file is compared with files that it was computed from or that show the same thing. Layers and
masks are compared with the frames, masks and poses with the landmarks, and blinks with the eyelids.
(`talker lipsync` compares speech features with the audio.) A frame is reported if it deviates much
more than most frames of the clip, so that the limits also fit folders of other scripts.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from talker.clip import load_per_frame
from talker.core.parallel import one_opencv_thread, ordered_map
from talker.data import layout
from talker.data.formats import TrackParams, read_au45, read_track_params, read_track_report
from talker.errors import UserError, counted
from talker.head.camera import viewmats_from_pose
from talker.head.landmarks68 import JAW, eye_aspect_ratio, landmarks68, read_lms
from talker.measure.faults import FolderSpec
from talker.media.images import read_image

BLOCK = 16
"""Side in pixels of the blocks in which images are compared: one block of JPEG with chroma at half
resolution."""
ROW_STEP = 4
"""Every fourth row of the images is compared, which takes a quarter of the time."""
COMPOSITE_LIMITS = (8.0, 1.6, 20.0)
"""Limits of the difference between a composite and its frame, averaged over a block. A difference
below the first value, in gray levels, is always accepted, and one above the third value never.
Between them, it may be as large as the second value times the median over the frames. On five real
clips, the medians were 2.5 to 6.3 and the largest values 3.3 to 7.6."""
TORSO_LIMITS = (0.5, 3.0, 20.0)
"""The same limits for the upper quartile of the blocks of the clothes in the torso layer."""
HEAD_SHARE = 0.7
"""Smallest accepted fraction of the inner landmarks that the mask assigns to the head."""
POSE_LIMITS = (0.04, 5.0, 0.1)
"""The same limits for the distance between the rigid landmarks of a frame and their projection, as
a fraction of the width of the face. On five real clips the medians were 0.003 to 0.006 and the
largest values 0.009 to 0.019."""
RIGID = [27, 28, 29, 30, 33, 36, 39, 42, 45]
"""Landmarks of the nose and the eye corners, which hardly move with the expression."""
MESH_TOLERANCE = 0.01
"""Largest accepted difference in pixels between a .lms file and landmarks.npz."""
BLINK_FRAMES = 250
"""Number of frames from which blinks are compared with the eyelids."""
MIN_BLINK_CORRELATION = 0.1
"""Smallest accepted correlation of AU45 with the closure of the eyelids."""


def content_faults(folder: FolderSpec) -> list[str]:
    """Return one sentence for every file of a complete folder that belongs to something else."""
    faults: list[str] = []
    for check in CHECKS:
        try:
            faults.extend(check(folder))
        except UserError as error:
            faults.append(str(error))
    return faults


def image_faults(folder: FolderSpec) -> Iterator[str]:
    """Compare masks with landmarks, and composites and torsos with frames, masks and plate."""
    valid = read_track_params(folder.path / layout.TRACK_PARAMS).valid
    landmarks = all_landmarks(folder)
    plate = read_image(folder.path / layout.PLATE)[::ROW_STEP]

    def measure(i: int) -> tuple[float, float, float]:
        images = [read_image(kind.path(folder.path, i)) for kind in layout.IMAGES]
        head = layout.class_mask(images[1], layout.HEAD)
        share = head_share(head, landmarks[i]) if valid[i] else 1.0
        frame, mask, composite, torso = (image[::ROW_STEP] for image in images)
        return (
            composite_error(frame, mask, composite, plate),
            torso_error(frame, mask, torso),
            share,
        )

    with one_opencv_thread():
        composites, torsos, shares = np.array(list(ordered_map(measure, folder.ids))).T
    findings = (
        (
            _outliers(composites, *COMPOSITE_LIMITS),
            layout.COMPOSITES.folder,
            "frame, mask or bc.jpg",
            "layers",
        ),
        (_outliers(torsos, *TORSO_LIMITS), layout.TORSOS.folder, "clothes in the frame", "layers"),
        (np.flatnonzero(shares < HEAD_SHARE), "parsing", "landmarks of the face", "parsing"),
    )
    for wrong, images, other, stage in findings:
        if wrong.size:
            yield (
                f"In {folder.list_frames(wrong.tolist())}, the images in {folder.path / images} do "
                f"not match the {other}. One of the files belongs to another frame or clip. Run "
                f"`talker {stage}` again."
            )


def composite_error(
    frame: np.ndarray, mask: np.ndarray, composite: np.ndarray, plate: np.ndarray
) -> float:
    """Return the largest mean difference, over blocks, between a composite and its layers.

    The layers are the frame, and the background plate where the mask is background.
    """
    expected = frame.copy()
    cv2.copyTo(plate, layout.class_mask(mask, layout.BACKGROUND), expected)
    return float(_blocks(_largest_channel(cv2.absdiff(composite, expected))).max())


def torso_error(frame: np.ndarray, mask: np.ndarray, torso: np.ndarray) -> float:
    """Return the upper quartile of the mean differences of the clothes' blocks from the frame."""
    covered = _blocks(layout.class_mask(mask, layout.TORSO)) > 254
    if not covered.any():
        return 0.0
    difference = _largest_channel(cv2.absdiff(cv2.cvtColor(torso, cv2.COLOR_RGBA2RGB), frame))
    difference[torso[..., 3] < 255] = 255
    return float(np.percentile(_blocks(difference)[covered], 75))


def head_share(head: np.ndarray, landmarks: np.ndarray) -> float:
    """Return the fraction of the inner landmarks [68, 2] on the head, nonzero in uint8 [H, W]."""
    x, y = np.clip(landmarks[JAW.stop :].astype(int), 0, np.array(head.shape)[::-1] - 1).T
    return float((head[y, x] > 0).mean())


def _largest_channel(image: np.ndarray) -> np.ndarray:
    """Return the largest of the three channels of each pixel of uint8 [H, W, 3]."""
    first, second, third = cv2.split(image)
    return cv2.max(cv2.max(first, second), third)


def _blocks(image: np.ndarray) -> np.ndarray:
    """Return the mean of every complete block of an image [H / ROW_STEP, W], float32."""
    rows, columns = BLOCK // ROW_STEP, BLOCK
    height, width = image.shape[0] // rows * rows, image.shape[1] // columns * columns
    if not height or not width:
        return image.astype(np.float32)
    size = width // columns, height // rows
    return cv2.resize(image[:height, :width].astype(np.float32), size, interpolation=cv2.INTER_AREA)


def _outliers(values: np.ndarray, always: float, ratio: float, never: float) -> np.ndarray:
    """Return the frames whose value exceeds the limits, see `COMPOSITE_LIMITS`."""
    return np.flatnonzero(~(values <= np.clip(ratio * np.nanmedian(values), always, never)))


def landmark_faults(folder: FolderSpec) -> Iterator[str]:
    """Compare the .lms files with landmarks.npz, in a folder that talker made."""
    if not folder.own:
        return
    arrays = load_per_frame(folder.path / layout.LANDMARKS, folder.frames, "points")
    difference = np.abs(landmarks68(arrays["points"]) - all_landmarks(folder)).max(axis=(1, 2))
    if (wrong := np.flatnonzero(~(difference <= MESH_TOLERANCE) & arrays["valid"])).size:
        ids = folder.list_frames(wrong.tolist())
        yield (
            f"{folder.path / layout.FRAME_LANDMARKS.folder} has .lms files that differ from "
            f"{layout.LANDMARKS}, in {ids}. Run `talker landmarks` again."
        )


def pose_faults(folder: FolderSpec) -> Iterator[str]:
    """Compare the poses with the landmarks by reprojection.

    Nose and eye corners are triangulated from all tracked frames: they are fixed points of the
    head, so the pose of a frame projects them to the landmarks of that frame.
    """
    path = folder.path / layout.TRACK_PARAMS
    params = read_track_params(path)
    if len(params.expression) > 1 and not np.ptp(params.expression, axis=0).any():
        yield f"{path} has the same expression in all frames. Run `talker track` again."
    valid = np.flatnonzero(params.valid)
    if len(valid) < 2:
        return
    errors = reprojection_errors(params, all_landmarks(folder), (folder.height, folder.width))
    if not np.median(errors) <= POSE_LIMITS[2]:
        yield (
            f"{path} has poses that differ from the landmarks by {100 * np.median(errors):.0f} % "
            "of the face width. The poses belong to another clip. Run `talker track` again."
        )
    elif (wrong := valid[_outliers(errors, *POSE_LIMITS)]).size:
        ids = folder.list_frames(wrong.tolist())
        yield (
            f"{path} has poses that differ from the landmarks, in {ids}. The poses belong to "
            "other frames. Run `talker track` again."
        )


def reprojection_errors(
    params: TrackParams, landmarks: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Return the median distance between landmarks and projected head points of tracked frames.

    Args:
        params: poses of T frames.
        landmarks: [T, 68, 2] in pixels.
        size: height and width of the image.

    Returns:
        Fractions of the median width of the face, one for each of the N valid frames.
    """
    tracked = landmarks[params.valid].astype(float)
    viewmats = viewmats_from_pose(params.euler, params.trans)[params.valid].astype(float)
    height, width = size
    rays = (tracked[:, RIGID] - np.array([width / 2, height / 2])) / params.focal
    rotation, translation = viewmats[:, :3, :3], viewmats[:, :3, 3]
    projected = np.empty_like(rays)
    for k in range(len(RIGID)):
        point = _triangulate(rays[:, k], rotation, translation)
        camera = rotation @ point + translation
        projected[:, k] = camera[:, :2] / camera[:, 2:]
    distance = np.median(np.linalg.norm(projected - rays, axis=2), axis=1) * params.focal
    return distance / max(float(np.median(np.ptp(tracked[..., 0], axis=1))), 1.0)


def _triangulate(rays: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return the point [3] whose projections are closest to `rays` [N, 2], by the L1 norm."""
    rows = rays[:, :, None] * rotation[:, 2:3] - rotation[:, :2]
    right = translation[:, :2] - rays * translation[:, 2:]
    weights, point = np.ones(len(rays)), np.zeros(3)
    for _ in range(5):
        scaled = np.repeat(weights, 2)[:, None]
        point = np.linalg.lstsq(
            scaled * rows.reshape(-1, 3), scaled[:, 0] * right.ravel(), rcond=None
        )[0]
        residuals = np.linalg.norm(rows @ point - right, axis=1)
        weights = 1 / np.sqrt(np.maximum(residuals, 1e-3 * np.abs(translation[:, 2])))
    return point


def report_faults(folder: FolderSpec) -> Iterator[str]:
    """Compare track_report.json with track_params.pt."""
    path = folder.path / layout.TRACK_REPORT
    if not path.exists():
        return
    params = read_track_params(folder.path / layout.TRACK_PARAMS)
    report = read_track_report(path)
    stored = report.frames, report.tracked, report.focal
    expected = folder.frames, int(params.valid.sum()), params.focal
    if not np.allclose(stored, expected, rtol=1e-4):
        yield (
            f"{path} describes {counted(stored[0], 'frame')} ({stored[1]} tracked, focal length "
            f"{stored[2]:.1f} px), but {layout.TRACK_PARAMS} has {expected[0]} frames "
            f"({expected[1]} tracked, focal length {expected[2]:.1f} px). Run `talker track` again."
        )


def blink_faults(folder: FolderSpec) -> Iterator[str]:
    """Compare the blinks with the eyelids of the landmarks."""
    if folder.frames < BLINK_FRAMES:
        return
    path = folder.path / layout.ACTION_UNITS
    valid = read_track_params(folder.path / layout.TRACK_PARAMS).valid
    closure = read_au45(path)[: folder.frames][valid]
    opening = eye_aspect_ratio(all_landmarks(folder)[valid])
    if not closure.std() or not opening.std():
        return
    correlation = -float(np.corrcoef(closure, opening)[0, 1])
    if not correlation >= MIN_BLINK_CORRELATION:
        yield (
            f"The blinks in {path} have a correlation of {correlation:.2f} with the landmarks of "
            f"the eyes. It must be at least {MIN_BLINK_CORRELATION}. The blinks belong to another "
            "clip. Run `talker blink` again."
        )


def all_landmarks(folder: FolderSpec) -> np.ndarray:
    """Read the landmarks of all frames, float32 [T, 68, 2]."""
    files: Iterable[Path] = (layout.FRAME_LANDMARKS.path(folder.path, i) for i in folder.ids)
    return np.stack([read_lms(file) for file in files])


CHECKS: tuple[Callable[[FolderSpec], Iterator[str]], ...] = (
    image_faults,
    landmark_faults,
    pose_faults,
    report_faults,
    blink_faults,
)
