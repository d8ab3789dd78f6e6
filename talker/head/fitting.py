"""Rigid head poses, one focal length, a mean mesh and expressions from 2D face meshes.

The landmark solver: Procrustes start, keyframe bundle adjustment of the upper
face, Gauss-Newton poses of all frames. float64 and vectorised: 6,000 frames take seconds.

The world is the head: x to the viewer's right, y up, z out of the face, dm. `viewmats` are OpenCV
world-to-camera matrices. Observed points and K are in "detector units": pixels divided by the
noise that is expected of the detector, so that a residual of 1 is ordinary at every image size.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from talker.head.camera import intrinsics

NOISE = 0.005
"""Expected error of a detected point, in face widths."""

EFFECTIVE_POINTS = 20.0
"""Errors of a detector are correlated within a frame: all its points count as this many."""

EFFECTIVE_FRAMES = 20.0
"""Nor do frames err independently: all keyframes count as this many, or their common errors would
overrule what is known of heads and of cameras."""

HUBER = 3.0
"""Residuals beyond this (detector units) count linearly."""

CHUNK = 64
"""Frames that are solved together: few enough for the processor's cache."""

FOCAL_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)

MEAN_FRAMES = 400
"""Frames, at most, of which the mean mesh is made."""

BELOW_NOSE = 2
EYE_CORNERS = ((33, 133), (362, 263))
IRISES = slice(468, 478)


@dataclass(frozen=True)
class Prior:
    """What is believed before any frame is seen: a head hardly shows the focal length."""

    points: np.ndarray
    """[P, 3] dm, the template"""
    points_sigma: float
    """dm"""
    distance: float
    """dm, from camera to head"""
    distance_sigma: float
    """of the log of the mean distance"""
    focal_range: tuple[float, float]
    """least and greatest focal length, detector units; equal ones fix it"""

    def distance_error(self, viewmats: np.ndarray) -> float:
        return (np.log(viewmats[:, 2, 3] / self.distance)).mean() / self.distance_sigma


@dataclass(frozen=True)
class Rigid:
    """The rigid part of N frames."""

    viewmats: np.ndarray
    """[N, 4, 4]"""
    K: np.ndarray
    """[3, 3], pixels"""
    mesh: np.ndarray
    """[478, 3] dm, mean positions of all points"""
    stable: np.ndarray
    """[S], indices of the points that the poses follow"""
    weights: np.ndarray
    """[S], how much each of them counts"""
    unit: float
    """pixels in a detector unit"""
    residual: np.ndarray
    """[N] pixels, weighted RMS distance of projected and observed stable points"""
    focal_curve: dict[float, float]
    """pixels, RMS distance in the keyframes with the focal length multiplied by the key: flat,
    where the frames say nothing about it"""


def fit_rigid(
    meshes: np.ndarray,
    template: np.ndarray,
    width: int,
    height: int,
    *,
    focal_range: tuple[float, float],
    distance: float = 8.0,
    distance_sigma: float = 0.1,
    points_sigma: float = 0.05,
    keyframes: int = 40,
) -> Rigid:
    """Poses of all frames and one focal length from the stable points of the meshes.

    Args:
        meshes: [N, 478, 3] pixels; z in the same scale, growing away from the camera.
        template: [478, 3] dm, the mean face: prior of shape and scale, and the frontal direction.
        width, height: of the image, pixels.
        focal_range: least and greatest focal length, pixels; equal ones fix it.
        distance, distance_sigma: median (dm) of the prior of the camera's mean distance, which
            sets the focal length, and standard deviation of its log.
        points_sigma: how far the points may lie from the template, dm.
        keyframes: frames in the bundle adjustment.
    """
    stable = stable_points(template)
    unit = NOISE * np.median(np.ptp(meshes[..., 0], axis=1))
    shapes = meshes[:, stable] / unit
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
    usable = np.flatnonzero(~outliers(_rms(errors(viewmats, observed, points, K), weights)))
    keys = usable[spread_frames(viewmats[usable], keyframes)]
    trust = min(1.0, EFFECTIVE_FRAMES / len(keys))
    for _ in range(2):
        _, points, adjusted = bundle_adjust(
            viewmats[keys], observed[keys], trust * weights, K, prior
        )
        viewmats[:, 2, 3] *= adjusted[0, 0] / K[0, 0]
        K = adjusted
        viewmats[keys] = refine_poses(viewmats[keys], observed[keys], points, weights, K)
        spread = np.linalg.norm(errors(viewmats[keys], observed[keys], points, K), axis=-1)
        variance = np.median(spread, axis=0) ** 2
        weights = 1.0 / (variance + max(np.median(variance), 0.01))
        weights *= EFFECTIVE_POINTS / weights.sum()
    viewmats = refine_poses(viewmats, observed, points, weights, K)
    residual = _rms(errors(viewmats, observed, points, K), weights)
    usable = np.flatnonzero(~outliers(residual))
    sample = usable[np.linspace(0, len(usable) - 1, min(len(usable), MEAN_FRAMES)).astype(int)]
    mesh = triangulate(
        viewmats[sample],
        meshes[sample, :, :2] / unit,
        np.full(len(template), EFFECTIVE_POINTS / len(template) * trust * len(keys) / len(sample)),
        K,
        dataclasses.replace(prior, points=template),
    )
    mesh[stable] = points
    curve = _focal_curve(viewmats[keys], observed[keys], trust * weights, K, prior)
    return Rigid(
        viewmats=viewmats,
        K=intrinsics(K[0, 0] * unit, width, height),
        mesh=mesh,
        stable=stable,
        weights=weights,
        unit=float(unit),
        residual=unit * residual,
        focal_curve={factor: unit * rms for factor, rms in curve.items()},
    )


