"""Frames in which something covers the face: what its patch shows is not what it shows otherwise.

The landmark detector guesses a face behind a hand; only the picture tells.
"""

import cv2
import numpy as np

SIZE = 64
ANCHORS = [33, 263, 152]
"""Points of the mesh, the outer eye corners and the chin, that a patch is laid on."""
PLACES = np.array([[16, 20], [48, 20], [32, 62]], np.float32)

_y, _x = np.mgrid[:SIZE, :SIZE]
FACE = ((_x - 32) / 24) ** 2 + ((_y - 34) / 28) ** 2 < 1

SAMPLES = 200
"""Frames, at most, of which the usual face is made."""
UNUSUAL, LEAST = 5.0, 12.0
"""A pixel differs by this many times its usual deviation, and by so many grey levels."""
PART = 0.08
"""The face is covered where so much of it differs,"""
SUSTAINED = 12
"""and so many frames long: blinks and words are shorter."""


def face_patch(image: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """The face of a frame, RGB uint8 [H, W, 3], with its mesh [478, 2 or 3]: grey [64, 64]."""
    turn = cv2.getAffineTransform(mesh[ANCHORS, :2].astype(np.float32), PLACES)
    return cv2.cvtColor(cv2.warpAffine(image, turn, (SIZE, SIZE)), cv2.COLOR_RGB2GRAY)


def covered_frames(patches: np.ndarray) -> np.ndarray:
    """Which of the patches uint8 [N, 64, 64] of consecutive frames show a covered face: [N]."""
    faces = patches[:, FACE].astype(np.float32)
    sample = np.linspace(0, len(faces) - 1, min(len(faces), SAMPLES)).astype(int)
    usual = np.median(faces[sample], axis=0)
    gain = (faces @ usual) / np.maximum((faces**2).sum(axis=1), 1e-6)
    off = np.abs(faces * gain[:, None] - usual)
    limit = np.maximum(UNUSUAL * 1.4826 * np.median(off[sample], axis=0), LEAST)
    unusual = ((off > limit).mean(axis=1) > PART).astype(np.uint8)
    # Runs of at least SUSTAINED frames: an opening (erosion, then dilation).
    run = np.ones((SUSTAINED, 1), np.uint8)
    return cv2.morphologyEx(unusual[:, None], cv2.MORPH_OPEN, run)[:, 0] > 0
