"""Shot boundaries, frozen frames and covered faces of a clip.

They are found in images, face meshes and optical flow. The landmark detector predicts a plausible
face even behind a hand, so only the images reveal that something covers the face.
"""

from collections import deque
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from talker.clip import Clip, chunks, runs
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

JUMP_SPIKE = 1.7
"""Minimum ratio of the image difference at a jump cut to the differences of the two frames before
and after it."""

JUMP_LEVEL = 0.85
"""Minimum ratio of the image difference at a jump cut to the differences over two and three frames
across it. The ratio is about 1 at a cut, and 0.5 to 0.8 in continuous motion, where the difference
grows with the distance in time."""

FROZEN = 0.2
"""Ratio of an image difference to the median difference of the clip below which the image is
frozen; motion after frozen frames is not a jump cut."""

HEAD_WIDTH = 48
"""Width in pixels to which faces are reduced for the comparison of frames."""

HEAD_MARGIN = 0.3
"""Margin around the face, as a fraction of its width, in the comparison of frames."""

STILL = 0.02
"""Mean motion of the face between two frames, in pixels, below which the image is frozen."""

SIZE = 64
"""Width and height of a face patch in pixels."""

ANCHORS = [33, 263, 152]
"""Indices of the mesh points that align a patch: the outer eye corners and the chin."""

ANCHOR_PIXELS = np.array([[16, 20], [48, 20], [32, 62]], np.float32)
"""Pixel positions of the anchors in a patch."""

_y, _x = np.mgrid[:SIZE, :SIZE]
FACE = ((_x - 32) / 24) ** 2 + ((_y - 34) / 28) ** 2 < 1
"""Pixels of a patch that show the face: an ellipse, bool [64, 64]."""

SAMPLES = 200
"""Maximum number of frames from which the median face is computed."""

UNUSUAL_DEVIATIONS = 5.0
"""Number of robust standard deviations by which an unusual pixel differs from the median face."""

UNUSUAL_LEVELS = 12.0
"""Minimum number of gray levels by which an unusual pixel differs from the median face."""

COVERED_FRACTION = 0.08
"""Fraction of unusual pixels above which a frame counts as occluded."""

SUSTAINED = 12
"""Minimum length of an occlusion in frames; blinks and speech are shorter."""


def find_cuts(
    clip: Clip, images: Path, points: Float[np.ndarray, "T 478 3"], ids: Integer[np.ndarray, "N"]
) -> list[int]:
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
    jump, change = _face_motion(points, ids)
    cuts = []
    for row in np.flatnonzero((jump > CUT_JUMP) | (change > CUT_CHANGE)):
        pair = list(read_numbered(images, clip, ids=ids[row : row + 2]))
        first, second = (gray_histogram(image) for image in pair)
        differs = cv2.compareHist(first, second, cv2.HISTCMP_BHATTACHARYYA) > CUT_COLORS
        # A jump of the landmarks without motion in the images is an error of the detector, so the
        # points are also followed to their previous positions.
        goals = points[ids[row : row + 2], :, :2], points[ids[[row, row]], :, :2]
        followed = max(follow_points(pair, goal, [1])[1].share[0] for goal in goals)
        if differs or followed < CUT_FOLLOWED:
            cuts.append(int(ids[row + 1]))
    return cuts


