"""A z-buffer for triangle meshes: which triangle each pixel sees, and where in it."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def zbuffer(points, faces, height, width, uvs, opacity, threshold):  # noqa: ANN001, ANN201
    """Find the nearest triangle of every pixel.

    Args:
        points: float32 [V, 3], pixel coordinates x, y (pixel centres at +0.5) and depth > 0.
        faces: int32 [F, 3].
        height, width: size of the image in pixels.
        uvs: float32 [F, 3, 2] in 0..1, v up: where the corners lie in `opacity`.
        opacity: uint8 [S, S] texture.
        threshold: uint8 [F]; a triangle covers only pixels of opacity >= its threshold.

    Returns:
        face int32 [height, width] (-1: none), perspective-correct barycentric weights of the
        face's second and third corner float32 [height, width, 2], depth float32 [height, width].
    """
    face = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    depth = np.full((height, width), np.inf, np.float32)
    size = opacity.shape[0]
    for f in range(faces.shape[0]):
        a, b, c = points[faces[f, 0]], points[faces[f, 1]], points[faces[f, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0.0:
            continue
        left = max(int(np.ceil(min(a[0], b[0], c[0]) - 0.5)), 0)
        right = min(int(np.floor(max(a[0], b[0], c[0]) - 0.5)), width - 1)
        top = max(int(np.ceil(min(a[1], b[1], c[1]) - 0.5)), 0)
        bottom = min(int(np.floor(max(a[1], b[1], c[1]) - 0.5)), height - 1)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                dx, dy = x + 0.5 - a[0], y + 0.5 - a[1]
                wb = (dx * (c[1] - a[1]) - dy * (c[0] - a[0])) / area
                wc = (dy * (b[0] - a[0]) - dx * (b[1] - a[1])) / area
                wa = 1.0 - wb - wc
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                wa, wb, wc = wa / a[2], wb / b[2], wc / c[2]
                z = 1.0 / (wa + wb + wc)
                if z >= depth[y, x]:
                    continue
                wb, wc = wb * z, wc * z
                if threshold[f] > 0:
                    uv = uvs[f, 0] + wb * (uvs[f, 1] - uvs[f, 0]) + wc * (uvs[f, 2] - uvs[f, 0])
                    column = min(max(int(uv[0] * size), 0), size - 1)
                    row = min(max(int((1.0 - uv[1]) * size), 0), size - 1)
                    if opacity[row, column] < threshold[f]:
                        continue
                depth[y, x] = z
                face[y, x] = f
                weights[y, x, 0] = wb
                weights[y, x, 1] = wc
    return face, weights, depth
