"""Fuse landmark poses with optical flow in one least-squares problem over all frames.

Landmarks locate the head without drift but with jitter; optical flow measures its motion to
hundredths of a pixel but drifts. The normal equations of the joint problem are banded, so 6,000
frames take seconds. Units are those of `talker.head.poses`.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.linalg import solveh_banded
from scipy.spatial.transform import Rotation

from talker.clip import chunks
from talker.head.camera import project
from talker.head.flow import Flow
from talker.head.poses import (
    huber_weights,
    pose_equations,
    project_with_jacobian,
    se3_retract,
)

FLOW_NOISE = 0.15
"""Expected error of a followed point, in pixels."""

ACCELERATION = np.repeat([np.radians(0.1), 0.003], 3)
"""Standard deviation of the change of head motion between frames: three rotations in rad and three
translations in dm. It smooths rotation and distance, which optical flow constrains weakly."""

FOLLOWED = 0.3
"""Minimum fraction of followed points for which the flow between two frames is used."""


def fuse(
    viewmats: Float[np.ndarray, "T 4 4"],
    observed: Float[np.ndarray, "T P 2"],
    points: Float[np.ndarray, "P 3"],
    weights: Float[np.ndarray, "T P"],
    K: Float[np.ndarray, "3 3"],
    flow: Flow,
    followed: Integer[np.ndarray, "Q"],
    linked: Bool[np.ndarray, "{len(viewmats)-1}"],
    unit: float,
    flow_points: float = 60.0,
    steps: int = 5,
) -> Float[np.ndarray, "T 4 4"]:
    """Estimate the poses [T, 4, 4] of all frames jointly (Gauss-Newton, banded Cholesky).

    Args:
        viewmats: [T, 4, 4], initial poses.
        observed: [T, P, 2], landmarks in detector units.
        points: [P, 3] dm.
        weights: [T, P], 0 in frames without a usable face.
        K: [3, 3].
        flow: displacements from frame to frame, in pixels.
        followed: int [Q], indices into `points` of the points in `flow`.
        linked: bool [T - 1], whether frame i + 1 continues the shot of frame i.
        unit: pixels in a detector unit.
        flow_points: effective number of independent points among the followed points of a frame.
        steps: maximum number of iterations.
    """
    frames = len(viewmats)
    displacement = flow.moved / unit
    sigma = FLOW_NOISE / unit
    trust = flow_points / flow.good.shape[1] / sigma**2 * flow.good
    trust *= (linked & (flow.share >= FOLLOWED))[:, None]
    even = linked[1:] & linked[:-1]
    for _ in range(steps):
        blocks = np.zeros((3, frames, 6, 6))
        gradient = np.zeros((frames, 6))
        for part in chunks(frames):
            hessian, slope = pose_equations(
                viewmats[part], observed[part], points, weights[part], K
            )
            blocks[0, part] += hessian
            gradient[part] += slope
            _add_flow(
                blocks[:, part.start :],
                gradient[part.start :],
                viewmats[part.start : part.stop + 1],
                points[followed],
                K,
                displacement[part],
                trust[part],
                sigma,
            )
        _add_acceleration(blocks, gradient, viewmats, even)
        step = -_solve(blocks, gradient)
        viewmats = se3_retract(viewmats, step)
        if np.abs(step).max() < 1e-5:
            break
    return viewmats


def motion_errors(
    viewmats: Float[np.ndarray, "T 4 4"],
    points: Float[np.ndarray, "Q 3"],
    K: Float[np.ndarray, "3 3"],
    flow: Flow,
    step: int,
) -> Float[np.ndarray, "{max(len(viewmats)-step,0)}"]:
    """Return the difference between the mean motion of the poses and that of the flow.

    Args:
        viewmats: [T, 4, 4].
        points: [Q, 3] dm, the points of the flow.
        K: [3, 3], pixels.
        flow: displacements over `step` frames.
        step: frame distance.

    Returns:
        Pixels [T - step]; nan where too few points were followed.
    """
    places = project(points, viewmats, K)
    off = places[step:] - places[:-step] - flow.moved
    count = flow.good.sum(axis=1)
    reliable = flow.share >= FOLLOWED
    mean = (off * flow.good[..., None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    return np.where(reliable, np.linalg.norm(mean, axis=1), np.nan)


def common_motion(
    viewmats: Float[np.ndarray, "T 4 4"],
    points: Float[np.ndarray, "Q 3"],
    K: Float[np.ndarray, "3 3"],
    flow: Flow,
    step: int,
    usable: Bool[np.ndarray, "T"],
    shot: Integer[np.ndarray, "T"],
) -> float:
    """Return the RMS of `motion_errors` between usable frames of the same shot, in pixels.

    Args:
        viewmats: [T, 4, 4].
        points: [Q, 3] dm, the points of the flow.
        K: [3, 3], pixels.
        flow: displacements over `step` frames.
        step: frame distance.
        usable: bool [T].
        shot: int [T], index of each frame's shot.

    Returns:
        Pixels; nan if there is no such pair of frames.
    """
    error = motion_errors(viewmats, points, K, flow, step)
    measured = usable[step:] & usable[:-step] & (shot[step:] == shot[:-step]) & np.isfinite(error)
    return float(np.sqrt((error[measured] ** 2).mean())) if measured.any() else float("nan")


def _add_flow(
    blocks: np.ndarray,
    gradient: np.ndarray,
    viewmats: np.ndarray,
    points: np.ndarray,
    K: np.ndarray,
    displacement: np.ndarray,
    trust: np.ndarray,
    sigma: float,
) -> None:
    """Add the normal equations of the flow between n + 1 consecutive frames."""
    pixels, by_pose, _ = project_with_jacobian(viewmats, points, K)
    count = len(viewmats) - 1
    error = pixels[1:] - pixels[:-1] - displacement[:count]
    weight = (trust[:count] * huber_weights(error / sigma))[..., None]
    values = 2 * len(points)
    rows = by_pose.reshape(count + 1, values, 6)
    before = (weight[..., None] * by_pose[:-1]).reshape(count, values, 6).transpose(0, 2, 1)
    after = (weight[..., None] * by_pose[1:]).reshape(count, values, 6).transpose(0, 2, 1)
    column = error.reshape(count, values, 1)
    blocks[0, :count] += before @ rows[:-1]
    blocks[0, 1 : count + 1] += after @ rows[1:]
    blocks[1, :count] -= after @ rows[:-1]
    gradient[:count] -= (before @ column)[..., 0]
    gradient[1 : count + 1] += (after @ column)[..., 0]


def _add_acceleration(
    blocks: np.ndarray, gradient: np.ndarray, viewmats: np.ndarray, even: np.ndarray
) -> None:
    """Add normal equations that penalize changes of the motion over three linked frames."""
    rotation = viewmats[:, :3, :3]
    turn = Rotation.from_matrix(rotation[1:] @ rotation[:-1].transpose(0, 2, 1)).as_rotvec()
    motion = np.concatenate([turn, np.diff(viewmats[:, :3, 3], axis=0)], axis=1)
    scale = even[:, None] / ACCELERATION**2
    error = np.diff(motion, axis=0) * scale
    factors = 1.0, -2.0, 1.0
    count = len(even)
    for i, first in enumerate(factors):
        gradient[i : i + count] += first * error
        for j in range(i, 3):
            blocks[j - i, i : i + count] += first * factors[j] * scale[:, :, None] * np.eye(6)


def _solve(blocks: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Solve the symmetric banded system whose 6 x 6 block [d, t] is at row t + d, column t."""
    frames = len(gradient)
    empty = ~blocks[0].any(axis=(1, 2))
    blocks[0, empty] = np.eye(6)
    bands = np.zeros((18, frames, 6))
    for d in range(3):
        for row in range(6):
            for column in range(6):
                offset = 6 * d + row - column
                if offset >= 0:
                    bands[offset, :, column] = blocks[d, :, row, column]
    return solveh_banded(bands.reshape(18, -1), gradient.ravel(), lower=True).reshape(frames, 6)
