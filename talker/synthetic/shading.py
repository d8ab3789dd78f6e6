"""Per-pixel shading of the synthetic subject: textures, soft skin, hair strands, shadows.

Colours are linear inside; directions are in camera space (x right, y down, z away).
"""

import numpy as np
from numba import njit

MATERIALS = ("skin", "mouth", "eyes", "teeth", "tongue", "lashes", "hair", "shirt", "collar")
SKIN, HAIR, SHIRT = (MATERIALS.index(name) for name in ("skin", "hair", "shirt"))
SPECULAR = np.array([0.45, 0.5, 1.6, 0.5, 0.5, 0.0, 0.0, 0.03, 0.03], np.float32)
SHININESS = np.array([22, 40, 500, 60, 40, 1, 1, 8, 8], np.float32)
SOFTNESS = np.array(
    [
        [0.42, 0.24, 0.17],
        [0.4, 0.2, 0.2],
        [0.3, 0.3, 0.3],
        [0.4, 0.35, 0.3],
        [0.4, 0.2, 0.2],
        [0.2, 0.2, 0.2],
        [0.3, 0.3, 0.3],
        [0.1, 0.1, 0.1],
        [0.1, 0.1, 0.1],
    ],
    np.float32,
)
"""How far light wraps around the terminator, by material and colour: red travels far in skin."""


def _unit(*direction: float) -> np.ndarray:
    vector = np.array(direction, np.float32)
    return vector / np.linalg.norm(vector)


KEY = _unit(-0.55, -0.55, -0.75)
KEY_COLOUR = np.array([1.55, 1.45, 1.32], np.float32)
FILL = _unit(0.8, -0.1, -0.6)
FILL_COLOUR = np.array([0.30, 0.33, 0.38], np.float32)
RIM = _unit(0.75, -0.45, 0.6)
RIM_COLOUR = np.array([0.55, 0.58, 0.65], np.float32)
SKY = np.array([0.42, 0.44, 0.47], np.float32)
GROUND = np.array([0.24, 0.20, 0.17], np.float32)
ENCODED = 255 * ((np.arange(4096, dtype=np.float32) + 0.5) / 4096) ** np.float32(1 / 2.2)
LINEAR = (np.arange(256, dtype=np.float32) / 255) ** 2.2


@njit(cache=True, nogil=True)
def _shadowed(shadow, x, y, z):  # noqa: ANN001, ANN202
    """The lit part, 0..1, of a small and of a wide neighbourhood in the shadow map."""
    near, far = 0, 0
    for dy in range(-2, 3):
        row = min(max(int(y + 2 * dy), 0), shadow.shape[0] - 1)
        for dx in range(-2, 3):
            column = min(max(int(x + 2 * dx), 0), shadow.shape[1] - 1)
            lit = z < shadow[row, column]
            far += lit
            if -2 < dx < 2 and -2 < dy < 2:
                near += lit
    return near / 9, far / 25


