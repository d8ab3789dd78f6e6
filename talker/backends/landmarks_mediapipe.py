"""Landmarks by MediaPipe's face mesh, whose networks come with the mediapipe wheel."""

from itertools import tee
from pathlib import Path
from typing import Protocol

import numpy as np

from talker.clip import Clip
from talker.core.progress import progress
from talker.head.follow import bounding_boxes, chosen_rows, follow_face, rival_area
from talker.media.images import read_numbered
from talker.media.mediapipe import MESH_POINTS, detect_faces, track_meshes

SMALL_FACE = 0.25
"""Face width, as a fraction of the longer image side, below which only the surroundings of the face
are given to the face mesh; its own detector misses faces below about 1/8."""


class Options(Protocol):
    """The options of the stage that this backend reads."""

    min_overlap: float
    patience: int
    max_faces: int


def detect(clip: Clip, images: Path, options: Options) -> dict[str, np.ndarray]:
    """Detect the mesh of one face in every frame.

    The face detector and the face mesh read the frames in one pass. A second pass of the mesh
    follows only if the detector found several faces or a small one, because the mesh then needs
    another crop or must track more faces.

    Returns:
        valid bool [T]; points float32 [T, 478, 3] in pixels, 0 where not valid; n_faces int32 [T];
        rival float32 [T], area of the largest other face divided by that of this one.
    """
    for_faces, for_meshes = tee(read_numbered(images, clip))
    both = zip(detect_faces(for_faces), track_meshes(for_meshes), strict=True)
    boxes: list[np.ndarray] = []
    meshes: list[np.ndarray] = []
    for faces, found in progress(both, "faces", clip.frames):
        boxes.append(faces[:, :4])
        meshes.append(found)
    n_faces = np.array([len(each) for each in boxes], np.int32)
    followed = follow_face(boxes, options.min_overlap, options.patience)
    most = int(np.clip(n_faces.max(), 1, options.max_faces))
    rows, columns = _window(chosen_rows(boxes, followed), clip.height, clip.width)
    whole = (rows, columns) == (slice(0, clip.height), slice(0, clip.width))
    if most > 1 or not whole:
        crops = (np.ascontiguousarray(each[rows, columns]) for each in read_numbered(images, clip))
        shift = np.array([columns.start, rows.start, 0], np.float32)
        tracked = progress(track_meshes(crops, max_faces=most), "meshes", clip.frames)
        meshes = [mesh + shift for mesh in tracked]
    mesh_boxes = [bounding_boxes(mesh) for mesh in meshes]
    chosen = follow_face(mesh_boxes, options.min_overlap, options.patience)
    valid = chosen >= 0
    points = np.zeros((clip.frames, MESH_POINTS, 3), np.float32)
    for i in np.flatnonzero(valid):
        points[i] = meshes[i][chosen[i]]
    rival = [rival_area(each, row) for each, row in zip(boxes, followed, strict=True)]
    return {
        "valid": valid,
        "points": points,
        "n_faces": n_faces,
        "rival": np.array(rival, np.float32),
    }


def _window(boxes: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns to search: all, or the surroundings of a small face.

    Args:
        boxes: [N, 4], boxes of the followed face.
    """
    if not len(boxes):
        return slice(0, height), slice(0, width)
    sizes = boxes[:, 2:] - boxes[:, :2]
    if np.median(sizes) >= SMALL_FACE * max(height, width):
        return slice(0, height), slice(0, width)
    margin = np.median(sizes)
    x0, y0 = np.maximum(boxes[:, :2].min(0) - margin, 0).astype(int)
    x1, y1 = (boxes[:, 2:].max(0) + margin).astype(int)
    return slice(y0, min(y1, height)), slice(x0, min(x1, width))
