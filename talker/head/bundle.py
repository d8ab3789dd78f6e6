"""Bundle adjustment of keyframes: poses, points and one focal length, with priors on all of them.

Units and conventions are those of `talker.head.poses`. A talking head hardly constrains the focal
length, so a prior on the distance from camera to head determines it.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from talker.head.poses import (
    HUBER,
    huber_weights,
    project_with_jacobian,
    reprojection_errors,
    rms_errors,
    se3_retract,
)

FOCAL_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Factors on the estimated focal length at which `focal_curve` measures the residual."""


@dataclass(frozen=True)
class Prior:
    """Prior knowledge about the points, the distance and the focal length."""

    points: np.ndarray
    """[P, 3] dm, the template."""
    points_sigma: float
    """Standard deviation of the points around the template, in dm."""
    distance: float
    """Median distance from camera to head, in dm."""
    distance_sigma: float
    """Standard deviation of the logarithm of the mean distance."""
    focal_range: tuple[float, float]
    """Bounds of the focal length in detector units; equal bounds fix it."""

    def distance_error(self, viewmats: Float[np.ndarray, "N 4 4"]) -> float:
        """Return the deviation of the mean log distance from the prior, in standard deviations."""
        return (np.log(viewmats[:, 2, 3] / self.distance)).mean() / self.distance_sigma


def bundle_adjust(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    weights: Float[np.ndarray, "P"],
    K: Float[np.ndarray, "3 3"],
    prior: Prior,
    steps: int = 30,
) -> tuple[Float[np.ndarray, "N 4 4"], Float[np.ndarray, "P 3"], Float[np.ndarray, "3 3"]]:
    """Minimize the reprojection error over poses, points and focal length (Levenberg-Marquardt).

    The points start from the prior. A change of the focal length scales all distances with it,
    which leaves the projections almost unchanged.

    Args:
        viewmats: [N, 4, 4], initial poses of about 40 frames.
        observed: [N, P, 2].
        weights: [P].
        K: [3, 3].
        prior: on the points, the distance and the focal length.
        steps: maximum number of accepted steps.

    Returns:
        viewmats [N, 4, 4], points [P, 3] and K [3, 3].
    """
    points, damping = prior.points, 1e-4
    cost = adjustment_cost(viewmats, observed, points, weights, K, prior)
    for _ in range(steps):
        equations = adjustment_equations(viewmats, observed, points, weights, K, prior)
        room = np.log(np.array(prior.focal_range) / K[0, 0])
        uphill = equations.gradient[-1]
        at_bound = room[0] >= 0.0 <= uphill or room[1] <= 0.0 >= uphill
        while True:
            step, point_step = equations.solve(damping, free_focal=not at_bound)
            growth = np.exp(np.clip(step[-1], *room))
            trial_K = K * np.array([[growth, 1, 1], [1, growth, 1], [1, 1, 1]])
            trial = viewmats.copy()
            trial[:, 2, 3] *= growth
            trial = se3_retract(trial, step[:-1].reshape(-1, 6))
            trial_points = points + point_step
            reached = adjustment_cost(trial, observed, trial_points, weights, trial_K, prior)
            if reached <= cost or damping > 1e6:
                break
            damping *= 10.0
        if reached > cost:
            break
        gain = 1.0 - reached / cost
        viewmats, points, K, cost = trial, trial_points, trial_K, reached
        damping /= 10.0
        if gain < 1e-6:
            break
    return viewmats, points, K


def focal_curve(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    weights: Float[np.ndarray, "P"],
    K: Float[np.ndarray, "3 3"],
    prior: Prior,
) -> dict[float, float]:
    """Return {factor: RMS residual in detector units} with the focal length fixed at factor * K.

    The curve is flat where the frames do not constrain the focal length. Arguments as in
    `bundle_adjust`.
    """
    curve = {}
    for factor in FOCAL_FACTORS:
        focal = K[0, 0] * factor
        scaled_K, moved = K.copy(), viewmats.copy()
        scaled_K[[0, 1], [0, 1]] = focal
        moved[:, 2, 3] *= factor
        fixed = dataclasses.replace(prior, focal_range=(focal, focal), distance_sigma=np.inf)
        moved, points, _ = bundle_adjust(moved, observed, weights, scaled_K, fixed)
        errors = reprojection_errors(moved, observed, points, scaled_K)
        curve[factor] = float(np.sqrt((rms_errors(errors, weights) ** 2).mean()))
    return curve


def triangulate(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    weights: Float[np.ndarray, "P"],
    K: Float[np.ndarray, "3 3"],
    prior: Prior,
    steps: int = 5,
) -> Float[np.ndarray, "P 3"]:
    """Estimate robust mean positions [P, 3] of points observed at known poses.

    Most of the depth comes from the prior. Arguments as in `bundle_adjust`.
    """
    points = prior.points
    for _ in range(steps):
        pixels, _, by_camera_point = project_with_jacobian(viewmats, points, K)
        error = pixels - observed
        by_point = by_camera_point @ viewmats[:, None, :3, :3]
        weight = weights * huber_weights(error)
        hessian = np.einsum("np,npai,npaj->pij", weight, by_point, by_point, optimize=True)
        gradient = np.einsum("np,npai,npa->pi", weight, by_point, error, optimize=True)
        hessian += np.eye(3) / prior.points_sigma**2
        gradient += (points - prior.points) / prior.points_sigma**2
        points = points - np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return points