def _face_motion(points: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far the face moves, and how much its mesh changes, between frames `ids` [N].

    Returns:
        Two arrays float64 [N - 1], as fractions of the width of the face.
    """
    jump, change = np.zeros((2, len(ids) - 1))
    for part in chunks(len(ids) - 1):
        faces = points[ids[part.start : part.stop + 1], :, :2].astype(float)
        centers = faces.mean(axis=1)
        width = np.ptp(faces[..., 0], axis=1)
        width = np.minimum(width[1:], width[:-1])
        jump[part] = np.linalg.norm(np.diff(centers, axis=0), axis=1) / width
        moved = np.diff(faces - centers[:, None], axis=0)
        change[part] = np.linalg.norm(moved, axis=-1).mean(axis=1) / width
    return jump, change


def find_jump_cuts(
    differences: Float[np.ndarray, "3 T"], usable: Bool[np.ndarray, "T"]
) -> list[int]:
    """Return the first frame after each jump cut.

    A jump cut removes a part of a take: framing and lighting stay the same, and the head moves by a
    few pixels. The head's image then changes more than between the neighboring frames. It also
    changes as much over one frame as over two or three, while continuous motion adds up.

    Args:
        differences: [3, T], those of the images of the head (`HeadImages`).
        usable: bool [T], frames that show a usable face; cuts are searched for between these.
    """
    frames = len(usable)
    if frames < 5 or not usable.any():
        return []
    first, second, third = differences
    spike, level = np.zeros(frames), np.zeros(frames)
    inner = np.arange(2, frames - 2)
    around = np.max([first[inner + step] for step in (-1, 1, 2)], axis=0)
    around = np.maximum(around, first[np.maximum(inner - 2, 1)])
    across = np.max([second[inner], second[inner + 1], third[np.maximum(inner + 1, 3)]], axis=0)
    spike[inner] = first[inner] / np.maximum(around, 1e-6)
    level[inner] = first[inner] / np.maximum(across, 1e-6)
    moving = first > FROZEN * np.median(first[1:])
    moving[1:-1] &= moving[:-2] & moving[2:]
    known = usable.copy()
    known[1:-1] &= usable[:-2] & usable[2:]
    cuts = (spike > JUMP_SPIKE) & (level > JUMP_LEVEL) & moving & known
    return np.flatnonzero(cuts).tolist()


class HeadImages:
    """The differences of each frame's image of the head to those 1, 2 and 3 frames before.

    The images are reduced, and normalized to zero mean and unit variance, so that a change of the
    exposure does not count.

    Args:
        clip: clip of T frames.
        points: meshes [T, 478, 3] in pixels.
        usable: bool [T], frames that show a usable face; at least one.
    """

    def __init__(self, clip: Clip, points: np.ndarray, usable: np.ndarray) -> None:
        start, end = points[..., :2].min(1).astype(float), points[..., :2].max(1).astype(float)
        width = np.median(end[usable, 0] - start[usable, 0])
        scale = min(1.0, HEAD_WIDTH / width)
        self._size = max(1, round(clip.width * scale)), max(1, round(clip.height * scale))
        low = (scale * (start - HEAD_MARGIN * width)).clip(0, np.array(self._size) - 1)
        self._low = low.astype(int)
        high = (scale * (end + HEAD_MARGIN * width)).astype(int)
        self._high = np.maximum(high, self._low + 1)
        self._recent: deque[np.ndarray] = deque(maxlen=3)
        self._frames = 0
        self.differences = np.zeros((3, clip.frames))
        """float64 [3, T]; 0 where there is no earlier frame."""

    def reduce(self, image: np.ndarray) -> np.ndarray:
        """Return a frame, RGB uint8 [H, W, 3], in reduced size and gray, float32."""
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return cv2.resize(gray, self._size, interpolation=cv2.INTER_AREA).astype(np.float32)

    def compare(self, reduced: np.ndarray) -> None:
        """Compare the next frame, in reduced size, with the frames before it."""
        (left, top), (right, bottom) = self._low[self._frames], self._high[self._frames]
        head = slice(top, bottom), slice(left, right)
        present = _normalized(reduced[head])
        for k, before in enumerate(reversed(self._recent)):
            past = _normalized(before[head])
            self.differences[k, self._frames] = np.abs(present - past).mean()
        self._recent.append(reduced)
        self._frames += 1


def _normalized(image: np.ndarray) -> np.ndarray:
    return (image - image.mean()) / max(image.std(), 1.0)


def outside_fraction(clip: Clip, points: Float[np.ndarray, "T 478 3"]) -> Float[np.ndarray, "T"]:
    """Return the fraction [T] of the points of meshes [T, 478, 3] that are outside the image."""
    inside = (points[..., :2] >= 0).all(axis=-1)
    inside &= (points[..., :2] <= [clip.width, clip.height]).all(axis=-1)
    return 1.0 - inside.mean(axis=1)


def gray_histogram(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "64 1"]:
    """Return the histogram of 64 gray levels of RGB uint8 [H, W, 3]: float32 [64, 1]."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.calcHist([gray], [0], None, [64], [0, 256])


def still_frames(flow: Flow, longest: int) -> Integer[np.ndarray, "N"]:
    """Return the indices of frames in frozen runs of more than `longest` frames.

    Args:
        flow: displacements from frame to frame.
        longest: largest accepted number of consecutive frozen frames.
    """
    size = np.linalg.norm(flow.moved, axis=-1)
    count = flow.good.sum(axis=1)
    mean = (size * flow.good).sum(axis=1) / np.maximum(count, 1)
    bounds = zip(*runs((mean < STILL) & (flow.share > FOLLOWED)), strict=True)
    still = [np.arange(a + 1, b + 1) for a, b in bounds if b - a > longest]
    return np.concatenate(still) if still else np.zeros(0, int)


def face_patch(
    image: UInt8[np.ndarray, "H W 3"], mesh: Float[np.ndarray, "478 C"]
) -> UInt8[np.ndarray, "64 64"]:
    """Return the aligned face of RGB uint8 [H, W, 3] with a mesh [478, 2 or 3]: gray [64, 64]."""
    turn = cv2.getAffineTransform(mesh[ANCHORS, :2].astype(np.float32), ANCHOR_PIXELS)
    return cv2.cvtColor(cv2.warpAffine(image, turn, (SIZE, SIZE)), cv2.COLOR_RGB2GRAY)


def covered_frames(patches: UInt8[np.ndarray, "N 64 64"]) -> Bool[np.ndarray, "N"]:
    """Return which patches uint8 [N, 64, 64] of consecutive frames show a covered face [N]."""
    sample = np.linspace(0, len(patches) - 1, min(len(patches), SAMPLES)).astype(int)
    median = np.median(patches[sample][:, FACE].astype(np.float32), axis=0)

    def difference(some: np.ndarray) -> np.ndarray:
        faces = some[:, FACE].astype(np.float32)
        gain = (faces @ median) / np.maximum((faces**2).sum(axis=1), 1e-6)
        return np.abs(faces * gain[:, None] - median)

    spread = np.median(difference(patches[sample]), axis=0)
    limit = np.maximum(UNUSUAL_DEVIATIONS * 1.4826 * spread, UNUSUAL_LEVELS)
    unusual = np.zeros(len(patches), np.uint8)
    for part in chunks(len(patches)):
        off = difference(patches[part]) > limit
        unusual[part] = off.mean(axis=1) > COVERED_FRACTION
    # An opening (erosion, then dilation) keeps runs of at least SUSTAINED frames.
    run = np.ones((SUSTAINED, 1), np.uint8)
    return cv2.morphologyEx(unusual[:, None], cv2.MORPH_OPEN, run)[:, 0] > 0
