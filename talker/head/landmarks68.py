"""The 68 iBUG landmarks as points of the 478-point face mesh, and measures of eyes and mouth.

The map was fitted to a detector with 68 annotated landmarks; its normalized error is 3.4 % of the
eye distance.
"""

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Real

from talker.clip import load_text
from talker.errors import UserError

# fmt: off
MESH_INDICES = np.array([
    127, 234, 93, 215, 138, 136, 149, 176, 152, 400, 378, 365, 367, 435, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 195, 4, 75, 99, 2, 328, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
])
# fmt: on
"""Index of the mesh point of each of the 68 landmarks."""

JAW = slice(0, 17)
BROWS = slice(17, 27)
RIGHT_BROW = slice(17, 22)
LEFT_BROW = slice(22, 27)
NOSE = slice(27, 36)
RIGHT_EYE = slice(36, 42)
LEFT_EYE = slice(42, 48)
OUTER_LIPS = slice(48, 60)
INNER_LIPS = slice(60, 68)
OUTER_EYE_CORNERS = 36, 45
INNER_LIPS_MIDDLE = 62, 66
MOUTH_CORNERS = 48, 54
NOSE_TO_CHIN = 27, 8
MAX_COORDINATE = 1e5
"""Largest landmark coordinate that a file may hold, in pixels."""


def landmarks68(mesh: Real[np.ndarray, "*B 478 C"]) -> Real[np.ndarray, "*B 68 2"]:
    """Return the 68 landmarks [..., 68, 2] of meshes [..., 478, 2 or 3]."""
    return mesh[..., MESH_INDICES, :2]


def eye_aspect_ratio(landmarks: Real[np.ndarray, "*B 68 2"]) -> Float[np.ndarray, "*B"]:
    """Return the ratio of lid opening to eye width, averaged over both eyes (Soukupova, Cech 2016).

    The ratio is about 0.3 for open eyes and independent of the size of the face.

    Args:
        landmarks: [..., 68, 2].

    Returns:
        Ratios [...].
    """
    ratios = []
    for eye in (RIGHT_EYE, LEFT_EYE):
        outer, upper_a, upper_b, inner, lower_b, lower_a = np.moveaxis(
            landmarks[..., eye, :], -2, 0
        )
        opening = np.linalg.norm(upper_a - lower_a, axis=-1)
        opening = opening + np.linalg.norm(upper_b - lower_b, axis=-1)
        ratios.append(opening / (2 * np.linalg.norm(outer - inner, axis=-1)))
    return (ratios[0] + ratios[1]) / 2


def mouth_opening(landmarks: Real[np.ndarray, "T 68 2"]) -> Float[np.ndarray, "T"]:
    """Return the distance between the inner lips over that of the outer eye corners.

    Args:
        landmarks: [T, 68, 2].

    Returns:
        Ratios [T].
    """
    return _distance(landmarks, *INNER_LIPS_MIDDLE) / outer_eye_distance(landmarks)


def mouth_shape(landmarks: Real[np.ndarray, "T 68 2"]) -> Float[np.ndarray, "T 3"]:
    """Return mouth opening, mouth width and jaw drop, relative to the outer eye distance.

    Args:
        landmarks: [T, 68, 2].

    Returns:
        Ratios [T, 3].
    """
    parts = (INNER_LIPS_MIDDLE, MOUTH_CORNERS, NOSE_TO_CHIN)
    lengths = np.stack([_distance(landmarks, *part) for part in parts], axis=1)
    return lengths / outer_eye_distance(landmarks)[:, None]


def outer_eye_distance(landmarks: Real[np.ndarray, "T 68 2"]) -> Float[np.ndarray, "T"]:
    """Return the distance [T] between the outer eye corners of landmarks [T, 68, 2], in pixels."""
    return _distance(landmarks, *OUTER_EYE_CORNERS)


def write_lms(path: Path, landmarks: Real[np.ndarray, "68 2"]) -> None:
    """Write landmarks [68, 2] in the format of AD-NeRF: one line "x y" per landmark."""
    np.savetxt(path, landmarks, fmt="%f")


def read_lms(path: Path | zipfile.Path) -> Float[np.ndarray, "68 2"]:
    """Read landmarks float32 [68, 2], in pixels, from a file in the format of AD-NeRF.

    Raises:
        UserError: the file is missing, or does not hold 68 lines of two coordinates in pixels.
    """
    text = load_text(path)
    try:
        landmarks = np.array(text.split(), float).reshape(68, 2)
        if not (np.abs(landmarks) <= MAX_COORDINATE).all():
            raise ValueError(
                f"a coordinate is NaN, infinite, or larger than {MAX_COORDINATE:g} pixels"
            )
    except ValueError as error:
        raise UserError(
            f"{path} does not have 68 lines with an x and a y coordinate ({error})."
        ) from error
    return landmarks.astype(np.float32)


def _distance(landmarks: np.ndarray, a: int, b: int) -> np.ndarray:
    return np.linalg.norm(landmarks[:, a] - landmarks[:, b], axis=-1)
