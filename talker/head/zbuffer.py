"""A z-buffer for triangle meshes: the visible triangle of each pixel, and where it is hit."""

from dataclasses import dataclass

import numpy as np
from numba import njit


@dataclass(frozen=True)
class Cutouts:
    """Holes in triangles: a pixel is kept where the opacity of the texture reaches the cutoff."""

    uvs: np.ndarray
    """float32 [F, 3, 2] in 0..1, v down, texture coordinates of the corners."""
    cutoff: np.ndarray
    """float32 [F, 3] in 0..255, cutoff at the corners; no holes where all three are <= 0."""
    texture: np.ndarray
    """int [F], index into `textures`."""
    textures: tuple[np.ndarray, ...]
    """uint8 [h, w, 4] each; the last channel is the opacity."""

    def only(self, faces: np.ndarray | slice) -> "Cutouts":
        """Return the cutouts of some of the triangles."""
        return Cutouts(self.uvs[faces], self.cutoff[faces], self.texture[faces], self.textures)


_SOLID = np.full((1, 1, 4), 255, np.uint8)


def zbuffer(
    points: np.ndarray, faces: np.ndarray, height: int, width: int, cutouts: Cutouts | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the nearest triangle of every pixel.

    Args:
        points: float32 [V, 3], pixel coordinates x, y (pixel centers at +0.5) and depth > 0.
        faces: int [F, 3].
        height: height of the image in pixels.
        width: width of the image in pixels.
        cutouts: holes of the triangles, if any.

    Returns:
        The face of each pixel int32 [height, width], -1 where there is none; perspective-correct
        barycentric weights of its second and third corner float32 [height, width, 2]; and the
        depth float32 [height, width].
    """
    if cutouts is None:
        nothing = np.zeros((len(faces), 3), np.float32)
        cutouts = Cutouts(
            np.zeros((len(faces), 3, 2), np.float32), nothing, np.zeros(len(faces), int), (_SOLID,)
        )
    return _zbuffer(
        np.ascontiguousarray(points, np.float32),
        np.ascontiguousarray(faces, np.int32),
        height,
        width,
        cutouts.uvs,
        cutouts.cutoff,
        cutouts.texture.astype(np.uint8),
        cutouts.textures,
    )


@njit(cache=True, nogil=True)
def _zbuffer(points, faces, height, width, uvs, cutoff, texture, textures):
    face = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    nearness = np.zeros((height, width), np.float32)  # 1 / depth is linear on the screen
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = points[i, 0], points[i, 1], 1 / points[i, 2]
        bx, by, bz = points[j, 0] - ax, points[j, 1] - ay, 1 / points[j, 2]
        cx, cy, cz = points[k, 0] - ax, points[k, 1] - ay, 1 / points[k, 2]
        left = max(int(np.ceil(ax + min(bx, cx, 0.0) - 0.5)), 0)
        right = min(int(np.floor(ax + max(bx, cx, 0.0) - 0.5)), width - 1)
        top = max(int(np.ceil(ay + min(by, cy, 0.0) - 0.5)), 0)
        bottom = min(int(np.floor(ay + max(by, cy, 0.0) - 0.5)), height - 1)
        area = bx * cy - by * cx
        if area == 0.0 or right < left or bottom < top:
            continue
        scale = 1 / area
        hole = max(cutoff[f, 0], cutoff[f, 1], cutoff[f, 2]) > 0.0
        for y in range(top, bottom + 1):
            dy = y + 0.5 - ay
            for x in range(left, right + 1):
                dx = x + 0.5 - ax
                wb = (dx * cy - dy * cx) * scale
                wc = (dy * bx - dx * by) * scale
                wa = 1 - wb - wc
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                near = wa * az + wb * bz + wc * cz
                if near <= nearness[y, x]:
                    continue
                wb *= bz / near
                wc *= cz / near
                if hole:
                    wa = 1 - wb - wc
                    image = textures[texture[f]]
                    u = wa * uvs[f, 0, 0] + wb * uvs[f, 1, 0] + wc * uvs[f, 2, 0]
                    v = wa * uvs[f, 0, 1] + wb * uvs[f, 1, 1] + wc * uvs[f, 2, 1]
                    column = min(max(int(u * image.shape[1]), 0), image.shape[1] - 1)
                    row = min(max(int(v * image.shape[0]), 0), image.shape[0] - 1)
                    least = wa * cutoff[f, 0] + wb * cutoff[f, 1] + wc * cutoff[f, 2]
                    if image[row, column, 3] < least:
                        continue
                nearness[y, x] = near
                face[y, x] = f
                weights[y, x, 0] = wb
                weights[y, x, 1] = wc
    return face, weights, 1 / nearness