def adjustment_cost(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    points: Float[np.ndarray, "P 3"],
    weights: Float[np.ndarray, "P"],
    K: Float[np.ndarray, "3 3"],
    prior: Prior,
) -> float:
    """Return the cost that `bundle_adjust` minimizes: Huber loss plus squared prior deviations."""
    distance = np.linalg.norm(reprojection_errors(viewmats, observed, points, K), axis=-1)
    loss = np.where(distance < HUBER, distance**2, HUBER * (2 * distance - HUBER))
    shape = (points - prior.points) / prior.points_sigma
    return float((loss @ weights).sum() + (shape**2).sum() + prior.distance_error(viewmats) ** 2)


@dataclass(frozen=True)
class Equations:
    """Normal equations of C = 6 N + 1 camera unknowns (poses, log focal length) and P points."""

    cameras: np.ndarray
    """[C, C], Hessian of the camera unknowns."""
    cross: np.ndarray
    """[C, P, 3], mixed second derivatives of cameras and points."""
    points: np.ndarray
    """[P, 3, 3], Hessian of each point."""
    gradient: np.ndarray
    """[C], gradient of the camera unknowns."""
    point_gradient: np.ndarray
    """[P, 3], gradient of the points."""

    def solve(self, damping: float, free_focal: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the damped step of the cameras [C] and of the points [P, 3] (Schur complement)."""
        free = slice(None if free_focal else -1)
        cross = self.cross[free].reshape(-1, 3 * len(self.points))
        inverse = np.linalg.inv(self.points * (1.0 + damping * np.eye(3)))
        eliminated = (cross.reshape(-1, len(self.points), 1, 3) @ inverse).reshape(cross.shape)
        cameras = self.cameras[free, free]
        cameras = cameras + damping * np.diag(np.diag(cameras)) - eliminated @ cross.T
        step = np.zeros_like(self.gradient)
        step[free] = np.linalg.solve(
            cameras, eliminated @ self.point_gradient.ravel() - self.gradient[free]
        )
        remainder = self.point_gradient + (step[free] @ cross).reshape(-1, 3)
        return step, -(inverse @ remainder[..., None])[..., 0]


def adjustment_equations(
    viewmats: Float[np.ndarray, "N 4 4"],
    observed: Float[np.ndarray, "N P 2"],
    points: Float[np.ndarray, "P 3"],
    weights: Float[np.ndarray, "P"],
    K: Float[np.ndarray, "3 3"],
    prior: Prior,
) -> Equations:
    """Return the Gauss-Newton normal equations of `adjustment_cost`."""
    pixels, by_pose, by_camera_point = project_with_jacobian(viewmats, points, K)
    error = pixels - observed
    by_point = by_camera_point @ viewmats[:, None, :3, :3]
    by_focal = pixels - K[:2, 2] + by_pose[..., 5] * viewmats[:, None, None, 2, 3]
    weight = weights * huber_weights(error)

    frames, count = error.shape[:2]
    poses = np.arange(6 * frames).reshape(frames, 6)
    cameras, gradient = np.zeros((6 * frames + 1, 6 * frames + 1)), np.zeros(6 * frames + 1)
    cross = np.zeros((6 * frames + 1, count, 3))

    def sums(formula: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.einsum(f"np,{formula}", weight, first, second, optimize=True)

    cameras[poses[:, :, None], poses[:, None]] = sums("npai,npaj->nij", by_pose, by_pose)
    cameras[poses, -1] = cameras[-1, poses] = sums("npai,npa->ni", by_pose, by_focal)
    cameras[-1, -1] = sums("npa,npa->", by_focal, by_focal)
    cross[poses] = sums("npai,npaj->nipj", by_pose, by_point)
    cross[-1] = sums("npa,npaj->pj", by_focal, by_point)
    gradient[poses] = sums("npai,npa->ni", by_pose, error)
    gradient[-1] = sums("npa,npa->", by_focal, error)

    by_distance = np.zeros_like(gradient)
    by_distance[poses[:, 5]] = 1.0 / (frames * viewmats[:, 2, 3] * prior.distance_sigma)
    by_distance[-1] = 1.0 / prior.distance_sigma
    return Equations(
        cameras=cameras + np.outer(by_distance, by_distance),
        cross=cross,
        points=sums("npai,npaj->pij", by_point, by_point) + np.eye(3) / prior.points_sigma**2,
        gradient=gradient + by_distance * prior.distance_error(viewmats),
        point_gradient=sums("npai,npa->pi", by_point, error)
        + (points - prior.points) / prior.points_sigma**2,
    )
