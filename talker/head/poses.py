"""Rigid head poses: initialization, Gauss-Newton refinement, interpolation, back-projection.

The world is the head: x to the viewer's right, y up, z out of the face, in dm. `viewmats` are
OpenCV world-to-camera matrices. Observed points and intrinsics K are in "detector units": pixels
divided by the expected noise of the landmark detector, so that a residual of 1 is typical at any
image size. All functions are vectorized over frames and use float64.
"""

import numpy as np
from jaxtyping import Float, Integer
from scipy.spatial.transform import Rotation, Slerp

from talker.clip import chunks

HUBER = 3.0
"""Threshold of the Huber loss in detector units; larger residuals count linearly."""


def procrustes(
    shapes: Float[np.ndarray, "N P 3"], template: Float[np.ndarray, "P 3"]
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N 3 3"], Float[np.ndarray, "N 3"]]:
    """Fit similarity transforms, shapes = scale * rotation @ template + translation (Umeyama 1991).

    Args:
        shapes: [N, P, 3].
        template: [P, 3].

    Returns:
        Scales [N], proper rotations [N, 3, 3] and translations [N, 3].
    """
    center, middle = template.mean(axis=0), shapes.mean(axis=1)
    centered = template - center
    left, spread, right = np.linalg.svd((shapes - middle[:, None]).transpose(0, 2, 1) @ centered)
    signs = np.ones_like(spread)
    signs[:, 2] = np.sign(np.linalg.det(left @ right))
    rotation = (left * signs[:, None]) @ right
    scale = (spread * signs).sum(axis=1) / (centered**2).sum()
    return scale, rotation, middle - scale[:, None] * (rotation @ center)


def initial_viewmats(
    shapes: Float[np.ndarray, "N P 3"],
    template: Float[np.ndarray, "P 3"],
    K: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "N 4 4"]:
    """Estimate poses [N, 4, 4] by weak perspective.

    Args:
        shapes: [N, P, 3] in detector units, with the depth that the detector itself predicts.
        template: [P, 3] dm.
        K: [3, 3].
    """
    scale, rotation, middle = procrustes(shapes, template)
    viewmats = np.tile(np.eye(4), (len(shapes), 1, 1))
    viewmats[:, :3, :3] = rotation
    viewmats[:, :2, 3] = (middle[:, :2] - K[:2, 2]) / scale[:, None]
    viewmats[:, 2, 3] = K[0, 0] / scale
    return viewmats


def refine_poses(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    points: Float[np.ndarray, "P 3"],
    weights: Float[np.ndarray, "*#N P"],
    K: Float[np.ndarray, "3 3"],
    steps: int = 10,
) -> Float[np.ndarray, "N 4 4"]:
    """Minimize the reprojection error over the six pose parameters of each frame (Gauss-Newton).

    The loss is Huber's. Iteration stops when no pose of a chunk moves by more than 1e-5 rad or dm.

    Args:
        viewmats: [N, 4, 4], initial poses.
        observed: [N, P, 2].
        points: [P, 3] dm.
        weights: [P] or [N, P].
        K: [3, 3].
        steps: maximum number of iterations.

    Returns:
        Refined poses [N, 4, 4].
    """
    refined = []
    for part in chunks(len(viewmats)):
        chunk, target = viewmats[part], observed[part]
        for _ in range(steps):
            hessian, gradient = pose_equations(chunk, target, points, weights, K)
            step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
            chunk = se3_retract(chunk, step)
            if np.abs(step).max() < 1e-5:
                break
        refined.append(chunk)
    return np.concatenate(refined)


def pose_equations(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    points: Float[np.ndarray, "P 3"],
    weights: Float[np.ndarray, "*#N P"],
    K: Float[np.ndarray, "3 3"],
) -> tuple[Float[np.ndarray, "N 6 6"], Float[np.ndarray, "N 6"]]:
    """Return the normal equations of each frame's pose: Hessian [N, 6, 6] and gradient [N, 6]."""
    pixels, by_pose, _ = project_with_jacobian(viewmats, points, K)
    error = pixels - observed
    weight = (weights * huber_weights(error))[..., None]
    rows = by_pose.reshape(len(by_pose), -1, 6)
    weighted = (weight[..., None] * by_pose).reshape(rows.shape).transpose(0, 2, 1)
    return weighted @ rows, (weighted @ error.reshape(len(error), -1, 1))[..., 0]


def project_with_jacobian(
    viewmats: Float[np.ndarray, "N 4 4"],
    points: Float[np.ndarray, "P 3"],
    K: Float[np.ndarray, "3 3"],
) -> tuple[Float[np.ndarray, "N P 2"], Float[np.ndarray, "N P 2 6"], Float[np.ndarray, "N P 2 3"]]:
    """Project world points and differentiate the projections.

    A pose moves as x = exp(w) R p + t + v with the unknowns (w, v).

    Args:
        viewmats: [N, 4, 4].
        points: [P, 3] dm.
        K: [3, 3].

    Returns:
        Projections [N, P, 2], and their Jacobians with respect to the pose [N, P, 2, 6] and to the
        point in camera coordinates [N, P, 2, 3].
    """
    turned = points @ viewmats[:, :3, :3].transpose(0, 2, 1)
    x, y, z = np.moveaxis(turned + viewmats[:, None, :3, 3], -1, 0)
    pixels = K[0, 0] * np.stack([x / z, y / z], axis=-1) + K[:2, 2]
    by_point = np.zeros((*z.shape, 2, 3))
    by_point[..., 0, 0] = by_point[..., 1, 1] = K[0, 0] / z
    by_point[..., 2] = (K[:2, 2] - pixels) / z[..., None]
    a, b, c = np.moveaxis(turned[..., None, :], -1, 0)
    i, j, k = np.moveaxis(by_point, -1, 0)
    by_turn = np.stack([b * k - c * j, c * i - a * k, a * j - b * i], axis=-1)
    return pixels, np.concatenate([by_turn, by_point], axis=-1), by_point


def reprojection_errors(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    points: Float[np.ndarray, "P 3"],
    K: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "N P 2"]:
    """Return the projections of points [P, 3] minus `observed` [N, P, 2]: [N, P, 2]."""
    error = np.empty(observed.shape)
    for part in chunks(len(viewmats)):
        error[part] = project_with_jacobian(viewmats[part], points, K)[0] - observed[part]
    return error


def rms_errors(
    error: Float[np.ndarray, "N P 2"], weights: Float[np.ndarray, "P"]
) -> Float[np.ndarray, "N"]:
    """Return the weighted root mean square [N] of errors [N, P, 2] with weights [P]."""
    return np.sqrt((error**2).sum(axis=-1) @ weights / weights.sum())


def huber_weights(error: Float[np.ndarray, "N P 2"]) -> Float[np.ndarray, "N P"]:
    """Return the weights [N, P] that turn least squares of errors [N, P, 2] into Huber's loss."""
    return HUBER / np.maximum(np.linalg.norm(error, axis=-1), HUBER)


def se3_retract(
    viewmats: Float[np.ndarray, "N 4 4"], step: Float[np.ndarray, "N 6"]
) -> Float[np.ndarray, "N 4 4"]:
    """Move viewmats [N, 4, 4] by steps [N, 6]: a rotation vector (rad) and a translation (dm)."""
    moved = viewmats.copy()
    moved[:, :3, :3] = Rotation.from_rotvec(step[:, :3]).as_matrix() @ viewmats[:, :3, :3]
    moved[:, :3, 3] += step[:, 3:]
    return moved


def unproject(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    points: Float[np.ndarray, "P 3"],
    K: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "N P 3"]:
    """Back-project observed points to the depths that fixed points have in each view.

    Args:
        viewmats: [N, 4, 4].
        observed: [N, P, 2], in the units of K.
        points: [P, 3] dm, whose depths are used.
        K: [3, 3].

    Returns:
        World points [N, P, 3] in dm.
    """
    rotation, translation = viewmats[:, :3, :3], viewmats[:, :3, 3]
    depth = (rotation[:, 2] @ points.T + translation[:, 2:])[..., None]
    world = np.empty((len(viewmats), *points.shape))
    for part in chunks(len(viewmats)):
        rays = (observed[part] - K[:2, 2]) / K[[0, 1], [0, 1]]
        camera = np.concatenate([rays * depth[part], depth[part]], axis=-1)
        world[part] = (camera - translation[part, None]) @ rotation[part]
    return world


def fill_poses(
    viewmats: Float[np.ndarray, "N 4 4"], frame_ids: Integer[np.ndarray, "N"], frames: int
) -> Float[np.ndarray, "{frames} 4 4"]:
    """Interpolate the poses of some frames to all frames.

    Rotations are interpolated by slerp, translations linearly; poses are constant before the first
    and after the last given frame.

    Args:
        viewmats: [N, 4, 4].
        frame_ids: int [N], sorted.
        frames: number of poses to return.

    Returns:
        Poses [frames, 4, 4].
    """
    filled = np.tile(np.eye(4), (frames, 1, 1))
    ids = np.clip(np.arange(frames), frame_ids[0], frame_ids[-1])
    for axis in range(3):
        filled[:, axis, 3] = np.interp(ids, frame_ids, viewmats[:, axis, 3])
    turns = Slerp(frame_ids, Rotation.from_matrix(viewmats[:, :3, :3]))
    filled[:, :3, :3] = turns(ids).as_matrix()
    return filled


def move_origin(
    viewmats: Float[np.ndarray, "N 4 4"], origin: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "N 4 4"]:
    """Express cameras [N, 4, 4] in a world whose origin is moved to the point `origin` [3]."""
    moved = viewmats.copy()
    moved[:, :3, 3] += viewmats[:, :3, :3] @ origin
    return moved
