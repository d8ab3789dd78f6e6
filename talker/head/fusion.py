"""Poses that agree with the landmarks over seconds and with optical flow from frame to frame.

Landmarks place the head without drift, but shake; flow sees its motion to hundredths of a pixel,
but drifts. One least-squares problem of all frames takes the best of both: it is banded, so
6,000 frames take seconds. Units as in `talker.head.fitting`.
"""

import numpy as np
from scipy.linalg import solveh_banded
from scipy.spatial.transform import Rotation

from talker.head.camera import project
from talker.head.fitting import CHUNK, huber, linearised, moved_by, pose_equations
from talker.head.flow import Flow

FLOW_NOISE = 0.15
"""Expected error of a followed point, pixels."""

ACCELERATION = np.repeat([np.radians(0.1), 0.003], 3)
"""Expected change of a head's motion from one frame to the next: rad, dm. Flow overrules it, but
hardly shows rotation and distance: there it calms the landmarks."""

FOLLOWED = 0.3
"""Two frames are linked if at least this part of the points was followed."""


def fuse(
    viewmats: np.ndarray,
    observed: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
    flow: Flow,
    followed: np.ndarray,
    linked: np.ndarray,
    unit: float,
    flow_points: float = 60.0,
    steps: int = 5,
) -> np.ndarray:
    """Poses [T, 4, 4] of all frames together (Gauss-Newton, banded Cholesky).

    Args:
        viewmats: [T, 4, 4], where to start.
        observed: [T, P, 2].
        points: [P, 3].
        weights: [T, P], 0 in frames that show nothing.
        K: [3, 3].
        flow: of the points `followed` [Q], from frame to frame, in pixels.
        linked: bool [T - 1], whether frame i + 1 goes on from frame i.
        unit: pixels in a detector unit.
        flow_points: all followed points of a frame count as this many, for neighbours err alike.
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
        for start in range(0, frames, CHUNK):
            part = slice(start, start + CHUNK)
            hessian, slope = pose_equations(
                viewmats[part], observed[part], points, weights[part], K
            )
            blocks[0, part] += hessian
            gradient[part] += slope
            _add_flow(
                blocks[:, start:],
                gradient[start:],
                viewmats[start : start + CHUNK + 1],
                points[followed],
                K,
                displacement[part],
                trust[part],
                sigma,
            )
        _add_acceleration(blocks, gradient, viewmats, even)
        step = -_solve(blocks, gradient)
        viewmats = moved_by(viewmats, step)
        if np.abs(step).max() < 1e-5:
            break
    return viewmats


def motion_errors(
    viewmats: np.ndarray, points: np.ndarray, K: np.ndarray, flow: Flow, step: int
) -> np.ndarray:
    """How far [T - step] the head's common motion is off the images', pixels; nan: not seen.

    Args:
        viewmats: [T, 4, 4].
        points: [Q, 3], those of the flow.
        K: [3, 3], pixels.
        flow: over `step` frames.
    """
    places = project(points, viewmats, K)
    off = places[step:] - places[:-step] - flow.moved
    count = flow.good.sum(axis=1)
    seen = flow.share >= FOLLOWED
    mean = (off * flow.good[..., None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    return np.where(seen, np.linalg.norm(mean, axis=1), np.nan)


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
    """Add the equations of n links between n + 1 frames."""
    pixels, by_pose, _ = linearised(viewmats, points, K)
    count = len(viewmats) - 1
    error = pixels[1:] - pixels[:-1] - displacement[:count]
    weight = (trust[:count] * huber(error / sigma))[..., None]
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
    """Add the equations of a motion that hardly changes, where three frames follow each other."""
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
    """Solve the symmetric system with blocks [d, t] in row t + d, column t, of 6 x 6 each."""
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
