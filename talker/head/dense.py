"""Whole heads from face meshes: the morphable head bent to a subject's 478 mean points."""

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from talker.head.fitting import stable_points
from talker.head.morphable import PARTS, MorphableHead

NECK_CUT = -1.1
"""The head ends here, in the middle of the neck: y in dm from the middle of the mean face."""


def fit_head(
    head: MorphableHead,
    mesh: np.ndarray,
    *,
    identity_sigma: float = 0.2,
    expression_sigma: float = 0.1,
    point_sigma: float = 0.1,
    reach: float = 0.4,
    smoothing: float = 1e-3,
) -> np.ndarray:
    """Vertices [V, 3] of `head` whose landmarks lie at `mesh` [478, 3], dm.

    Ridge regression on identities and expressions carries the face's shape over to skull, ears
    and neck; a thin-plate warp takes up the rest of the face and fades out around it.

    Args:
        head: the model.
        mesh: mean points of the subject, in the model's frame.
        identity_sigma, expression_sigma: expected size of the model's weights.
        point_sigma: expected error of a point, dm; large, as neighbours err alike.
        reach: how far from the points the warp fades, dm.
        smoothing: of the warp, as scipy's RBFInterpolator has it.
    """
    bases = np.concatenate([_without_motion(head), head.expressions]).astype(float)
    sigmas = np.concatenate(
        [
            np.full(len(head.identities), identity_sigma),
            np.full(len(head.expressions), expression_sigma),
        ]
    )
    mean = head.vertices.astype(float)
    design = (head.landmarks(bases).reshape(len(bases), -1) * sigmas[:, None]).T / point_sigma
    target = (mesh - head.landmarks(mean)).ravel() / point_sigma
    normal = design.T @ design + np.eye(len(bases))
    weights = sigmas * np.linalg.solve(normal, design.T @ target)
    vertices = mean + np.tensordot(weights, bases, 1)
    points = head.landmarks(vertices)
    warp = RBFInterpolator(points, mesh - points, kernel="thin_plate_spline", smoothing=smoothing)
    distance, _ = KDTree(points).query(vertices)
    near = distance < 3 * reach
    fade = np.exp(-((distance[near] / reach) ** 2))
    vertices[near] += fade[:, None] * warp(vertices[near])
    return vertices


def _without_motion(head: MorphableHead) -> np.ndarray:
    """The identities [I, V, 3] less the motion and growth of the skull that each contains.

    Artists' targets move the whole head (taller body, longer neck), but a mesh in the model's
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


def head_surface(head: MorphableHead, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Head and upper neck of fitted `vertices` [V, 3], without lashes: [V', 3], faces [F', 3]."""
    kept = (head.vertices[head.faces, 1] > NECK_CUT).all(axis=1)
    kept &= head.parts != PARTS.index("lashes")
    used, faces = np.unique(head.faces[kept], return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)
