"""The rigid fit of a clip: head poses, one focal length and a mean mesh from 2D face meshes.

Procrustes alignment, bundle adjustment of keyframes on the rigid upper face, and Gauss-Newton
refinement of all frames. Units and conventions are those of `talker.head.poses`.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.spatial.transform import Rotation

from talker.head.bundle import Prior, bundle_adjust, focal_curve, triangulate
from talker.head.camera import intrinsics
from talker.head.poses import (
    initial_viewmats,
    procrustes,
    refine_poses,
    reprojection_errors,
    rms_errors,
)

NOISE = 0.005
"""Expected error of a detected landmark, as a fraction of the face width; one detector unit."""

EFFECTIVE_POINTS = 20.0
"""Effective number of independent landmarks in a frame. It is smaller than the number of landmarks,
because their errors correlate."""

EFFECTIVE_FRAMES = 20.0
"""Effective number of independent keyframes. It is smaller than the number of keyframes, because
their errors correlate. Without this limit, they would outweigh the priors on the shape and the
distance of the head."""

MEAN_FRAMES = 400
"""Maximum number of frames from which the mean mesh is triangulated."""

BELOW_NOSE = 2
"""Index of the mesh point below the nose; points above it move with the skull."""

EYE_CORNERS = ((33, 133), (362, 263))
"""Indices of the outer and inner corner of each eye in the mesh."""

IRISES = slice(468, 478)
"""Indices of the iris points in the mesh."""


@dataclass(frozen=True)
class RigidFit:
    """The rigid motion and the mean shape of N frames."""

    viewmats: np.ndarray
    """[N, 4, 4], OpenCV world-to-camera matrices, dm."""
    K: np.ndarray
    """[3, 3], intrinsics in pixels."""
    mesh: np.ndarray
    """[478, 3] dm, mean positions of all mesh points."""
    stable: np.ndarray
    """int [S], indices of the rigid points that determine the poses."""
    weights: np.ndarray
    """[S], weights of the rigid points."""
    unit: float
    """Size of a detector unit in pixels."""
    residual: np.ndarray
    """[N] pixels, weighted RMS reprojection error of the rigid points."""
    focal_curve: dict[float, float]
    """RMS reprojection error of the keyframes in pixels, with the focal length multiplied by the
    key; flat where the frames do not constrain the focal length."""


def fit_rigid(
    meshes: Float[np.ndarray, "N 478 3"],
    template: Float[np.ndarray, "478 3"],
    width: int,
    height: int,
    *,
    focal_range: tuple[float, float],
    distance: float = 8.0,
    distance_sigma: float = 0.1,
    points_sigma: float = 0.05,
    keyframes: int = 40,
) -> RigidFit:
    """Estimate the poses of all frames and one focal length from the rigid points of the meshes.

    Args:
        meshes: [N, 478, 3] pixels; z in the same scale, growing away from the camera.
        template: [478, 3] dm, the mean face, which defines scale, shape and frontal direction.
        width: width of the image in pixels.
        height: height of the image in pixels.
        focal_range: bounds of the focal length in pixels; equal bounds fix it.
        distance: median of the prior on the mean distance from camera to head, in dm.
        distance_sigma: standard deviation of the logarithm of that distance.
        points_sigma: standard deviation of the points around the template, in dm.
        keyframes: number of frames in the bundle adjustment.
    """
    stable = stable_points(template)
    unit = NOISE * np.median(np.ptp(meshes[..., 0].astype(float), axis=1))
    shapes = meshes[:, stable].astype(float) / unit
    observed = shapes[..., :2]
    low, high = (bound / unit for bound in focal_range)
    prior = Prior(template[stable], points_sigma, distance, distance_sigma, (low, high))
    scale, _, _ = procrustes(shapes, prior.points)
    K = intrinsics(
        float(np.clip(distance * np.median(scale), low, high)), width / unit, height / unit
    )
    weights = np.full(len(stable), EFFECTIVE_POINTS / len(stable))
    points = prior.points
    viewmats = refine_poses(
        initial_viewmats(shapes, points, K), observed, points, weights, K, steps=3
    )
    residual = rms_errors(reprojection_errors(viewmats, observed, points, K), weights)
    inliers = np.flatnonzero(~outliers(residual))
    keys = inliers[select_keyframes(viewmats[inliers], keyframes)]
    trust = min(1.0, EFFECTIVE_FRAMES / len(keys))
    for _ in range(2):
        _, points, adjusted = bundle_adjust(
            viewmats[keys], observed[keys], trust * weights, K, prior
        )
        viewmats[:, 2, 3] *= adjusted[0, 0] / K[0, 0]
        K = adjusted
        viewmats[keys] = refine_poses(viewmats[keys], observed[keys], points, weights, K)
        weights = _point_weights(reprojection_errors(viewmats[keys], observed[keys], points, K))
    viewmats = refine_poses(viewmats, observed, points, weights, K)
    residual = rms_errors(reprojection_errors(viewmats, observed, points, K), weights)
    inliers = np.flatnonzero(~outliers(residual))
    sample = inliers[np.linspace(0, len(inliers) - 1, min(len(inliers), MEAN_FRAMES)).astype(int)]
    mesh = triangulate(
        viewmats[sample],
        meshes[sample, :, :2].astype(float) / unit,
        np.full(len(template), EFFECTIVE_POINTS / len(template) * trust * len(keys) / len(sample)),
        K,
        dataclasses.replace(prior, points=template),
    )
    mesh[stable] = points
    curve = focal_curve(viewmats[keys], observed[keys], trust * weights, K, prior)
    return RigidFit(
        viewmats=viewmats,
        K=intrinsics(K[0, 0] * unit, width, height),
        mesh=mesh,
        stable=stable,
        weights=weights,
        unit=float(unit),
        residual=unit * residual,
        focal_curve={factor: unit * rms for factor, rms in curve.items()},
    )


def stable_points(template: Float[np.ndarray, "478 3"]) -> Integer[np.ndarray, "S"]:
    """Return the indices of mesh points [478, 3] that move with the skull.

    These are the points above the upper lip, without eyelids and irises.
    """
    stable = template[:, 1] > template[BELOW_NOSE, 1]
    stable[IRISES] = False
    for corners in EYE_CORNERS:
        a, b = template[list(corners), :2]
        half_axes = np.linalg.norm(b - a) * np.array([0.49, 0.37])
        stable &= np.linalg.norm((template[:, :2] - (a + b) / 2) / half_axes, axis=1) > 1.0
    return np.flatnonzero(stable)


def select_keyframes(viewmats: Float[np.ndarray, "N 4 4"], count: int) -> Integer[np.ndarray, "M"]:
    """Return sorted indices of `count` frames far apart in rotation and log distance.

    Farthest-point sampling that starts from the median pose.
    """
    rotation = Rotation.from_matrix(viewmats[:, :3, :3])
    turn = (rotation * rotation.mean().inv()).as_rotvec()
    pose = np.column_stack([turn, np.log(viewmats[:, 2, 3])])
    pose -= np.median(pose, axis=0)
    chosen = [int(np.argmin(np.linalg.norm(pose, axis=1)))]
    gap = np.full(len(pose), np.inf)
    while len(chosen) < min(count, len(pose)):
        gap = np.minimum(gap, np.linalg.norm(pose - pose[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(gap)))
    return np.sort(chosen)


def outliers(
    residual: Float[np.ndarray, "N"], floor: float = 0.0, factor: float = 6.0
) -> Bool[np.ndarray, "N"]:
    """Return which residuals [N] are outliers, bool [N].

    An outlier exceeds median + `factor` * 1.4826 * MAD, three times the median, and `floor`. The
    second bound is needed because a blink moves the skin around the eyes and doubles the residual.
    """
    middle = np.median(residual)
    spread = np.median(np.abs(residual - middle))
    return residual > max(middle + factor * 1.4826 * spread, 3.0 * middle, floor)


def _point_weights(error: np.ndarray) -> np.ndarray:
    """Return weights [P] inverse to the variance of each point's errors [N, P, 2]."""
    variance = np.median(np.linalg.norm(error, axis=-1), axis=0) ** 2
    weights = 1.0 / (variance + max(np.median(variance), 0.01))
    return weights * (EFFECTIVE_POINTS / weights.sum())
