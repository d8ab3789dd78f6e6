"""Landmarks by MediaPipe's face mesh, whose networks come with the mediapipe wheel."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from talker.clip import Clip
from talker.core.parallel import ordered_map
from talker.core.progress import progress
from talker.head.follow import bounding_boxes, chosen_rows, follow_face, rival_area
from talker.media.images import read_frame
from talker.media.mediapipe import MESH_POINTS, detect_faces, track_meshes

SMALL_FACE = 0.25
"""Face width, as a fraction of the longer image side, below which only the surroundings of the face
are given to the face mesh; its own detector misses faces below about 1/8."""

WARM_UP = 16
"""Frames that the face mesh tracks before the first frame of a part. After that, it hardly depends
on the frame at which it started (docs/performance.md)."""

SHORT_PART, LONG_PART = 64, 160
"""Smallest and largest number of frames in a part of a clip; only a shorter clip has fewer."""

PARTS_MULTIPLE = 8
"""The number of parts of a long clip is a multiple of this, so that 2, 4 or 8 threads finish at the
same time."""

Result = TypeVar("Result")


class Options(Protocol):
    """The options of the stage that this backend reads."""

    min_overlap: float
    patience: int
    max_faces: int


def detect(clip: Clip, images: Path, options: Options) -> dict[str, np.ndarray]:
    """Detect the mesh of one face in every frame.

    The face detector and the face mesh read the frames in one pass. A second pass of the mesh
    follows only if the detector found several faces or a small one, because the mesh then needs
    another crop or must track more faces. Both passes process several parts of the clip at the same
    time; the parts do not depend on the number of threads.

    Returns:
        valid bool [T]; points float32 [T, 478, 3] in pixels, 0 where not valid; n_faces int32 [T];
        rival float32 [T], area of the largest other face divided by that of this one.
    """

    def read(ids: Iterable[int]) -> Iterator[np.ndarray]:
        return (read_frame(images, clip, i) for i in ids)

    def first_pass(part: Part) -> list[tuple[np.ndarray, np.ndarray]]:
        before, own = part.ids[: part.warm_up], part.ids[part.warm_up :]
        waiting: deque[np.ndarray] = deque()  # images that only the detector has seen

        def kept() -> Iterator[np.ndarray]:
            for image in read(own):
                waiting.append(image)
                yield image

        again = chain(read(before), (waiting.popleft() for _ in own))
        meshes = islice(track_meshes(again), part.warm_up, None)
        return [
            (boxes[:, :4], found) for boxes, found in zip(detect_faces(kept()), meshes, strict=True)
        ]

    def second_pass(part: Part) -> list[np.ndarray]:
        crops = (np.ascontiguousarray(each[rows, columns]) for each in read(part.ids))
        meshes = islice(track_meshes(crops, max_faces=most), part.warm_up, None)
        return [mesh + shift for mesh in meshes]

    boxes, meshes = zip(*_in_parts(first_pass, clip.frames, "faces"), strict=True)
    n_faces = np.array([len(each) for each in boxes], np.int32)
    followed = follow_face(boxes, options.min_overlap, options.patience)
    most = int(np.clip(n_faces.max(), 1, options.max_faces))
    rows, columns = _window(chosen_rows(boxes, followed), clip.height, clip.width)
    whole = (rows, columns) == (slice(0, clip.height), slice(0, clip.width))
    if most > 1 or not whole:
        shift = np.array([columns.start, rows.start, 0], np.float32)
        meshes = list(_in_parts(second_pass, clip.frames, "meshes"))
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


class Part(NamedTuple):
    """Consecutive frames of a clip."""

    ids: range
    """Frames to process."""
    warm_up: int
    """Number of frames at the start of `ids` that belong to the part before."""


def parts(frames: int) -> list[Part]:
    """Divide a clip into parts of about the same length."""
    multiples = math.ceil(frames / (PARTS_MULTIPLE * LONG_PART))
    count = min(max(frames // SHORT_PART, 1), PARTS_MULTIPLE * multiples)
    borders = [frames * i // count for i in range(count + 1)]
    starts = [max(border - WARM_UP, 0) for border in borders]
    return [Part(range(starts[i], borders[i + 1]), borders[i] - starts[i]) for i in range(count)]


def _in_parts(process: Callable[[Part], list[Result]], frames: int, name: str) -> Iterator[Result]:
    """Process the parts of a clip in threads, and yield the result of each frame in order."""
    results = ordered_map(process, parts(frames))
    return progress(chain.from_iterable(results), name, frames)


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
