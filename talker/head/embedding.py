"""Find the face mesh's 478 points on any head: render it, detect them, cast them onto the surface.

So no model needs a hand-made list of landmark vertices.
"""

import itertools

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from talker.errors import UserError
from talker.head.camera import intrinsics
from talker.head.morphable import vertex_normals
from talker.head.zbuffer import zbuffer
from talker.media.mediapipe import MESH_POINTS, track_meshes

SIZE, FOCAL, DISTANCE = 512, 1500.0, 8.5
YAWS, PITCHES = (-24, -12, 0, 12, 24), (-10, 0, 10)
LIGHT = np.array([0.25, 0.45, 0.85])
SKIN, BACKDROP = np.array([214.0, 168.0, 145.0]), 205


def embed(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where MediaPipe's points lie on a neutral head.

    Args:
        vertices: [V, 3] dm; x to the image's right, y up, looking along +z, near the origin.
        faces: int [F, 3], counter-clockwise seen from outside.

    Returns:
        the triangle of each point int32 [478] and its barycentric weights there float32 [478, 3]:
        of all views' hits the one nearest to their median.

    Raises:
        UserError: no face is found in the renders.
    """
    normals = vertex_normals(vertices, faces)
    hits = [hit for view in views() if (hit := _look(vertices, faces, normals, view)) is not None]
    if not hits:
        raise UserError("no face is seen in renders of this head; is it upright, in dm, facing +z?")
    triangles, weights = (np.stack(part) for part in zip(*hits, strict=True))
    places = (vertices[faces[triangles]] * weights[..., None]).sum(axis=2)
    off = np.linalg.norm(places - np.median(places, axis=0), axis=-1)
    best = off.argmin(axis=0), np.arange(MESH_POINTS)
    return triangles[best].astype(np.int32), weights[best].astype(np.float32)


def views() -> list[np.ndarray]:
    """Cameras [4, 4] around the face."""
    matrices = []
    for yaw, pitch in itertools.product(YAWS, PITCHES):
        matrix = np.eye(4)
        turn = Rotation.from_euler("xy", (pitch, yaw), degrees=True).as_matrix()
        matrix[:3, :3] = np.diag([1, -1, -1]) @ turn
        matrix[2, 3] = DISTANCE
        matrices.append(matrix)
    return matrices


def _look(
    vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Triangle [478] and weights [478, 3] of the points that are seen in one view."""
    K = intrinsics(FOCAL, SIZE, SIZE)
    points = vertices @ view[:3, :3].T + view[:3, 3]
    pixels = points @ K.T
    pixels[:, :2] /= pixels[:, 2:]
    a, b, c = np.moveaxis(pixels[faces, :2], 1, 0)
    edges = b - a, c - a
    front = np.flatnonzero(edges[0][:, 0] * edges[1][:, 1] < edges[0][:, 1] * edges[1][:, 0])
    seen, second, _ = zbuffer(pixels.astype(np.float32), faces[front], SIZE, SIZE)
    weights = np.dstack([1 - second.sum(axis=2), second])
    triangle = front[seen]
    shade = np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    light = (shade[faces[triangle]] * weights).sum(axis=2)
    image = np.where((seen >= 0)[..., None], SKIN * (0.25 + 0.75 * light[..., None]), BACKDROP)
    found = next(track_meshes([image.astype(np.uint8)]))
    if len(found) == 0:
        return None
    rows, columns = np.nonzero(seen >= 0)
    _, nearest = KDTree(np.column_stack([columns, rows]) + 0.5).query(found[0, :, :2])
    at = rows[nearest], columns[nearest]
    return triangle[at], weights[at]
