"""Find the face mesh in every frame: 478 points in landmarks.npz, 68 of them in `.lms` files.

The largest face of the first frame is followed; frames without it are marked invalid and their
points are interpolated.
`talker landmarks --clip clip.json --images ori_imgs --landmarks landmarks.npz`
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from talker.clip import Clip, save_per_frame
from talker.core.config import validated
from talker.core.files import Changed, Output
from talker.core.progress import progress
from talker.errors import UserError
from talker.head.landmarks68 import landmarks68, write_lms
from talker.media.images import read_numbered
from talker.media.mediapipe import MESH_POINTS, detect_faces, track_meshes

logger = logging.getLogger(__name__)

SMALL_FACE = 0.25
"""The mesh's own detector misses faces narrower than this part of the image (measured: 1/8)."""


@validated
class Config:
    min_valid: float = 0.8
    """least part of the frames in which the face must be found"""
    min_overlap: float = 0.3
    """least intersection over union of the same face in neighbouring frames"""
    patience: int = 25
    """frames to wait for a lost face before the largest other one is taken"""
    max_faces: int = 4
    """most faces to mesh in one frame when several are in view"""


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box [4] (x0, y0, x1, y1) with boxes [N, 4]: [N]."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / np.maximum((box[2:] - box[:2]).prod() + areas - shared, 1e-9)


def follow(candidates: Sequence[np.ndarray], config: Config) -> np.ndarray:
    """Choose one box a frame: the largest at the start, then the one that overlaps it most.

    Args:
        candidates: T arrays [N, 4] of boxes x0, y0, x1, y1.

    Returns:
        int [T]: the chosen row, -1 where the face is not there.
    """
    chosen = np.full(len(candidates), -1)
    box, lost = None, 0
    for i, boxes in enumerate(candidates):
        if not len(boxes):
            lost += 1
            continue
        if box is None or lost >= config.patience:
            best = int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())
        else:
            overlaps = overlap(box, boxes)
            best = int(overlaps.argmax())
            if overlaps[best] < config.min_overlap:
                lost += 1
                continue
        chosen[i], box, lost = best, boxes[best], 0
    return chosen


def interpolate(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace the rows of points [T, ...] that are not `valid` [T]: linear in time, edges held."""
    good = np.flatnonzero(valid)
    place = np.interp(np.arange(len(valid)), good, np.arange(len(good)))
    before = place.astype(int)
    after = np.minimum(before + 1, len(good) - 1)
    part = (place - before).reshape(-1, *[1] * (points.ndim - 1)).astype(points.dtype)
    return points[good[before]] * (1 - part) + points[good[after]] * part


def rival(boxes: np.ndarray, row: int) -> float:
    """Area of the largest other box of [N, 4] over that of the chosen row (-1: none is chosen)."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    others = np.delete(areas, row) if row >= 0 else areas[:0]
    return float(others.max() / areas[row]) if len(others) else 0.0


def _chosen(candidates: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The chosen row of each frame that has one."""
    return np.array([each[row] for each, row in zip(candidates, rows, strict=True) if row >= 0])


def _bounding_boxes(meshes: np.ndarray) -> np.ndarray:
    """[N, 478, 3] -> [N, 4]."""
    return np.concatenate([meshes[..., :2].min(1), meshes[..., :2].max(1)], 1)


def _window(boxes: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns to search: the image, or the surroundings of a small face's boxes [N, 4]."""
    if not len(boxes):
        return slice(0, height), slice(0, width)
    sizes = boxes[:, 2:] - boxes[:, :2]
    if np.median(sizes) >= SMALL_FACE * max(height, width):
        return slice(0, height), slice(0, width)
    margin = np.median(sizes)
    x0, y0 = np.maximum(boxes[:, :2].min(0) - margin, 0).astype(int)
    x1, y1 = (boxes[:, 2:].max(0) + margin).astype(int)
    return slice(y0, min(y1, height)), slice(x0, min(x1, width))


def find(clip: Clip, images: Path, config: Config) -> dict[str, np.ndarray]:
    """Follow one face through the clip.

    Returns:
        valid bool [T]; points float32 [T, 478, 3] px; n_faces int32 [T]; rival float32 [T], area
        of the largest other face over that of this one; box float32 [T, 4] px, the bounding box
        of the points. Invalid rows are interpolated.

    Raises:
        UserError: too few frames show the face.
    """
    found = [
        boxes[:, :4]
        for boxes in progress(detect_faces(read_numbered(images, clip)), "faces", clip.frames)
    ]
    n_faces = np.array([len(boxes) for boxes in found], np.int32)
    followed = follow(found, config)
    rows, columns = _window(_chosen(found, followed), clip.height, clip.width)
    crops = (np.ascontiguousarray(image[rows, columns]) for image in read_numbered(images, clip))
    most = int(np.clip(n_faces.max(), 1, config.max_faces))
    shift = np.array([columns.start, rows.start, 0], np.float32)
    meshes = [
        mesh + shift
        for mesh in progress(track_meshes(crops, max_faces=most), "meshes", clip.frames)
    ]
    chosen = follow([_bounding_boxes(mesh) for mesh in meshes], config)
    valid = chosen >= 0
    if not valid.any() or valid.mean() < config.min_valid:
        raise UserError(
            f"{images}: a face was found in {valid.sum()} of {clip.frames} frames, expected at "
            f"least {config.min_valid:.0%} of them; use a video, or a part of one, in which one "
            "person looks towards the camera throughout and the face is at least 64 pixels wide"
        )
    points = np.zeros((clip.frames, MESH_POINTS, 3), np.float32)
    points[valid] = _chosen(meshes, chosen)
    points = interpolate(points, valid)
    return {
        "valid": valid,
        "points": points,
        "n_faces": n_faces,
        "rival": np.array(
            [rival(boxes, row) for boxes, row in zip(found, followed, strict=True)], np.float32
        ),
        "box": _bounding_boxes(points),
    }


def main(*, clip: Path, images: Changed, landmarks: Output, config: Config = Config()) -> None:
    """Find the face mesh and the 68 landmarks in every frame.

    Args:
        clip: clip.json of the dataset.
        images: folder of the frames, %d.jpg; the 68 landmarks are written beside them, %d.lms.
        landmarks: file to write: the mesh points, per frame.
        config: options.
    """
    found = find(Clip.load(clip), images, config)
    for i, points in enumerate(landmarks68(found["points"])):
        write_lms(images / f"{i}.lms", points)
    save_per_frame(landmarks, **found)
    logger.info(
        "face found in %d of %d frames, %d frames show several faces",
        found["valid"].sum(),
        len(found["valid"]),
        (found["n_faces"] > 1).sum(),
    )
