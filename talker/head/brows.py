"""Measure how far the brows are raised from face meshes."""

import numpy as np
from jaxtyping import Bool, Float, Real
from scipy.ndimage import gaussian_filter1d

from talker.head.landmarks68 import MESH_INDICES
from talker.head.poses import procrustes

EYE_CORNERS = [33, 133, 362, 263]
"""Mesh points of the outer and inner corner of each eye."""
BROWS = MESH_INDICES[19:25]
"""Mesh points of the inner three fifths of both brows, whose motion is the largest."""
NOSE_BRIDGE, NOSE_BASE = 168, 2
RIGID = [*EYE_CORNERS, NOSE_BRIDGE, 6, 197, 195, 5, 4, 1, NOSE_BASE, 98, 327, 127, 356, 234, 454]
"""Mesh points of the eye corners, the nose and the sides of the face, which hardly move with the
expression."""
FULL_RAISE = 0.1
"""Distance by which fully raised brows are above relaxed ones, relative to the distance between the
outer eye corners."""
SMOOTHING = 1.0
"""Standard deviation in frames of the filter that suppresses the jitter of the landmarks."""


def brow_distance(meshes: Real[np.ndarray, "T 478 3"]) -> Float[np.ndarray, "T"]:
    """Return the distance of the brows from the eyes, relative to that of the outer eye corners.

    The meshes are aligned to their mean shape, so that the head pose has little effect. The
    distance is measured along the direction from the base of the nose to its bridge.

    Args:
        meshes: [T, 478, 3] in pixels, nan in frames without a face.

    Returns:
        Distances [T], nan in frames without a face.
    """
    known = np.isfinite(meshes).all((1, 2)) & (np.ptp(meshes[:, RIGID], axis=1).max(1) > 0)
    distance = np.full(len(meshes), np.nan)
    if not known.any():
        return distance
    aligned = points = meshes[known].astype(np.float64)
    template = points[0]
    for _ in range(2):
        scale, rotation, middle = procrustes(points[:, RIGID], template[RIGID])
        aligned = (points - middle[:, None]) @ rotation / scale[:, None, None]
        template = aligned.mean(0)
    offset = aligned[:, BROWS].mean(1) - aligned[:, EYE_CORNERS].mean(1)
    up = template[NOSE_BRIDGE] - template[NOSE_BASE]
    width = np.linalg.norm(template[EYE_CORNERS[0]] - template[EYE_CORNERS[-1]])
    distance[known] = offset @ up / max(np.linalg.norm(up) * width, 1e-9)
    return distance


def brow_motion(
    meshes: Real[np.ndarray, "T 478 3"], closure: Real[np.ndarray, "T"]
) -> Float[np.ndarray, "T"]:
    """Return `brow_distance` without the part that is proportional to the eye closure.

    In a blink, the detected brows move although the real ones do not.

    Args:
        meshes: [T, 478, 3] in pixels, nan in frames without a face.
        closure: eye closure [T] in any unit.

    Returns:
        Distances [T], nan in frames without a face.
    """
    distance = brow_distance(meshes)
    known = np.isfinite(distance)
    blink = closure - closure[known].mean() if known.any() else closure
    variance = blink[known] @ blink[known]
    return distance - (blink[known] @ distance[known] / max(variance, 1e-9)) * blink


def brow_raise(
    meshes: Real[np.ndarray, "T 478 3"],
    valid: Bool[np.ndarray, "T"],
    closure: Real[np.ndarray, "T"],
) -> Float[np.ndarray, "T"]:
    """Return how far the brows are raised, from -1 (fully lowered) to 1 (fully raised).

    The median of `brow_motion` over the clip counts as relaxed (0). Without a face, the brows are
    relaxed.

    Args:
        meshes: [T, 478, 3] in pixels.
        valid: bool [T]; the other frames are interpolated.
        closure: eye closure [T] in any unit.
    """
    motion = brow_motion(np.where(valid[:, None, None], meshes, np.nan), closure)
    known = np.isfinite(motion)
    if not known.any():
        return np.zeros(len(meshes))
    frames = np.arange(len(meshes))
    smooth = gaussian_filter1d(np.interp(frames, frames[known], motion[known]), SMOOTHING)
    return np.clip((smooth - np.median(smooth[known])) / FULL_RAISE, -1, 1)
