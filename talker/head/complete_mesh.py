"""Complete 68 landmarks to the 478-point face mesh with the head model of the package.

A weak-perspective fit places the mean face in the image; the remaining errors of the 68 points are
interpolated to all others. The 68 points of the result are exactly those given.
"""

import numpy as np
from jaxtyping import Float, Real
from scipy.interpolate import RBFInterpolator

from talker.head.landmarks68 import MESH_INDICES
from talker.head.morphable import MorphableHead

JAW_OPEN = 0.5
"""Weight of the expression jawOpen in the face on which errors are interpolated; it separates the
lips, so that the upper lip does not take over the motion of the lower one."""


def complete_meshes(landmarks: Real[np.ndarray, "T 68 2"]) -> Float[np.ndarray, "T 478 3"]:
    """Return meshes [T, 478, 3] in pixels, z growing away from the camera.

    Args:
        landmarks: [T, 68, 2] in pixels.
    """
    head = MorphableHead.load()
    toward_image = np.array([1.0, -1.0, -1.0])
    template = head.landmarks(head.vertices.astype(float)) * toward_image
    jaw = head.expressions[head.expression_names.index("jawOpen")].astype(float)
    opened = head.landmarks(head.vertices + JAW_OPEN * jaw)[:, :2]
    interpolation = RBFInterpolator(opened[MESH_INDICES], np.eye(68), kernel="linear")(opened)

    some = template[MESH_INDICES]
    center = some.mean(axis=0)
    middle = landmarks.mean(axis=1)
    affine = (landmarks - middle[:, None]).transpose(0, 2, 1) @ np.linalg.pinv(some - center).T
    left, spread, right = np.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    rotation = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], axis=1)
    scale = spread.mean(axis=1)
    meshes = scale[:, None, None] * ((template - center) @ rotation.transpose(0, 2, 1))
    meshes[..., :2] += middle[:, None]
    errors = landmarks - meshes[:, MESH_INDICES, :2]
    meshes[..., :2] += interpolation @ errors
    return meshes
