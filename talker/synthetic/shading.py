"""Per-pixel shading of the synthetic subject: textures, subsurface scattering, hair, shadows.

Colors are linear during shading. Directions are unit vectors in camera space (x right, y down,
z forward), as tuples.
"""

import numpy as np
from numba import njit

_MATERIALS = {  # specular strength, shininess, wrap lighting for red, green and blue
    "skin": (0.45, 22, 0.42, 0.24, 0.17),
    "mouth": (0.50, 40, 0.40, 0.20, 0.20),
    "eyes": (1.60, 500, 0.30, 0.30, 0.30),
    "teeth": (0.50, 60, 0.40, 0.35, 0.30),
    "tongue": (0.50, 40, 0.40, 0.20, 0.20),
    "lashes": (0.00, 1, 0.20, 0.20, 0.20),
    "hair": (0.00, 1, 0.30, 0.30, 0.30),
    "shirt": (0.03, 8, 0.10, 0.10, 0.10),
    "collar": (0.03, 8, 0.10, 0.10, 0.10),
}
MATERIALS = tuple(_MATERIALS)
SKIN, MOUTH, EYES, TEETH, TONGUE, _, HAIR, CLOTH, _ = range(len(MATERIALS))
_PROPERTIES = np.array(list(_MATERIALS.values()), np.float32)
SPECULAR, SHININESS = _PROPERTIES[:, 0].copy(), _PROPERTIES[:, 1].copy()
WRAP = _PROPERTIES[:, 2:].copy()
"""Share by which diffuse light wraps around the terminator; red scatters furthest in skin."""


def _direction(*components: float) -> tuple[float, ...]:
    return tuple(np.array(components) / np.linalg.norm(components))


KEY, KEY_COLOR = _direction(-0.55, -0.55, -0.75), (1.55, 1.45, 1.32)
FILL, FILL_COLOR = _direction(0.8, -0.1, -0.6), (0.30, 0.33, 0.38)
RIM, RIM_COLOR = _direction(0.75, -0.45, 0.6), (0.28, 0.29, 0.33)
CATCH = _direction(-0.22, -0.26, -0.94)  # a lamp near the camera, which only the eyes reflect
SKY, GROUND = (0.42, 0.44, 0.47), (0.24, 0.20, 0.17)
EXPOSURE = 0.78
_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** np.float32(2.2)
_GAMMA = 255 * ((np.arange(4096, dtype=np.float32) + 0.5) / 4096) ** np.float32(1 / 2.2)

inlined = njit(forceinline=True)  # linked functions may round differently, see kernels/jit.py


@inlined
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inlined
def _unit(a):
    scale = 1 / (np.sqrt(_dot(a, a)) + 1e-9)
    return a[0] * scale, a[1] * scale, a[2] * scale


@inlined
def _interpolate(values, face, a, b, c):
    """Interpolate `values` [V, 3] at the barycentric weights a, b, c of a face."""
    i, j, k = face[0], face[1], face[2]
    return (
        a * values[i, 0] + b * values[j, 0] + c * values[k, 0],
        a * values[i, 1] + b * values[j, 1] + c * values[k, 1],
        a * values[i, 2] + b * values[j, 2] + c * values[k, 2],
    )