def stable_points(template: np.ndarray) -> np.ndarray:
    """Indices of the points [478, 3] that move with the skull: above the lip, not on the eyes."""
    stable = template[:, 1] > template[BELOW_NOSE, 1]
    stable[IRISES] = False
    for corners in EYE_CORNERS:
        a, b = template[list(corners), :2]
        half_axes = np.linalg.norm(b - a) * np.array([0.49, 0.37])
        stable &= np.linalg.norm((template[:, :2] - (a + b) / 2) / half_axes, axis=1) > 1.0
    return np.flatnonzero(stable)


def procrustes(
    shapes: np.ndarray, template: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities with shapes = scale rotation template + translation (Umeyama 1991).

    Args:
        shapes: [N, P, 3].
        template: [P, 3].

    Returns:
        scale [N], rotation [N, 3, 3] (proper), translation [N, 3].
    """
    centre, middle = template.mean(axis=0), shapes.mean(axis=1)
    centred = template - centre
    left, spread, right = np.linalg.svd((shapes - middle[:, None]).transpose(0, 2, 1) @ centred)
    signs = np.ones_like(spread)
    signs[:, 2] = np.sign(np.linalg.det(left @ right))
    rotation = (left * signs[:, None]) @ right
    scale = (spread * signs).sum(axis=1) / (centred**2).sum()
    return scale, rotation, middle - scale[:, None] * (rotation @ centre)


def initial_viewmats(shapes: np.ndarray, template: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Poses [N, 4, 4] from shapes [N, P, 3] with the detector's own depth: weak perspective."""
    scale, rotation, middle = procrustes(shapes, template)
    viewmats = np.tile(np.eye(4), (len(shapes), 1, 1))
    viewmats[:, :3, :3] = rotation
    viewmats[:, :2, 3] = (middle[:, :2] - K[:2, 2]) / scale[:, None]
    viewmats[:, 2, 3] = K[0, 0] / scale
    return viewmats


def errors(
    viewmats: np.ndarray, observed: np.ndarray, points: np.ndarray, K: np.ndarray
) -> np.ndarray:
    """Projected `points` [P, 3] minus `observed` [N, P, 2]: [N, P, 2]."""
    return linearised(viewmats, points, K)[0] - observed


def refine_poses(
    viewmats: np.ndarray,
    observed: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
    steps: int = 10,
) -> np.ndarray:
    """Poses [N, 4, 4] at which `points` [P, 3] project onto `observed` [N, P, 2] best.

    Gauss-Newton on the 6 unknowns of each frame, Huber loss, `weights` [P]; stops when no pose
    moves by more than 1e-5 (rad, dm).
    """
    refined = []
    for start in range(0, len(viewmats), CHUNK):
        chunk, target = viewmats[start : start + CHUNK], observed[start : start + CHUNK]
        for _ in range(steps):
            hessian, gradient = pose_equations(chunk, target, points, weights, K)
            step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
            chunk = moved_by(chunk, step)
            if np.abs(step).max() < 1e-5:
                break
        refined.append(chunk)
    return np.concatenate(refined)


def spread_frames(viewmats: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of `count` frames far apart in rotation and distance (farthest points)."""
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


def bundle_adjust(
    viewmats: np.ndarray,
    observed: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
    prior: Prior,
    steps: int = 30,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses, points and focal length together (Levenberg-Marquardt), from the prior's points on.

    A change of the focal length takes all distances along, so it hardly disturbs the rest.

    Args:
        viewmats: [N, 4, 4], some 40 frames.
        observed: [N, P, 2].
        weights: [P].
        K: [3, 3].
        prior: of the points, the distance and the focal length.

    Returns:
        viewmats [N, 4, 4], points [P, 3], K [3, 3].
    """
    points, damping = prior.points, 1e-4
    cost = _adjustment_cost(viewmats, observed, points, weights, K, prior)
    for _ in range(steps):
        equations = _adjustment_equations(viewmats, observed, points, weights, K, prior)
        room = np.log(np.array(prior.focal_range) / K[0, 0])
        uphill = equations.gradient[-1]
        at_bound = room[0] >= 0.0 <= uphill or room[1] <= 0.0 >= uphill
        while True:
            step, point_step = equations.solve(damping, free_focal=not at_bound)
            growth = np.exp(np.clip(step[-1], *room))
            trial_K = K * np.array([[growth, 1, 1], [1, growth, 1], [1, 1, 1]])
            trial = viewmats.copy()
            trial[:, 2, 3] *= growth
            trial = moved_by(trial, step[:-1].reshape(-1, 6))
            trial_points = points + point_step
            reached = _adjustment_cost(trial, observed, trial_points, weights, trial_K, prior)
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


def _focal_curve(
    viewmats: np.ndarray,
    observed: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
    prior: Prior,
) -> dict[float, float]:
    curve = {}
    for factor in FOCAL_FACTORS:
        focal = K[0, 0] * factor
        tried, moved = K.copy(), viewmats.copy()
        tried[[0, 1], [0, 1]] = focal
        moved[:, 2, 3] *= factor
        fixed = dataclasses.replace(prior, focal_range=(focal, focal), distance_sigma=np.inf)
        moved, points, _ = bundle_adjust(moved, observed, weights, tried, fixed)
        curve[factor] = float(
            np.sqrt((_rms(errors(moved, observed, points, tried), weights) ** 2).mean())
        )
    return curve


def _adjustment_cost(
    viewmats: np.ndarray,
    observed: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
    prior: Prior,
) -> float:
    distance = np.linalg.norm(errors(viewmats, observed, points, K), axis=-1)
    loss = np.where(distance < HUBER, distance**2, HUBER * (2 * distance - HUBER))
    shape = (points - prior.points) / prior.points_sigma
    return float((loss @ weights).sum() + (shape**2).sum() + prior.distance_error(viewmats) ** 2)


@dataclass(frozen=True)
class _Equations:
    """Normal equations of C = 6 N + 1 cameras' unknowns (poses, log focal length) and P points."""

    cameras: np.ndarray
    """[C, C]"""
    cross: np.ndarray
    """[C, P, 3]"""
    points: np.ndarray
    """[P, 3, 3]"""
    gradient: np.ndarray
    """[C]"""
    point_gradient: np.ndarray
    """[P, 3]"""

    def solve(self, damping: float, free_focal: bool) -> tuple[np.ndarray, np.ndarray]:
        """The damped step of the cameras [C] and the points [P, 3] (Schur complement)."""
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


def _adjustment_equations(
    viewmats: np.ndarray,
    observed: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
    prior: Prior,
) -> _Equations:
    pixels, by_pose, by_camera_point = linearised(viewmats, points, K)
    error = pixels - observed
    by_point = by_camera_point @ viewmats[:, None, :3, :3]
    by_focal = pixels - K[:2, 2] + by_pose[..., 5] * viewmats[:, None, None, 2, 3]
    weight = weights * huber(error)

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
    return _Equations(
        cameras=cameras + np.outer(by_distance, by_distance),
        cross=cross,
        points=sums("npai,npaj->pij", by_point, by_point) + np.eye(3) / prior.points_sigma**2,
        gradient=gradient + by_distance * prior.distance_error(viewmats),
        point_gradient=sums("npai,npa->pi", by_point, error)
        + (points - prior.points) / prior.points_sigma**2,
    )


def triangulate(
    viewmats: np.ndarray,
    observed: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
    prior: Prior,
    steps: int = 5,
) -> np.ndarray:
    """Robust mean positions [P, 3] of points seen as `observed` [N, P, 2] at known poses.

    Arguments as in `bundle_adjust`; most of the depth comes from the prior.
    """
    points = prior.points
    for _ in range(steps):
        pixels, _, by_camera_point = linearised(viewmats, points, K)
        error = pixels - observed
        by_point = by_camera_point @ viewmats[:, None, :3, :3]
        weight = weights * huber(error)
        hessian = np.einsum("np,npai,npaj->pij", weight, by_point, by_point, optimize=True)
        gradient = np.einsum("np,npai,npa->pi", weight, by_point, error, optimize=True)
        hessian += np.eye(3) / prior.points_sigma**2
        gradient += (points - prior.points) / prior.points_sigma**2
        points = points - np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return points


def lift(
    viewmats: np.ndarray, observed: np.ndarray, points: np.ndarray, K: np.ndarray
) -> np.ndarray:
    """World points [N, P, 3] seen as `observed` [N, P, 2], at the depths of `points` [P, 3]."""
    rotation, translation = viewmats[:, :3, :3], viewmats[:, :3, 3]
    depth = rotation[:, 2] @ points.T + translation[:, 2:]
    rays = (observed - K[:2, 2]) / K[[0, 1], [0, 1]]
    camera = np.concatenate([rays * depth[..., None], depth[..., None]], axis=-1)
    return (camera - translation[:, None]) @ rotation


def low_rank(shapes: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of deviations from a mean mesh.

    Args:
        shapes: [N, P, 3] deviations.
        rank: components to keep; no more than there are frames.

    Returns:
        weights [N, rank] and an orthonormal basis [rank, P, 3]: shapes = weights . basis, nearly.
        The greatest entry of each component is positive.
    """
    flat = shapes.reshape(len(shapes), -1)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    directions = vectors.T[::-1][: min(rank, len(flat))]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    directions = directions * np.sign(largest)
    return flat @ directions.T, directions.reshape(-1, *shapes.shape[1:])


def outliers(residual: np.ndarray, floor: float = 0.0, factor: float = 6.0) -> np.ndarray:
    """Which residuals [N] lie above median + factor x 1.4826 MAD, thrice the median, and `floor`.

    A blink moves the skin around the eyes and doubles the residual of an even clip.
    """
    middle = np.median(residual)
    spread = np.median(np.abs(residual - middle))
    return residual > max(middle + factor * 1.4826 * spread, 3.0 * middle, floor)


def fill_poses(viewmats: np.ndarray, frame_ids: np.ndarray, frames: int) -> np.ndarray:
    """Poses [frames, 4, 4] from those of `frame_ids`: slerp between, constant beyond the ends."""
    filled = np.tile(np.eye(4), (frames, 1, 1))
    wanted = np.clip(np.arange(frames), frame_ids[0], frame_ids[-1])
    for axis in range(3):
        filled[:, axis, 3] = np.interp(wanted, frame_ids, viewmats[:, axis, 3])
    turns = Slerp(frame_ids, Rotation.from_matrix(viewmats[:, :3, :3]))
    filled[:, :3, :3] = turns(wanted).as_matrix()
    return filled


def linearised(
    viewmats: np.ndarray, points: np.ndarray, K: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projections [N, P, 2] of points [P, 3], their change by pose [N, P, 2, 6], by camera point.

    A pose moves as x = exp(w) R p + t + v, its unknowns are (w, v); by camera point: [N, P, 2, 3].
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


def pose_equations(
    viewmats: np.ndarray,
    observed: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    K: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of each frame's pose: [N, 6, 6] and [N, 6]."""
    pixels, by_pose, _ = linearised(viewmats, points, K)
    error = pixels - observed
    weight = (weights * huber(error))[..., None]
    rows = by_pose.reshape(len(by_pose), -1, 6)
    weighted = (weight[..., None] * by_pose).reshape(rows.shape).transpose(0, 2, 1)
    return weighted @ rows, (weighted @ error.reshape(len(error), -1, 1))[..., 0]


def _rms(error: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted root mean square [N] of errors [N, P, 2]."""
    return np.sqrt((error**2).sum(axis=-1) @ weights / weights.sum())


def huber(error: np.ndarray) -> np.ndarray:
    """Weights [N, P] of the Huber loss for errors [N, P, 2] (reweighted least squares)."""
    return HUBER / np.maximum(np.linalg.norm(error, axis=-1), HUBER)


def moved_by(viewmats: np.ndarray, step: np.ndarray) -> np.ndarray:
    """viewmats [N, 4, 4] after the step [N, 6] = (rotation vector, translation)."""
    moved = viewmats.copy()
    moved[:, :3, :3] = Rotation.from_rotvec(step[:, :3]).as_matrix() @ viewmats[:, :3, :3]
    moved[:, :3, 3] += step[:, 3:]
    return moved
