"""Detect frames in which something covers the face, by comparing face patches with their median.

The landmark detector predicts a plausible face even behind a hand, so only the image reveals it.
"""

import cv2
import numpy as np

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


def face_patch(image: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Return the aligned face of RGB uint8 [H, W, 3] with a mesh [478, 2 or 3]: gray [64, 64]."""
    turn = cv2.getAffineTransform(mesh[ANCHORS, :2].astype(np.float32), ANCHOR_PIXELS)
    return cv2.cvtColor(cv2.warpAffine(image, turn, (SIZE, SIZE)), cv2.COLOR_RGB2GRAY)


def covered_frames(patches: np.ndarray) -> np.ndarray:
    """Return which patches uint8 [N, 64, 64] of consecutive frames show a covered face [N]."""
    faces = patches[:, FACE].astype(np.float32)
    sample = np.linspace(0, len(faces) - 1, min(len(faces), SAMPLES)).astype(int)
    median = np.median(faces[sample], axis=0)
    gain = (faces @ median) / np.maximum((faces**2).sum(axis=1), 1e-6)
    off = np.abs(faces * gain[:, None] - median)
    limit = np.maximum(UNUSUAL_DEVIATIONS * 1.4826 * np.median(off[sample], axis=0), UNUSUAL_LEVELS)
    unusual = ((off > limit).mean(axis=1) > COVERED_FRACTION).astype(np.uint8)
    # An opening (erosion, then dilation) keeps runs of at least SUSTAINED frames.
    run = np.ones((SUSTAINED, 1), np.uint8)
    return cv2.morphologyEx(unusual[:, None], cv2.MORPH_OPEN, run)[:, 0] > 0
