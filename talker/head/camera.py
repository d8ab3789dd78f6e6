"""Camera conventions: published Euler angles and translations, OpenCV matrices, and pixels.

The published (AD-NeRF) tracker maps a head point p to R p + t in a camera that looks along -z with
y up; `euler` and `trans` follow it, so that published files and ours have the same meaning.
Everything else in talker uses OpenCV world-to-camera matrices ("viewmats": x right, y down, z
forward) of a head that is fixed in the world. The unit is dm. Pixel centers are at +0.5.
"""

import numpy as np
from jaxtyping import Float, Real

from talker.clip import chunks

JSON_SCALE = 0.1
"""The published transforms files hold translations in m, everything else is in dm."""

_FLIP = np.array([1.0, -1.0, -1.0])


def rotation_from_euler(euler: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Return the rotations [N, 3, 3] of published Euler angles [N, 3] (radians).

    R = Rx(theta) Ry(phi) Rz(-psi) with the usual right-handed factors. The published routine
    stacks columns, so its factors are the transposes of what its source suggests.
    """
    (sx, sy, sz), (cx, cy, cz) = np.sin(euler).T, np.cos(euler).T
    return np.stack(
        [
            *(cy * cz, cy * sz, sy),
            *(sx * sy * cz - cx * sz, sx * sy * sz + cx * cz, -sx * cy),
            *(-cx * sy * cz - sx * sz, sx * cz - cx * sy * sz, cx * cy),
        ],
        axis=-1,
    ).reshape(-1, 3, 3)


def euler_from_rotation(rotation: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    """Return the published Euler angles [N, 3] of rotations [N, 3, 3]; |phi| <= pi/2."""
    # The inputs of arctan2 are contiguous, because otherwise its last bit depends on the places of
    # the arrays in memory.
    m01, m00, m12, m22 = np.stack(
        [rotation[:, 0, 1], rotation[:, 0, 0], -rotation[:, 1, 2], rotation[:, 2, 2]]
    )
    theta = np.arctan2(m12, m22)
    phi = np.arcsin(np.clip(rotation[:, 0, 2], -1.0, 1.0))
    psi = np.arctan2(m01, m00)
    return np.stack([theta, phi, psi], axis=-1)


def _rigid(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    matrices = np.zeros((len(rotation), 4, 4))
    matrices[:, :3, :3] = rotation
    matrices[:, :3, 3] = translation
    matrices[:, 3, 3] = 1.0
    return matrices


def viewmats_from_pose(
    euler: Float[np.ndarray, "N 3"], trans: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "N 4 4"]:
    """Return OpenCV world-to-camera matrices [N, 4, 4]: diag(1, -1, -1) [R | t] (AD-NeRF)."""
    return _rigid(_FLIP[:, None] * rotation_from_euler(euler), _FLIP * trans)


def pose_from_viewmats(
    viewmats: Float[np.ndarray, "N 4 4"],
) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"]]:
    """Invert `viewmats_from_pose`: return euler [N, 3] and trans [N, 3]."""
    return (
        euler_from_rotation(_FLIP[:, None] * viewmats[:, :3, :3]),
        _FLIP * viewmats[:, :3, 3],
    )


def transform_matrices(
    euler: Float[np.ndarray, "N 3"], trans: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "N 4 4"]:
    """Return the matrices [N, 4, 4] of a transforms file: the inverse of [R | t / 10] (AD-NeRF)."""
    inverse = rotation_from_euler(euler).transpose(0, 2, 1)
    return _rigid(inverse, -np.einsum("nij,nj->ni", inverse, JSON_SCALE * np.asarray(trans)))


def intrinsics(focal: float, width: float, height: float) -> Float[np.ndarray, "3 3"]:
    """Return K [3, 3] in pixels with the principal point at the image center."""
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def project(
    points: Real[np.ndarray, "*#N P 3"],
    viewmats: Float[np.ndarray, "N 4 4"],
    K: Real[np.ndarray, "3 3"],
) -> Float[np.ndarray, "N P 2"]:
    """Project world points [P, 3] or [N, P, 3] with viewmats [N, 4, 4] to pixels [N, P, 2]."""
    frames = len(viewmats)
    points = np.broadcast_to(points, (frames, *points.shape[-2:]))
    projected = np.empty((*points.shape[:2], 2), np.result_type(points, viewmats, K))
    for part in chunks(frames):
        rotation, translation = viewmats[part, :3, :3], viewmats[part, :3, 3]
        camera = points[part] @ rotation.transpose(0, 2, 1) + translation[:, None]
        pixels = camera @ K.T
        projected[part] = pixels[..., :2] / pixels[..., 2:]
    return projected
