"""Fit the whole morphable head to the 478 mean mesh points of a subject."""

import numpy as np
from jaxtyping import Float, Integer
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from talker.head.fitting import stable_points
from talker.head.morphable import PARTS, MorphableHead, vertex_normals

POINT_SIGMA = 0.1
"""Expected error of a mesh point in dm; large because errors of neighboring points correlate."""

WARP_RADIUS = 0.25
"""Distance from the mesh points over which the thin-plate warp fades out, in dm."""

WARP_SMOOTHING = 1.0
"""Smoothing of the thin-plate warp; smaller values crumple the eyelids."""

HAIR = 0.18
"""Thickness of the hair that is added to the bald model on the top and back of the head, in dm."""

NECK_CUT = -1.1
"""Height at which the head surface is cut through the neck: y in dm from the center of the face."""


def fit_head(
    head: MorphableHead, mesh: Float[np.ndarray, "478 3"]
) -> tuple[Float[np.ndarray, "V 3"], Float[np.ndarray, "I"]]:
    """Deform `head` so that its landmarks match `mesh` [478, 3] (dm, in the frame of the head).

    Ridge regression on identities and expressions extends the shape of the face to skull, ears and
    neck; a thin-plate warp removes the remaining error of the face and fades out around it.

    Returns:
        Vertices [V, 3] in dm and identity weights [I].
    """
    bases = np.concatenate([_without_motion(head), head.expressions])
    sigmas = np.repeat(
        [head.identity_sigma, head.expression_sigma], [len(head.identities), len(head.expressions)]
    )
    mean = head.vertices.astype(float)
    design = head.landmarks(bases).reshape(len(bases), -1).T * sigmas / POINT_SIGMA
    target = (mesh - head.landmarks(mean)).ravel() / POINT_SIGMA
    normal = design.T @ design + np.eye(len(bases))
    weights = sigmas * np.linalg.solve(normal, design.T @ target)
    vertices = mean + np.tensordot(weights, bases, 1)

    points = head.landmarks(vertices)
    warp = RBFInterpolator(points, mesh - points, smoothing=WARP_SMOOTHING)
    distance, _ = KDTree(points).query(vertices)
    near = distance < 3 * WARP_RADIUS
    fade = np.exp(-((distance[near] / WARP_RADIUS) ** 2))
    vertices[near] += fade[:, None] * warp(vertices[near])
    return vertices, weights[: len(head.identities)]


def with_hair(head: MorphableHead, vertices: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
    """Raise the scalp of fitted `vertices` [V, 3]; the offset is zero at temples and ears."""
    _, height, front = head.vertices.T
    scalp = np.clip(height / 0.6, 0, 1) * np.clip((0.1 - front) / 0.5, 0, 1)
    scalp *= 1 - head.masks["ears"]
    return vertices + HAIR * scalp[:, None] * vertex_normals(vertices, head.faces)


def head_surface(
    head: MorphableHead, vertices: Float[np.ndarray, "V 3"]
) -> tuple[Float[np.ndarray, "W 3"], Integer[np.ndarray, "F 3"]]:
    """Cut head and upper neck without lashes out of fitted vertices [V, 3].

    Returns:
        Vertices [V', 3] and faces int [F', 3].
    """
    kept = (head.vertices[head.faces, 1] > NECK_CUT).all(axis=1)
    kept &= head.parts != PARTS.index("lashes")
    used, faces = np.unique(head.faces[kept], return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def _without_motion(head: MorphableHead) -> np.ndarray:
    """Return the identities [I, V, 3] without the rigid motion and scaling that each contains.

    Some identities also move or scale the whole head (taller body, longer neck), but the mesh to
    fit is already aligned with the mean face.
    """
    vertices = head.vertices.astype(float)
    points = head.landmarks(vertices)
    stable = stable_points(points)

    def motions(positions: np.ndarray) -> np.ndarray:
        turns = [np.cross(axis, positions) for axis in np.eye(3)]
        shifts = [np.broadcast_to(axis, positions.shape) for axis in np.eye(3)]
        return np.stack([*turns, *shifts, positions])

    design = motions(points)[:, stable].reshape(7, -1).T
    offsets = head.landmarks(head.identities)[:, stable].reshape(len(head.identities), -1).T
    amounts = np.linalg.lstsq(design, offsets, rcond=None)[0]
    return head.identities - np.tensordot(amounts.T, motions(vertices), 1)
