"""Procedural textures of the synthetic subject, from noise and gamma-encoded colors 0..255."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from talker.head.morphable import MorphableHead
from talker.head.zbuffer import zbuffer
from talker.synthetic.person import (
    CHART_ANGLE,
    CHART_AXIS,
    CHART_BOTTOM,
    CHART_TOP,
    COLLAR,
    COLLAR_CHART,
    hairline,
    skin_chart,
    smoothstep,
)
from talker.synthetic.shading import MATERIALS
from talker.synthetic.surface import Surface

SKIN = np.array([199.0, 150.0, 127.0])
LIPS = np.array([168.0, 96.0, 90.0])
HAIR = np.array([66.0, 46.0, 33.0])
IRIS = np.array([92.0, 104.0, 84.0])
SHIRT = np.array([52.0, 70.0, 92.0])
PLAIN_COLORS = {"mouth": (120, 50, 47, 140), "tongue": (178, 92, 90, 200)}
"""RGB and gloss of the materials without a pattern."""
TEXELS_PER_DM = 0.55
"""Texels of the skin per dm, divided by the image height in pixels: about two per face pixel."""


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Return noise of unit standard deviation, smooth at the scale of `sigma` pixels."""
    shrink = max(sigma / 3, 1.0)
    small = [int(np.ceil(side / shrink)) for side in shape]
    noise = rng.standard_normal(small, np.float32)
    if sigma > 0:
        noise = _blur(noise, sigma / shrink)
    noise = cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return noise / noise.std()


