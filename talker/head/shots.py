"""Shot boundaries and frozen frames of a clip, from face meshes, images and optical flow."""

from pathlib import Path

import cv2
import numpy as np

from talker.clip import Clip, runs
from talker.head.flow import Flow, follow_points
from talker.head.fusion import FOLLOWED
from talker.media.images import read_numbered

CUT_JUMP = 0.08
"""Displacement of the face between two frames, as a fraction of its width, above which the pair is
examined for a cut; within a shot it stays below 0.06."""

CUT_CHANGE = 0.03
"""Mean change of the face mesh between two frames, as a fraction of its width, above which the pair
is examined for a cut; within a shot it stays below 0.027."""

CUT_COLORS = 0.2
"""Bhattacharyya distance between the gray-level histograms of two frames above which they belong to
different shots."""

CUT_FOLLOWED = 0.1
"""Fraction of face points followed by optical flow below which two frames belong to different
shots."""

STILL = 0.02
"""Mean motion of the face between two frames, in pixels, below which the picture is frozen."""


def find_cuts(clip: Clip, images: Path, points: np.ndarray, ids: np.ndarray) -> list[int]:
    """Return the first frame of each new shot.

    A pair of frames is a candidate where the face jumps or its mesh changes, and a cut where the
    images confirm it: another histogram, or points that optical flow cannot follow.

    Args:
        images: folder of the frames.
        points: meshes [T, 478, 3] in pixels.
        ids: int [N], frames that show a usable face, sorted; the other frames are skipped.
    """
    if not len(ids):
        return []
    faces = points[ids, :, :2]
    centers = faces.mean(axis=1)
    width = np.ptp(faces[..., 0], axis=1)
    width = np.minimum(width[1:], width[:-1])
    jump = np.linalg.norm(np.diff(centers, axis=0), axis=1) / width
    change = np.linalg.norm(np.diff(faces - centers[:, None], axis=0), axis=-1).mean(axis=1) / width
    cuts = []
    for row in np.flatnonzero((jump > CUT_JUMP) | (change > CUT_CHANGE)):
        pair = list(read_numbered(images, clip, ids=ids[row : row + 2]))
        first, second = (gray_histogram(image) for image in pair)
        differs = cv2.compareHist(first, second, cv2.HISTCMP_BHATTACHARYYA) > CUT_COLORS
        # A jump of the landmarks without motion in the images is an error of the detector, so the
        # points are also followed to where they were.
        goals = faces[row : row + 2], faces[[row, row]]
        followed = max(follow_points(pair, goal, [1])[1].share[0] for goal in goals)
        if differs or followed < CUT_FOLLOWED:
            cuts.append(int(ids[row + 1]))
    return cuts


def gray_histogram(image: np.ndarray) -> np.ndarray:
    """Return the histogram of 64 gray levels of RGB uint8 [H, W, 3]: float32 [64, 1]."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.calcHist([gray], [0], None, [64], [0, 256])


def still_frames(flow: Flow, longest: int) -> np.ndarray:
    """Return the indices of frames in frozen runs of more than `longest` frames.

    Args:
        flow: displacements from frame to frame.
        longest: number of frozen frames that is still accepted.
    """
    size = np.linalg.norm(flow.moved, axis=-1)
    count = flow.good.sum(axis=1)
    mean = (size * flow.good).sum(axis=1) / np.maximum(count, 1)
    bounds = zip(*runs((mean < STILL) & (flow.share > FOLLOWED)), strict=True)
    still = [np.arange(a + 1, b + 1) for a, b in bounds if b - a > longest]
    return np.concatenate(still) if still else np.zeros(0, int)
