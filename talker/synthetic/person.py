"""The synthetic subject's shape: face, hairline, haircut, shirt, and where textures lie on them.

Places on the body are given on the model's mean shape, in dm (see MorphableHead), so that they
belong to the same bit of skin whatever the person's shape.
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
UPPER_TEETH_SHIFT = np.array([0.0, -0.05, 0.02], np.float32)  # to be seen when the lips part
LOWER_TEETH_SCALE = np.array([0.88, 1.0, 1.0], np.float32)  # off the corners of the mouth
LOWER_TEETH_SHIFT = np.array([0.0, 0.0, -0.03], np.float32)
INNER_LIPS = 13, 14  # mesh points: upper, lower
CHART_AXIS = -0.8
CHART_ANGLE = 2.3
CHART_TOP, CHART_BOTTOM = 1.5, -2.6
COLLAR, COLLAR_CHART = 0.15, 0.3
CROWN = np.array([0.12, 1.25, -1.15])


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 at and before `low`, 1 from `high` on, smooth between; `high` may be the smaller one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def shape(head: MorphableHead) -> np.ndarray:
    """The subject's neutral vertices float32 [V, 3]."""
    vertices = head.shape(IDENTITY)
    upper, lower = (
        np.unique(head.faces[head.parts == PARTS.index(f"{row}_teeth")])
        for row in ("upper", "lower")
    )
    vertices[upper] += UPPER_TEETH_SHIFT
    vertices[lower] = vertices[lower] * LOWER_TEETH_SCALE + LOWER_TEETH_SHIFT
    return vertices - head.landmarks(vertices).mean(0)


def skin_chart(places: np.ndarray) -> np.ndarray:
    """Texture coordinates [..., 2] of places [..., 3]: a cylinder around the head."""
    angle = np.arctan2(places[..., 0], places[..., 2] - CHART_AXIS)
    u = 0.5 + 0.5 * angle / CHART_ANGLE
    v = (CHART_TOP - places[..., 1]) / (CHART_TOP - CHART_BOTTOM)
    return np.stack([u, v], axis=-1).astype(np.float32)


def hair_chart(places: np.ndarray) -> np.ndarray:
    """Texture coordinates of the hair: around the crown, and away from it with a twist."""
    away = places - CROWN
    around = np.arctan2(away[..., 0], away[..., 2]) / (2 * np.pi)
    distance = np.linalg.norm(away, axis=-1)
    u = (around + 0.5 + 0.06 * distance) % 1.0
    return np.stack([u, distance / 3.2], axis=-1).astype(np.float32)


def front_chart(places: np.ndarray) -> np.ndarray:
    """Texture coordinates of the shirt: seen from the front, 6 dm wide."""
    return np.stack([places[..., 0] / 6 + 0.5, -places[..., 1] / 6], axis=-1).astype(np.float32)


def hairline(places: np.ndarray, ears: np.ndarray) -> np.ndarray:
    """Signed distance [V] into the hair, in dm."""
    x, y, z = np.abs(places[:, 0]), places[:, 1], places[:, 2]
    front = y - (0.97 - 0.55 * x**2 + 0.05 * np.cos(9 * x))
    side_z = np.interp(y, [-0.1, 0.15, 0.4, 0.65, 0.85], [-0.52, -0.46, -0.42, -0.34, -0.15])
    side = side_z - z
    lowest = np.interp(
        z, [-1.6, -1.35, -1.1, -0.95, -0.75, -0.4], [-0.65, -0.5, -0.1, 0.1, 0, 0.06]
    )
    return np.minimum(np.maximum(front, side), y - lowest) - 0.4 * ears


def hair_thickness(places: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Height [V] of the hair over the skin, in dm."""
    top = smoothstep(0.35, 1.15, places[:, 1])
    return (0.045 + 0.17 * top) * (0.25 + 0.75 * smoothstep(0.0, 0.3, inside))


def hair_direction(places: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Unit vectors [V, 3] along the skin away from the crown: how the hair is combed."""
    away = places - CROWN
    around = np.cross([0.0, 1.0, 0.0], away)
    combed = away + 0.45 * around
    combed -= (combed * normals).sum(1, keepdims=True) * normals
    return combed / np.maximum(np.linalg.norm(combed, axis=1, keepdims=True), 1e-6)


def neckline(places: np.ndarray) -> np.ndarray:
    """Signed distance [V] into the shirt, in dm."""
    return -1.36 - 0.42 * (places[:, 2] + 0.62) - places[:, 1]


def is_neck(places: np.ndarray) -> np.ndarray:
    """Whether places [V, 3] lie below the jaw."""
    z = [-1.6, -1.1, -0.85, -0.6, -0.1, 0.3]
    return places[:, 1] < np.interp(places[:, 2], z, [-0.6, -0.3, -0.25, -0.5, -0.76, -0.82])


def collar_chart(places: np.ndarray) -> np.ndarray:
    """Texture coordinates of the collar: around the neck, and down from its edge."""
    around = np.arctan2(places[:, 0], places[:, 2] + 1.15) / (2 * np.pi) + 0.5
    return np.stack([around, neckline(places) / COLLAR_CHART], axis=-1).astype(np.float32)


def folds(places: np.ndarray) -> np.ndarray:
    """Height [V] of the folds in the shirt, dm."""
    x, y, z = places.T
    waves = np.sin(3.1 * x + 2.3 * y + 1.2 * np.sin(2.1 * y)) * np.sin(1.7 * y - 2.2 * x + z)
    return 0.018 * waves + 0.008 * np.sin(7 * x * np.sign(x) + 5 * y + 2 * np.sin(3 * x))
