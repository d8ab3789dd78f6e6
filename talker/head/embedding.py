"""Embed the 478 face mesh points on any head: render it, detect the mesh, project it back.

Head models therefore need no hand-made list of landmark vertices.
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

SIZE = 512
"""Width and height of the renders in pixels."""

FOCAL = 1500.0
"""Focal length of the renders in pixels."""

DISTANCE = 8.5
"""Distance of the cameras from the head in dm."""

YAWS = (-24, -12, 0, 12, 24)
"""Yaw angles of the cameras in degrees."""

PITCHES = (-10, 0, 10)
"""Pitch angles of the cameras in degrees."""

LIGHT = np.array([0.25, 0.45, 0.85])
"""Direction towards the light in the frame of the head."""

SKIN = np.array([214.0, 168.0, 145.0])
"""RGB color of fully lit skin in the renders."""

BACKDROP = 205
"""Gray level of the background of the renders."""


def embed(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where MediaPipe's mesh points are on the surface of a neutral head.

    Each point is located in every view; the hit nearest to the median of all hits is returned.

    Args:
        vertices: [V, 3] dm; x to the image's right, y up, looking along +z, near the origin.
        faces: int [F, 3], counter-clockwise as viewed from outside.

    Returns:
        The triangle of each point int32 [478] and its barycentric weights float32 [478, 3].

    Raises:
        UserError: no face is detected in the renders.
    """
    normals = vertex_normals(vertices, faces)
    rays = (_detect(vertices, faces, normals, view) for view in views())
    hits = [hit for hit in rays if hit is not None]
    if not hits:
        raise UserError(
            "No face was detected in renderings of this head. The head must be upright, "
            "as large as a human head, and look in the direction +z."
        )
    triangles, weights = (np.stack(part) for part in zip(*hits, strict=True))
    positions = (vertices[faces[triangles]] * weights[..., None]).sum(axis=2)
    off = np.linalg.norm(positions - np.median(positions, axis=0), axis=-1)
    best = off.argmin(axis=0), np.arange(MESH_POINTS)
    return triangles[best].astype(np.int32), weights[best].astype(np.float32)


def views() -> list[np.ndarray]:
    """Return world-to-camera matrices [4, 4] around the face."""
    matrices = []
    for yaw, pitch in itertools.product(YAWS, PITCHES):
        matrix = np.eye(4)
        turn = Rotation.from_euler("xy", (pitch, yaw), degrees=True).as_matrix()
        matrix[:3, :3] = np.diag([1, -1, -1]) @ turn
        matrix[2, 3] = DISTANCE
        matrices.append(matrix)
    return matrices


def _detect(
    vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the triangles [478] and weights [478, 3] of the mesh detected in one view, if any."""
    K = intrinsics(FOCAL, SIZE, SIZE)
    points = vertices @ view[:3, :3].T + view[:3, 3]
    pixels = points @ K.T
    pixels[:, :2] /= pixels[:, 2:]
    a, b, c = np.moveaxis(pixels[faces, :2], 1, 0)
    edges = b - a, c - a
    front = np.flatnonzero(edges[0][:, 0] * edges[1][:, 1] < edges[0][:, 1] * edges[1][:, 0])
    visible, second, _ = zbuffer(pixels.astype(np.float32), faces[front], SIZE, SIZE)
    weights = np.dstack([1 - second.sum(axis=2), second])
    triangle = front[visible]
    shade = np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    light = (shade[faces[triangle]] * weights).sum(axis=2)
    image = np.where((visible >= 0)[..., None], SKIN * (0.25 + 0.75 * light[..., None]), BACKDROP)
    meshes = next(track_meshes([image.astype(np.uint8)]))
    if len(meshes) == 0:
        return None
    rows, columns = np.nonzero(visible >= 0)
    _, nearest = KDTree(np.column_stack([columns, rows]) + 0.5).query(meshes[0, :, :2])
    at = rows[nearest], columns[nearest]
    return triangle[at], weights[at]