def paint_all(
    surface: Surface, head: MorphableHead, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Return a texture uint8 [h, w, 4] for each of `MATERIALS`, for images of `size` pixels."""
    faces = surface.subdivision.faces[surface.of_part("skin")]
    skin = unwrap_skin(surface.positions, faces, surface.masks, TEXELS_PER_DM * size)
    textures = {
        "skin": paint_skin(skin, head, rng),
        "eyes": paint_eye(rng),
        "teeth": paint_teeth(),
        "lashes": paint_lashes(rng),
        "hair": paint_hair(rng, 4 * size),
        "shirt": paint_shirt(rng),
        "collar": paint_collar(),
    }
    textures |= {name: np.array([[color]], np.uint8) for name, color in PLAIN_COLORS.items()}
    return tuple(textures[name] for name in MATERIALS)


@dataclass(frozen=True)
class SkinMap:
    """The head model's attributes at each texel of the skin texture."""

    positions: np.ndarray
    """float32 [h, w, 3], dm on the mean shape"""
    masks: dict[str, np.ndarray]
    """float32 [h, w] each, 0..1: `lips` and `ears`"""
    density: float
    """texels per dm"""

    def spot(self, position: np.ndarray, radius: float) -> np.ndarray:
        """Return a Gaussian [h, w, 1] of standard deviation `radius` dm around a position [3]."""
        distance = ((self.positions - position.astype(np.float32)) ** 2).sum(-1)
        return np.exp(-distance / (2 * radius**2))[..., None]


def unwrap_skin(
    positions: np.ndarray, faces: np.ndarray, masks: dict[str, np.ndarray], density: float
) -> SkinMap:
    """Unwrap the skin into its texture.

    Args:
        positions: float32 [V, 3], dm on the mean shape.
        faces: int32 [F, 3], the skin's triangles.
        masks: float32 [V] each, `lips` and `ears`.
        density: texels per dm.
    """
    height = int((CHART_TOP - CHART_BOTTOM) * density)
    width = int(2 * CHART_ANGLE * density)
    reach = np.hypot(positions[:, 0], positions[:, 2] - CHART_AXIS)
    points = np.column_stack([skin_chart(positions) * (width, height), 5.0 - reach])
    wraps = np.ptp(points[faces, 0], axis=1) > width / 2
    face, weights, _ = zbuffer(points, faces[~wraps], height, width)
    corners = faces[~wraps][face]
    weights = np.dstack([1 - weights.sum(-1), weights])
    covered = (face >= 0).astype(np.float32)

    def interpolate(values: np.ndarray) -> np.ndarray:
        image = (values[corners] * weights[..., None]).sum(2) * covered[..., None]
        near = _blur(image, 6).reshape(image.shape) / np.maximum(_blur(covered, 6), 1e-6)[..., None]
        return np.where(covered[..., None] > 0, image, near).astype(np.float32)

    return SkinMap(
        interpolate(positions),
        {name: interpolate(masks[name][:, None])[..., 0] for name in ("lips", "ears")},
        density,
    )


COMPLEXION = (  # landmarks, radius in dm, change of red, green and blue
    ((50, 280), 0.17, (2.0, -8.5, -7.5)),  # cheeks
    ((4,), 0.11, (2.8, -12.0, -10.5)),  # tip of the nose
    ((98, 327), 0.05, (2.4, -10.0, -9.0)),  # nostrils
    ((199,), 0.12, (1.6, -7.0, -6.0)),  # chin
    ((9,), 0.14, (1.0, -4.2, -3.8)),  # between the brows
    ((119, 348), 0.09, (-12.0, -12.0, -8.0)),  # under the eyes
    ((133, 362), 0.05, (-13.0, -13.0, -9.0)),  # corners of the eyes
)
FRECKLE_LANDMARKS = (50, 280, 101, 330, 187, 411, 69, 299, 118, 347, 205, 425)


def paint_skin(skin: SkinMap, head: MorphableHead, rng: np.random.Generator) -> np.ndarray:
    """Return the skin's texture, RGB and gloss, uint8 [h, w, 4]."""
    landmarks = head.landmarks(head.vertices).astype(np.float32)
    color = _paint_complexion(skin, landmarks, rng)
    shape = color.shape[:2]

    beard = _beard(skin.positions)
    dots = np.clip(_grain(rng, shape, 0.0), 0, 2)
    color -= (beard * (6 + 7 * dots))[..., None] * [1.0, 0.85, 0.7]

    lips = smoothstep(0.25, 0.85, _blur(skin.masks["lips"], 0.012 * skin.density))
    lines = gaussian_filter(rng.standard_normal(shape, np.float32), (0.03 * skin.density, 0.6))
    painted = LIPS + (9 * lines / lines.std())[..., None]
    color += 0.85 * lips[..., None] * (painted - color)

    inside = hairline(skin.positions.reshape(-1, 3), skin.masks["ears"].ravel()).reshape(shape)
    roots = smoothstep(-0.05, 0.12, inside + 0.02 * _grain(rng, shape, 3.0))
    color += roots[..., None] * (0.75 * HAIR + 0.1 * SKIN - color)
    brows = _draw_brows(skin, rng)
    color += brows[..., None] * (0.8 * HAIR - color)

    gloss = 120 + 25 * _grain(rng, shape, 0.01 * skin.density) - 60 * beard
    gloss += 110 * lips + 50 * skin.spot(landmarks[4], 0.1)[..., 0]
    return np.dstack([color, gloss * (1 - roots)]).clip(0, 255).astype(np.uint8)


def _paint_complexion(skin: SkinMap, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return skin with mottling, redder and darker regions and freckles, float32 [h, w, 3]."""
    color = np.tile(SKIN.astype(np.float32), (*skin.positions.shape[:2], 1))
    for scale, strength in ((0.16, 2.0), (0.05, 2.2), (0.014, 2.4), (0.006, 2.2)):
        grain = _grain(rng, color.shape[:2], scale * skin.density)
        color += strength * grain[..., None] * np.array([0.8, 1.0, 1.0], np.float32)
    for points, radius, change in COMPLEXION:
        for point in points:
            color += skin.spot(landmarks[point], radius) * np.array(change, np.float32)
    ears = _blur(skin.masks["ears"], 4)[..., None]
    color += ears * np.array([3.6, -15.0, -13.5], np.float32)
    for _ in range(14):
        position = landmarks[rng.choice(FRECKLE_LANDMARKS)] + rng.normal(0, 0.08, 3) * [1, 1, 0]
        freckle = skin.spot(position, rng.uniform(0.004, 0.009)) * rng.uniform(0.3, 1)
        color -= freckle.astype(np.float32) * np.array([38.0, 42.0, 38.0], np.float32)
    return color


def _beard(positions: np.ndarray) -> np.ndarray:
    """Return the density of stubble, 0..1, at positions [h, w, 3]."""
    x, y, z = np.moveaxis(positions, -1, 0)
    shaven = smoothstep(-0.02, -0.2, y + 0.35 * np.maximum(0.3 - np.abs(x), 0) - 0.12)
    return shaven * smoothstep(-0.75, -0.4, z) * smoothstep(-1.2, -0.85, y)


BROW = np.array([(0.11, 0.425), (0.22, 0.465), (0.35, 0.49), (0.45, 0.462), (0.52, 0.415)])
BROW_WIDTH = np.array([0.06, 0.07, 0.055, 0.035, 0.012])


def _draw_brows(skin: SkinMap, rng: np.random.Generator) -> np.ndarray:
    """Return the coverage [h, w] of each texel by the eyebrows, whose hairs are fine lines."""
    shape = skin.positions.shape[:2]
    zoom = 3
    ink = np.zeros((shape[0] * zoom, shape[1] * zoom), np.uint8)
    front = skin.positions[..., 2] > -0.4
    for side in (-1, 1):
        for _ in range(300):
            t = rng.uniform(0, 1) ** 0.9
            at = t * (len(BROW) - 1)
            x, y = (np.interp(at, range(len(BROW)), BROW[:, k]) for k in (0, 1))
            half = np.interp(at, range(len(BROW)), BROW_WIDTH) / 2
            y += rng.normal(0, 0.42) * half
            angle = np.radians(np.interp(t, [0, 0.25, 0.6, 1], [75, 40, 5, -25]) + rng.normal(0, 9))
            length = rng.uniform(0.05, 0.09) * np.interp(t, [0, 0.15, 1], [0.7, 1, 0.8])
            ends = np.array([(x, y), (x + length * np.cos(angle), y + length * np.sin(angle))])
            pixels = _front_texels(ends * [side, 1], skin) * zoom
            start, end = np.round(pixels * 16).astype(int)
            cv2.line(ink, start.tolist(), end.tolist(), (200,), 1, cv2.LINE_AA, 4)
    ink = cv2.resize(ink, shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.clip(1.1 * ink + 0.5 * _blur(ink, 0.014 * skin.density), 0, 0.8) * front


def _front_texels(points: np.ndarray, skin: SkinMap) -> np.ndarray:
    """Return the texels [P, 2] of points given by x, y [P, 2] on the front of the face."""
    height, width = skin.positions.shape[:2]
    z = np.full(len(points), 0.02)
    for _ in range(4):
        uv = skin_chart(np.column_stack([points, z]))
        column, row = (uv * (width, height)).astype(int).clip(0, (width - 1, height - 1)).T
        z = skin.positions[row, column, 2]
    return skin_chart(np.column_stack([points, z])) * (width, height)


def paint_eye(rng: np.random.Generator, size: int = 256) -> np.ndarray:
    """Return the front of an eyeball, RGB and gloss, uint8 [size, size, 4]."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    white = np.array([222.0, 212.0, 205.0]) - 50 * (radius[..., None] / 0.5) ** 2 * [0.4, 1.0, 1.0]
    veins = _grain(rng, (size, size), 1.5) * smoothstep(0.25, 0.5, radius)
    color = white - 7 * veins[..., None] * [0.2, 1.0, 1.0]
    fibres = _grain(rng, (8, 360), 1.0)
    fibres = cv2.resize(fibres, (720, 64), interpolation=cv2.INTER_CUBIC)
    spoke = ((angle + np.pi) / (2 * np.pi) * 719).astype(int)
    fibre = fibres[(radius * 200).astype(int) % 64, spoke]
    ring = np.exp(-(((radius - 0.1) / 0.035) ** 2))[..., None]
    iris = IRIS * (1 + 0.2 * fibre[..., None]) + 26 * ring * [1.0, 0.75, 0.4]
    iris *= 1 - 0.75 * smoothstep(0.165, 0.21, radius)[..., None]
    color += smoothstep(0.216, 0.2, radius)[..., None] * (iris - color)
    color += smoothstep(0.088, 0.078, radius)[..., None] * (12 - color)
    return np.dstack([color, np.full((size, size), 255.0)]).clip(0, 255).astype(np.uint8)


def paint_teeth(size: int = 256) -> np.ndarray:
    """Return a row of teeth and its gums from the front, RGB and gloss, [size / 2, size, 4]."""
    y, x = (np.mgrid[: size // 2, :size] + 0.5) / size
    y, x = 2 * y, np.abs(2 * x - 1)
    edges = np.cumsum([0.0, 0.235, 0.19, 0.19, 0.15, 0.12])
    gap = np.abs(x[..., None] - edges).min(-1)
    center = (edges[1:] + edges[:-1]) / 2
    arch = np.abs(x[..., None] - center).min(-1)
    enamel = np.array([226.0, 219.0, 200.0]) * (0.82 + 0.18 * smoothstep(0.0, 0.05, gap))[..., None]
    enamel = enamel * (1 - 0.3 * x**2)[..., None]
    gums = smoothstep(0.42, 0.36, y - 1.2 * arch**2 * 4)[..., None]
    color = enamel + gums * (np.array([176.0, 96.0, 92.0]) - enamel)
    return np.dstack([color, np.full(x.shape, 230.0)]).clip(0, 255).astype(np.uint8)


def paint_lashes(rng: np.random.Generator) -> np.ndarray:
    """Return lashes along u: RGB, and the length of each lash as opacity, uint8 [1, 512, 4]."""
    u = np.arange(512)
    comb = np.abs(((u / 512 * 42 + 0.25 * np.sin(u / 31)) % 1) - 0.5) * 2
    reach = 255 * comb * (0.75 + 0.25 * np.interp(u, u[::12], rng.uniform(0, 1, len(u[::12]))))
    texture = np.zeros((1, 512, 4))
    texture[..., :3] = 0.4 * HAIR
    texture[..., 3] = reach
    return texture.clip(0, 255).astype(np.uint8)


def paint_hair(rng: np.random.Generator, width: int) -> np.ndarray:
    """Return strands along v: RGB, and each strand's length as opacity, uint8 [h, width, 4].

    The lengths are uniform in 0..255.
    """
    height = 3 * width // 8
    unit = width / 2048

    def strands(across: float, along: float) -> np.ndarray:
        noise = rng.standard_normal((height, width)).astype(np.float32)
        noise = gaussian_filter(noise, (unit * along, across), mode="wrap")
        ranks = np.empty(noise.size, np.float32)
        ranks[noise.ravel().argsort()] = np.linspace(0, 1, noise.size, dtype=np.float32)
        return ranks.reshape(noise.shape)

    clumps = strands(7 * unit, 40)
    length = (0.7 * strands(0.8, 20) + 0.3 * clumps - 0.5) * 1.25 + 0.5
    tint = 0.6 + 0.4 * strands(1.2, 40) + 0.3 * clumps
    bright = strands(1.0, 50)[..., None] > 0.93
    color = HAIR * tint[..., None] + 18 * bright * [1.0, 0.7, 0.4]
    return np.dstack([color, 255 * length]).clip(0, 255).astype(np.uint8)


def paint_shirt(rng: np.random.Generator, size: int = 1024) -> np.ndarray:
    """Return knitted cloth, RGB and full opacity, uint8 [size, size, 4]."""
    y, x = np.mgrid[:size, :size]
    knit = 0.5 * np.sin(2 * np.pi * x / 6) * np.sin(2 * np.pi * y / 8 + np.pi * (x // 6 % 2))
    tone = (
        1
        + 0.05 * knit
        + 0.03 * _grain(rng, (size, size), 1.0)
        + 0.03 * _grain(rng, (size, size), 12)
    )
    color = SHIRT * tone[..., None]
    return np.dstack([color, np.full((size, size), 255.0)]).clip(0, 255).astype(np.uint8)


def paint_collar(width: int = 1024, height: int = 64) -> np.ndarray:
    """Return a ribbed band along u, RGB and opacity, uint8 [height, width, 4]."""
    v, u = np.mgrid[:height, :width] / [[[height]], [[width]]]
    inside = v * COLLAR_CHART / COLLAR
    ribs = 0.9 + 0.1 * np.cos(2 * np.pi * 170 * u)
    round_ = 0.72 + 0.36 * np.sqrt(np.clip(1 - (2 * inside - 0.9) ** 2, 0, 1))
    color = 0.92 * SHIRT * (ribs * round_)[..., None]
    return np.dstack([color, 255.0 * (inside < 1)]).clip(0, 255).astype(np.uint8)
