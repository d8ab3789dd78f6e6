"""The synthetic subject's shape: face, hairline, haircut, shirt, and their texture coordinates.

All `positions` are in dm on the mean shape of the head model (see `MorphableHead`), so that a
position denotes the same point of the skin for every identity.
"""

import numpy as np

from talker.head.morphable import PARTS, MorphableHead

IDENTITY = {
    "sex_male": 0.75,
    "race_caucasian": 0.45,
    "neck-scale-horiz-decr": 0.5,
    "neck-scale-depth-decr": 0.3,
    "nose-hump-incr": 0.2,
    "head-oval": 0.25,
}
UPPER_TEETH_SHIFT = np.array([0.0, -0.05, 0.02], np.float32)  # visible when the lips part
LOWER_TEETH_SCALE = np.array([0.88, 1.0, 1.0], np.float32)  # clear of the corners of the mouth
LOWER_TEETH_SHIFT = np.array([0.0, 0.0, -0.03], np.float32)
INNER_LIPS = 13, 14
"""Indices of the middle of the inner upper and lower lip among the 478 landmarks."""
CHART_AXIS = -0.8
"""z in dm of the axis of the skin texture's cylinder."""
CHART_ANGLE = 2.3
"""Angle in radians between the front and the sides of the skin texture."""
CHART_TOP, CHART_BOTTOM = 1.5, -2.6
"""y in dm of the upper and lower edge of the skin texture."""
COLLAR, COLLAR_CHART = 0.15, 0.3
"""Heights in dm of the collar and of its texture."""
CROWN = np.array([0.12, 1.25, -1.15])
"""Position in dm from which the hair is combed."""


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Return the cubic step from 0 at `low` to 1 at `high`, which may be less than `low`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def shape(head: MorphableHead) -> np.ndarray:
    """Return the subject's vertices with a neutral expression, float32 [V, 3]."""
    vertices = head.shape(IDENTITY)
    upper, lower = (
        np.unique(head.faces[head.parts == PARTS.index(f"{row}_teeth")])
        for row in ("upper", "lower")
    )
    vertices[upper] += UPPER_TEETH_SHIFT
    vertices[lower] = vertices[lower] * LOWER_TEETH_SCALE + LOWER_TEETH_SHIFT
    return vertices - head.landmarks(vertices).mean(0)


def skin_chart(positions: np.ndarray) -> np.ndarray:
    """Return skin texture coordinates [..., 2]: a cylinder around the head."""
    angle = np.arctan2(positions[..., 0], positions[..., 2] - CHART_AXIS)
    u = 0.5 + 0.5 * angle / CHART_ANGLE
    v = (CHART_TOP - positions[..., 1]) / (CHART_TOP - CHART_BOTTOM)
    return np.stack([u, v], axis=-1).astype(np.float32)


def hair_chart(positions: np.ndarray) -> np.ndarray:
    """Return hair texture coordinates [V, 2]: the twisted angle around the crown, the distance."""
    away = positions - CROWN
    around = np.arctan2(away[..., 0], away[..., 2]) / (2 * np.pi)
    distance = np.linalg.norm(away, axis=-1)
    u = (around + 0.5 + 0.06 * distance) % 1.0
    return np.stack([u, distance / 3.2], axis=-1).astype(np.float32)


def front_chart(positions: np.ndarray) -> np.ndarray:
    """Return shirt texture coordinates [V, 2]: a frontal projection, 6 dm wide."""
    return np.stack([positions[..., 0] / 6 + 0.5, -positions[..., 1] / 6], axis=-1).astype(
        np.float32
    )


def hairline(positions: np.ndarray, ears: np.ndarray) -> np.ndarray:
    """Return the signed distance [V] in dm to the hairline, positive within the hair."""
    x, y, z = np.abs(positions[:, 0]), positions[:, 1], positions[:, 2]
    front = y - (0.97 - 0.55 * x**2 + 0.05 * np.cos(9 * x))
    side_z = np.interp(y, [-0.1, 0.15, 0.4, 0.65, 0.85], [-0.52, -0.46, -0.42, -0.34, -0.15])
    side = side_z - z
    lowest = np.interp(
        z, [-1.6, -1.35, -1.1, -0.95, -0.75, -0.4], [-0.65, -0.5, -0.1, 0.1, 0, 0.06]
    )
    return np.minimum(np.maximum(front, side), y - lowest) - 0.4 * ears


def hair_thickness(positions: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the thickness [V] of the hair in dm; `inside` is the distance to the hairline [V]."""
    top = smoothstep(0.35, 1.15, positions[:, 1])
    return (0.045 + 0.17 * top) * (0.25 + 0.75 * smoothstep(0.0, 0.3, inside))


def hair_direction(positions: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return the direction of the hair: unit vectors [V, 3] in the skin's tangent plane."""
    away = positions - CROWN
    around = np.cross([0.0, 1.0, 0.0], away)
    combed = away + 0.45 * around
    combed -= (combed * normals).sum(1, keepdims=True) * normals
    return combed / np.maximum(np.linalg.norm(combed, axis=1, keepdims=True), 1e-6)


def neckline(positions: np.ndarray) -> np.ndarray:
    """Return the signed distance [V] in dm to the neckline, positive within the shirt."""
    return -1.36 - 0.42 * (positions[:, 2] + 0.62) - positions[:, 1]


def is_neck(positions: np.ndarray) -> np.ndarray:
    """Return bool [V]: which positions are below the jaw."""
    z = [-1.6, -1.1, -0.85, -0.6, -0.1, 0.3]
    return positions[:, 1] < np.interp(positions[:, 2], z, [-0.6, -0.3, -0.25, -0.5, -0.76, -0.82])


def collar_chart(positions: np.ndarray) -> np.ndarray:
    """Return collar texture coordinates [V, 2]: angle around the neck and distance below it."""
    around = np.arctan2(positions[:, 0], positions[:, 2] + 1.15) / (2 * np.pi) + 0.5
    return np.stack([around, neckline(positions) / COLLAR_CHART], axis=-1).astype(np.float32)


def folds(positions: np.ndarray) -> np.ndarray:
    """Return the height [V] in dm of the shirt's folds."""
    x, y, z = positions.T
    waves = np.sin(3.1 * x + 2.3 * y + 1.2 * np.sin(2.1 * y)) * np.sin(1.7 * y - 2.2 * x + z)
    return 0.018 * waves + 0.008 * np.sin(7 * x * np.sign(x) + 5 * y + 2 * np.sin(3 * x))
