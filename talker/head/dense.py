"""Whole heads from face meshes: the morphable head bent to a subject's 478 mean points."""

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from talker.head.fitting import stable_points
from talker.head.morphable import PARTS, MorphableHead, vertex_normals

POINT_SIGMA = 0.1
"""Expected error of a point in dm; large, as neighbours err alike."""

REACH, SMOOTHING = 0.25, 1.0
"""How far from the points the warp fades, dm, and its smoothing: less crumples the eyelids."""

HAIR = 0.18
"""Thickness of hair on the top and back of the head, dm: the model is bald, few people are."""

NECK_CUT = -1.1
"""The head ends here, in the middle of the neck: y in dm from the middle of the mean face."""


def fit_head(head: MorphableHead, mesh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bend `head` until its landmarks lie at `mesh` [478, 3], dm, in the head's frame.

    Ridge regression on identities and expressions carries the face's shape over to skull, ears
    and neck; a thin-plate warp takes up the rest of the face and fades out around it.

    Returns:
        the vertices [V, 3] and the weights [I] of the identities.
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
    warp = RBFInterpolator(points, mesh - points, smoothing=SMOOTHING)
    distance, _ = KDTree(points).query(vertices)
    near = distance < 3 * REACH
    fade = np.exp(-((distance[near] / REACH) ** 2))
    vertices[near] += fade[:, None] * warp(vertices[near])
    return vertices, weights[: len(head.identities)]


def with_hair(head: MorphableHead, vertices: np.ndarray) -> np.ndarray:
    """Fitted `vertices` [V, 3] with the scalp raised, from nothing at temples and ears."""
    _, height, front = head.vertices.T
    scalp = np.clip(height / 0.6, 0, 1) * np.clip((0.1 - front) / 0.5, 0, 1)
    scalp *= 1 - head.masks["ears"]
    return vertices + HAIR * scalp[:, None] * vertex_normals(vertices, head.faces)


def head_surface(head: MorphableHead, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Head and upper neck of fitted `vertices` [V, 3], without lashes: [V', 3], faces [F', 3]."""
    kept = (head.vertices[head.faces, 1] > NECK_CUT).all(axis=1)
    kept &= head.parts != PARTS.index("lashes")
    used, faces = np.unique(head.faces[kept], return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def _without_motion(head: MorphableHead) -> np.ndarray:
    """The identities [I, V, 3] less the motion and growth of the skull that each contains.

    Artists' targets move the whole head (taller body, longer neck), but a mesh in the head's
    frame has been laid over the mean face already.
    """
    vertices = head.vertices.astype(float)
    points = head.landmarks(vertices)
    stable = stable_points(points)

    def motions(places: np.ndarray) -> np.ndarray:
        turns = [np.cross(axis, places) for axis in np.eye(3)]
        shifts = [np.broadcast_to(axis, places.shape) for axis in np.eye(3)]
        return np.stack([*turns, *shifts, places])

    seen = motions(points)[:, stable].reshape(7, -1).T
    offsets = head.landmarks(head.identities)[:, stable].reshape(len(head.identities), -1).T
    amounts = np.linalg.lstsq(seen, offsets, rcond=None)[0]
    return head.identities - np.tensordot(amounts.T, motions(vertices), 1)
