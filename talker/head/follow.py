"""Follow one face through the face boxes of a clip, and interpolate the frames without it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, Real


def iou(box: Real[np.ndarray, "4"], boxes: Real[np.ndarray, "N 4"]) -> Float[np.ndarray, "N"]:
    """Return the intersection over union [N] of a box [4] (x0, y0, x1, y1) with boxes [N, 4]."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / np.maximum((box[2:] - box[:2]).prod() + areas - shared, 1e-9)


def follow_face(
    candidates: Sequence[np.ndarray], min_overlap: float, patience: int
) -> Integer[np.ndarray, "T"]:
    """Choose one box per frame: first the largest, then the one that overlaps the last one most.

    Args:
        candidates: T arrays [N, 4] of boxes x0, y0, x1, y1.
        min_overlap: minimum intersection over union with the last chosen box.
        patience: frames to wait for a lost face before the largest other face is followed.

    Returns:
        int [T]: the chosen row of each frame, -1 where the face was not detected.
    """
    chosen = np.full(len(candidates), -1)
    box, lost = None, 0
    for i, boxes in enumerate(candidates):
        if not len(boxes):
            lost += 1
            continue
        if box is None or lost >= patience:
            best = int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())
        else:
            overlaps = iou(box, boxes)
            best = int(overlaps.argmax())
            if overlaps[best] < min_overlap:
                lost += 1
                continue
        chosen[i], box, lost = best, boxes[best], 0
    return chosen


def chosen_rows(candidates: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return the chosen row of each frame; frames without a chosen row are left out."""
    return np.array([each[row] for each, row in zip(candidates, rows, strict=True) if row >= 0])


def rival_area(boxes: Real[np.ndarray, "N 4"], row: int) -> float:
    """Return the area of the largest other box of [N, 4] over that of the chosen row.

    The result is 0 where no box was chosen (row -1) or there is no other box.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    others = np.delete(areas, row) if row >= 0 else areas[:0]
    return float(others.max() / areas[row]) if len(others) else 0.0


def bounding_boxes(points: Real[np.ndarray, "N P C"]) -> Real[np.ndarray, "N 4"]:
    """Return the bounding boxes [N, 4] (x0, y0, x1, y1) of points [N, P, 2 or 3]."""
    return np.concatenate([points[..., :2].min(1), points[..., :2].max(1)], 1)


def interpolate_frames(
    values: Real[np.ndarray, "T *C"], valid: Bool[np.ndarray, "T"]
) -> Real[np.ndarray, "T *C"]:
    """Replace the rows of `values` [T, ...] that are not `valid` [T] by linear interpolation.

    Rows before the first and after the last valid row repeat it.
    """
    good, bad = np.flatnonzero(valid), np.flatnonzero(~valid)
    position = np.interp(bad, good, np.arange(len(good)))
    before = position.astype(int)
    after = np.minimum(before + 1, len(good) - 1)
    part = (position - before).reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
    filled = values.copy()
    filled[bad] = values[good[before]] * (1 - part) + values[good[after]] * part
    return filled