@inlined
def _sample_texture(texture, u, v):
    """Return the bilinear linear color at u, v in 0..1, and the nearest alpha in 0..1."""
    height, width = texture.shape[0], texture.shape[1]
    x, y = u * width - 0.5, v * height - 0.5
    left, top = int(np.floor(x)), int(np.floor(y))
    dx, dy = x - left, y - top
    x0, x1 = min(max(left, 0), width - 1), min(max(left + 1, 0), width - 1)
    y0, y1 = min(max(top, 0), height - 1), min(max(top + 1, 0), height - 1)
    w00, w01, w10, w11 = (1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx
    p, q, r, s = texture[y0, x0], texture[y0, x1], texture[y1, x0], texture[y1, x1]
    red = w00 * _LINEAR[p[0]] + w01 * _LINEAR[q[0]] + w10 * _LINEAR[r[0]] + w11 * _LINEAR[s[0]]
    green = w00 * _LINEAR[p[1]] + w01 * _LINEAR[q[1]] + w10 * _LINEAR[r[1]] + w11 * _LINEAR[s[1]]
    blue = w00 * _LINEAR[p[2]] + w01 * _LINEAR[q[2]] + w10 * _LINEAR[r[2]] + w11 * _LINEAR[s[2]]
    return (red, green, blue), p[3] / 255.0


@inlined
def _visibility(shadow, to_shadow, point, bias):
    """Return the lit shares, 0..1, of a small and a wide neighborhood in the shadow map."""
    x = to_shadow[0, 3] + _dot(to_shadow[0], point)
    y = to_shadow[1, 3] + _dot(to_shadow[1], point)
    z = to_shadow[2, 3] + _dot(to_shadow[2], point) - bias
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


@inlined
def _half_vector(light, view):
    """Return the unit vector halfway between light and view direction."""
    return _unit((light[0] + view[0], light[1] + view[1], light[2] + view[2]))


@inlined
def _blinn_phong(cosine, power):
    """Return the normalized Blinn-Phong lobe at the cosine of normal and half vector."""
    if cosine < 0.5:
        return 0.0
    return np.exp(power * np.log(cosine)) * (power + 8) / 40


@inlined
def _specular(material, normal, view, edge, gloss, sharp):
    """Return the specular reflections of the key light and of the fill light."""
    if material == EYES:
        catch = min(max((_dot(normal, _half_vector(CATCH, view)) - 0.9955) * 1000, 0.0), 1.0)
        return 0.5 * catch, 0.0
    power, strength = SHININESS[material], SPECULAR[material] * gloss * gloss
    cosine = _dot(normal, _half_vector(KEY, view))
    lobe = _blinn_phong(cosine, power)
    if material == SKIN:
        lobe = 0.65 * lobe + 0.35 * _blinn_phong(cosine, 4 * power)
    facing = _dot(normal, KEY) > 0
    shine = strength * lobe * (0.35 + 0.65 * edge) * sharp * facing
    return shine, 0.25 * strength * _blinn_phong(_dot(normal, _half_vector(FILL, view)), power)


@inlined
def _kajiya_kay(tangent, view, key, sharp):
    """Return specular and diffuse light of hair along `tangent` (Kajiya and Kay 1989)."""
    along = _dot(tangent, _half_vector(KEY, view))
    across = max(1 - along * along, 0.0)  # sin^2
    narrow = across**30
    shine = (0.035 * narrow + 0.03 * across**4) * sharp * max(key + 0.3, 0.0)
    along = _dot(tangent, KEY)
    diffuse = 0.6 * key + 0.4 * np.sqrt(max(1 - along * along, 0.0)) * (key > -0.2)
    return shine, diffuse


@inlined
def _tone_mapped(value):
    """Return the gamma-encoded value 0..255 of linear light, compressed above 0.6."""
    if value > 0.6:
        value = 0.6 + 0.4 * (1 - np.exp(-(value - 0.6) / 0.4))
    return _GAMMA[min(int(value * 4096), 4095)]


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def shade(
    face,
    weights,
    faces,
    uvs,
    material,
    textures,
    camera,
    normals,
    tangents,
    openness,
    shadow,
    to_shadow,
    image,
):
    """Shade every covered pixel of `image` in place.

    Args:
        face: int32 [H, W], the face at each pixel or -1 (from `zbuffer`).
        weights: float32 [H, W, 2], barycentric weights (from `zbuffer`).
        faces: int32 [F, 3].
        uvs: float32 [F, 3, 2], texture coordinates of the face's material.
        material: uint8 [F], index into `textures` and `MATERIALS`.
        textures: uint8 [h, w, 4] each; alpha is gloss, or opacity for hair and cloth.
        camera: float32 [V, 3], vertices in camera space.
        normals: float32 [V, 3], in camera space.
        tangents: float32 [V, 3], directions of the hair in camera space; unused elsewhere.
        openness: float32 [V], unoccluded share of the surroundings, 0..1.
        shadow: float32 [S, S], depth of the surface nearest to the key light.
        to_shadow: float32 [3, 4], projection from camera space to the shadow map.
        image: float32 [H, W, 3], 0..255, gamma-encoded.
    """
    for row in range(face.shape[0]):
        for column in range(face.shape[1]):
            f = face[row, column]
            if f < 0:
                continue
            m, corners, uv = material[f], faces[f], uvs[f]
            b, c = weights[row, column, 0], weights[row, column, 1]
            a = 1 - b - c
            point = _interpolate(camera, corners, a, b, c)
            normal = _unit(_interpolate(normals, corners, a, b, c))
            visible = a * openness[corners[0]] + b * openness[corners[1]] + c * openness[corners[2]]
            view = _unit((-point[0], -point[1], -point[2]))
            facing = _dot(normal, view)
            if facing < 0 and m >= CLOTH:  # the inside of the collar
                normal = (-normal[0], -normal[1], -normal[2])
                facing, visible = -facing, 0.6 * visible
            color, gloss = _sample_texture(
                textures[m],
                a * uv[0, 0] + b * uv[1, 0] + c * uv[2, 0],
                a * uv[0, 1] + b * uv[1, 1] + c * uv[2, 1],
            )

            key, fill, rim = _dot(normal, KEY), _dot(normal, FILL), _dot(normal, RIM)
            sharp, wide = _visibility(shadow, to_shadow, point, 0.02 + 0.05 * (1 - max(key, 0.0)))
            if m in (MOUTH, TEETH, TONGUE):  # less light reaches the inside of the mouth
                sharp *= visible
            edge = (1 - min(max(facing, 0.0), 1.0)) ** 3
            outline = edge * max(rim, 0.0) * visible
            if m == HAIR:
                tangent = _unit(_interpolate(tangents, corners, a, b, c))
                shine, key = _kajiya_kay(tangent, view, key, sharp)
                glow, outline = 0.0, 0.2 * outline
            else:
                shine, glow = _specular(m, normal, view, edge, gloss, sharp)
            reddened = np.sqrt(visible * np.sqrt(visible))  # red light scatters into creases
            for channel in range(3):
                wrap = WRAP[m, channel]
                soft = (1.0 if channel == 0 else 0.35) if m == SKIN else 0.0
                mixed = sharp + (wide - sharp) * soft
                light = KEY_COLOR[channel] * max((key + wrap) / (1 + wrap), 0.0) * mixed
                around = GROUND[channel] + (SKY[channel] - GROUND[channel]) * (
                    0.5 - 0.5 * normal[1]
                )
                around += FILL_COLOR[channel] * max((fill + wrap) / (1 + wrap), 0.0)
                light += around * (reddened if channel == 0 else visible)
                value = color[channel] * light + shine * KEY_COLOR[channel]
                value += glow * visible * FILL_COLOR[channel] + outline * RIM_COLOR[channel]
                image[row, column, channel] = _tone_mapped(value * EXPOSURE)


@njit(cache=True, nogil=True)
def resolve(big, label, n):
    """Downsample by n.

    Args:
        big: float32 [n H, n W, 3], 0..255.
        label: uint8 [n H, n W], 0..3.

    Returns:
        The mean color uint8 [H, W, 3] and the most frequent label uint8 [H, W].
    """
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