@njit(cache=True, nogil=True)
def _lobe(aligned, power):  # noqa: ANN001, ANN202
    """A normalised highlight (Blinn-Phong) for the cosine between normal and half vector."""
    if aligned < 0.5:
        return 0.0
    return np.exp(power * np.log(aligned)) * (power + 8) / 40


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def shade(  # noqa: ANN201
    face,  # noqa: ANN001
    weights,  # noqa: ANN001
    faces,  # noqa: ANN001
    uvs,  # noqa: ANN001
    material,  # noqa: ANN001
    textures,  # noqa: ANN001
    camera,  # noqa: ANN001
    normals,  # noqa: ANN001
    tangents,  # noqa: ANN001
    openness,  # noqa: ANN001
    shadow,  # noqa: ANN001
    to_shadow,  # noqa: ANN001
    image,  # noqa: ANN001
):
    """Paint every covered pixel of `image` float32 [H, W, 3] (0..255, gamma-encoded).

    Args:
        face, weights: from the z-buffer.
        faces int32 [F, 3], uvs float32 [F, 3, 2], material uint8 [F], textures: the surface.
        camera, normals, tangents: float32 [V, 3] in camera space; tangents matter for hair only.
        openness: float32 [V], how much of the surroundings a vertex sees, 0..1.
        shadow: float32 [S, S], depth of the first surface seen from the key light.
        to_shadow: float32 [3, 4], camera space to its pixels and depth.
    """
    colour = np.zeros(3, np.float32)
    n = np.zeros(3, np.float32)
    p = np.zeros(3, np.float32)
    t = np.zeros(3, np.float32)
    for row in range(face.shape[0]):
        for column in range(face.shape[1]):
            f = face[row, column]
            if f < 0:
                continue
            m = material[f]
            b, c = weights[row, column, 0], weights[row, column, 1]
            a = 1 - b - c
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            for axis in range(3):
                n[axis] = a * normals[i, axis] + b * normals[j, axis] + c * normals[k, axis]
                p[axis] = a * camera[i, axis] + b * camera[j, axis] + c * camera[k, axis]
                t[axis] = a * tangents[i, axis] + b * tangents[j, axis] + c * tangents[k, axis]
            open_ = a * openness[i] + b * openness[j] + c * openness[k]
            length = np.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2) + 1e-9
            distance = np.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
            for axis in range(3):
                n[axis] /= length
            facing = -(n[0] * p[0] + n[1] * p[1] + n[2] * p[2]) / distance
            if facing < -0.2 and m >= SHIRT:  # the inside of the cloth
                n *= -1
                facing = -facing
                open_ *= 0.4

            texture = textures[m]
            height, width = texture.shape[0], texture.shape[1]
            u = (a * uvs[f, 0, 0] + b * uvs[f, 1, 0] + c * uvs[f, 2, 0]) * width - 0.5
            v = (a * uvs[f, 0, 1] + b * uvs[f, 1, 1] + c * uvs[f, 2, 1]) * height - 0.5
            left, top = int(np.floor(u)), int(np.floor(v))
            du, dv = u - left, v - top
            x0, x1 = min(max(left, 0), width - 1), min(max(left + 1, 0), width - 1)
            y0, y1 = min(max(top, 0), height - 1), min(max(top + 1, 0), height - 1)
            for channel in range(3):
                upper = (1 - du) * LINEAR[texture[y0, x0, channel]]
                upper += du * LINEAR[texture[y0, x1, channel]]
                lower = (1 - du) * LINEAR[texture[y1, x0, channel]]
                lower += du * LINEAR[texture[y1, x1, channel]]
                colour[channel] = (1 - dv) * upper + dv * lower
            gloss = texture[y0, x0, 3] / 255.0

            sx = to_shadow[0, 3]
            sy = to_shadow[1, 3]
            sz = to_shadow[2, 3]
            for axis in range(3):
                sx += to_shadow[0, axis] * p[axis]
                sy += to_shadow[1, axis] * p[axis]
                sz += to_shadow[2, axis] * p[axis]
            key = n[0] * KEY[0] + n[1] * KEY[1] + n[2] * KEY[2]
            sz -= 0.02 + 0.05 * (1 - max(key, 0.0))
            sharp, wide = _shadowed(shadow, sx, sy, sz)
            if m != SKIN:
                wide = sharp
            fill = n[0] * FILL[0] + n[1] * FILL[1] + n[2] * FILL[2]
            rim = n[0] * RIM[0] + n[1] * RIM[1] + n[2] * RIM[2]
            edge = (1 - min(max(facing, 0.0), 1.0)) ** 3
            upward = 0.5 - 0.5 * n[1]

            glint = 0.1 if m == HAIR else 0.5
            shine = 0.0
            glow = 0.0
            if m == HAIR:
                length = np.sqrt(t[0] ** 2 + t[1] ** 2 + t[2] ** 2) + 1e-9
                hx = KEY[0] - p[0] / distance
                hy = KEY[1] - p[1] / distance
                hz = KEY[2] - p[2] / distance
                half = np.sqrt(hx * hx + hy * hy + hz * hz)
                along = (t[0] * hx + t[1] * hy + t[2] * hz) / (half * length)
                across = np.sqrt(max(1 - along * along, 0.0))
                across4 = across * across * across * across
                across16 = across4 * across4 * across4 * across4
                shine = 0.035 * across16 * across16 * across16 * across16 + 0.03 * across4 * across4
                shine *= sharp * max(key + 0.3, 0.0)
                along = (t[0] * KEY[0] + t[1] * KEY[1] + t[2] * KEY[2]) / length
                key = 0.6 * key + 0.4 * np.sqrt(max(1 - along * along, 0.0)) * (key > -0.2)
            else:
                hx = KEY[0] - p[0] / distance
                hy = KEY[1] - p[1] / distance
                hz = KEY[2] - p[2] / distance
                half = np.sqrt(hx * hx + hy * hy + hz * hz)
                aligned = max((n[0] * hx + n[1] * hy + n[2] * hz) / half, 0.0)
                power = SHININESS[m]
                lobe = _lobe(aligned, power)
                if m == SKIN:
                    lobe = 0.65 * lobe + 0.35 * _lobe(aligned, 4 * power)
                fresnel = 0.35 + 0.65 * edge
                shine = SPECULAR[m] * gloss * gloss * lobe * fresnel * sharp * (key > 0)
                hx = FILL[0] - p[0] / distance
                hy = FILL[1] - p[1] / distance
                hz = FILL[2] - p[2] / distance
                half = np.sqrt(hx * hx + hy * hy + hz * hz)
                aligned = max((n[0] * hx + n[1] * hy + n[2] * hz) / half, 0.0)
                glow = 0.25 * SPECULAR[m] * gloss * gloss * _lobe(aligned, power)

            open_ = max(open_, 0.0)
            reddened = np.sqrt(open_ * np.sqrt(open_))  # light leaks into creases, red most
            for channel in range(3):
                wrap = SOFTNESS[m, channel]
                mixed = sharp + (wide - sharp) * (1.0 if channel == 0 else 0.35)
                light = KEY_COLOUR[channel] * max((key + wrap) / (1 + wrap), 0.0) * mixed
                around = GROUND[channel] + (SKY[channel] - GROUND[channel]) * upward
                around += FILL_COLOUR[channel] * max((fill + wrap) / (1 + wrap), 0.0)
                light += around * (reddened if channel == 0 else open_)
                value = colour[channel] * light
                value += shine * KEY_COLOUR[channel] + glow * FILL_COLOUR[channel] * open_
                value += RIM_COLOUR[channel] * edge * max(rim, 0.0) * glint * open_
                value = value * 0.78
                if value > 0.6:
                    value = 0.6 + 0.4 * (1 - np.exp(-(value - 0.6) / 0.4))
                image[row, column, channel] = ENCODED[min(int(value * 4096), 4095)]


@njit(cache=True, nogil=True)
def resolve(big, label, n):  # noqa: ANN001, ANN201
    """Shrink by n: the mean colour, uint8 [H, W, 3], and the commonest label, uint8 [H, W]."""
    height, width = big.shape[0] // n, big.shape[1] // n
    image = np.empty((height, width, 3), np.uint8)
    mask = np.empty((height, width), np.uint8)
    votes = np.zeros(4, np.int64)
    for row in range(height):
        for column in range(width):
            votes[:] = 0
            for y in range(row * n, row * n + n):
                for x in range(column * n, column * n + n):
                    votes[label[y, x]] += 1
            mask[row, column] = votes.argmax()
            for channel in range(3):
                total = 0.0
                for y in range(row * n, row * n + n):
                    for x in range(column * n, column * n + n):
                        total += big[y, x, channel]
                image[row, column, channel] = int(total / (n * n) + 0.5)
    return image, mask
