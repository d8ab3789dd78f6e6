"""The pose solver recovers known poses from exact and noisy data and with outliers."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from talker.core.pca import pca
from talker.head import bundle, fitting, poses
from talker.head.camera import intrinsics, project, viewmats_from_pose
from talker.head.morphable import MorphableHead
from talker.head.poses import reprojection_errors, unproject
from talker.head.shots import covered_frames

SIZE = 512


@pytest.fixture(scope="module")
def template() -> np.ndarray:
    head = MorphableHead.load()
    return head.landmarks(head.vertices.astype(float))


@dataclasses.dataclass(frozen=True)
class Scene:
    """Return the motion of a talking head, and the meshes that a detector would predict."""

    viewmats: np.ndarray
    focal: float
    shape: np.ndarray
    meshes: np.ndarray


def make_scene(shape: np.ndarray, seed: int, frames: int = 200, noise: float = 0.0) -> Scene:
    """`noise` in pixels: white, as large again in common to all points of a frame."""
    rng = np.random.default_rng(seed)
    course = gaussian_filter1d(rng.normal(size=(frames, 6)), 8, axis=0, mode="wrap")
    course /= course.std(axis=0)
    distance = 8.0 * np.exp(rng.normal(0, 0.1))
    euler = course[:, :3] * np.radians([4, 8, 3])
    trans = course[:, 3:] * [0.15, 0.1, 0.1] - [0, 0, distance]
    viewmats = viewmats_from_pose(euler, trans)
    focal = distance * 215 / np.ptp(shape[:, 0])
    pixels = project(shape, viewmats, intrinsics(focal, SIZE, SIZE))
    depth = (shape @ viewmats[:, :3, :3].transpose(0, 2, 1))[..., 2] * focal / distance
    pixels += noise * rng.normal(size=pixels.shape) + noise * rng.normal(size=(frames, 1, 2))
    return Scene(viewmats, focal, shape, np.dstack([pixels, depth]))


def solve(
    scene: Scene, template: np.ndarray, focal_range: tuple[float, float] = (0.8 * SIZE, 6.0 * SIZE)
) -> fitting.RigidFit:
    return fitting.fit_rigid(scene.meshes, template, SIZE, SIZE, focal_range=focal_range)


def rotation_error(found: np.ndarray, true: np.ndarray) -> float:
    """RMS angle in degrees."""
    turn = found[:, :3, :3] @ true[:, :3, :3].transpose(0, 2, 1)
    angle = np.linalg.norm(Rotation.from_matrix(turn).as_rotvec(), axis=1)
    return float(np.degrees(np.sqrt((angle**2).mean())))


def face_places(viewmats: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """The middle of the stable points in the camera's coordinates [N, 3]."""
    middle = mesh[fitting.stable_points(mesh)].mean(axis=0)
    return viewmats[:, :3, :3] @ middle + viewmats[:, :3, 3]


def person(template: np.ndarray, seed: int) -> np.ndarray:
    """Return the template with random identities, aligned at the skull."""
    head = MorphableHead.load()
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.08, len(head.identities))
    shape = template + np.tensordot(weights, head.landmarks(head.identities), 1)
    stable = fitting.stable_points(template)
    scale, rotation, shift = poses.procrustes(shape[None, stable], template[stable])
    return (shape - shift[0]) @ rotation[0] / scale[0]


def test_stable_points_are_the_upper_face(template: np.ndarray):
    stable = set(fitting.stable_points(template).tolist())
    bridge, forehead, temple, eye_corner = 168, 10, 127, 33
    upper_lip, chin, lid, iris, inner_lip = 0, 152, 159, 468, 13
    assert {bridge, forehead, temple, eye_corner} <= stable
    assert not {upper_lip, chin, lid, iris, inner_lip} & stable
    assert 200 <= len(stable) <= 320


def test_procrustes_finds_the_similarity(template: np.ndarray):
    rotation = Rotation.from_rotvec([[0.3, -0.5, 0.2], [0.0, 2.0, 0.1]]).as_matrix()
    scale, shift = np.array([140.0, 0.3]), np.array([[5.0, 2, 1], [-3, 0, 7]])
    shapes = scale[:, None, None] * (template @ rotation.transpose(0, 2, 1)) + shift[:, None]
    found = poses.procrustes(shapes, template)
    for value, expected in zip(found, (scale, rotation, shift), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-9)


def test_poses_are_exact_for_exact_points(template: np.ndarray):
    scene = make_scene(template, 0)
    K = intrinsics(scene.focal, SIZE, SIZE)
    start = poses.initial_viewmats(scene.meshes, template, K)
    assert rotation_error(start, scene.viewmats) > 0.2
    weights = np.ones(len(template))
    found = poses.refine_poses(start, scene.meshes[..., :2], template, weights, K)
    np.testing.assert_allclose(found, scene.viewmats, atol=1e-7)


def test_equations_are_the_derivatives_of_the_cost(template: np.ndarray):
    """Check one unknown of each kind: a pose, a point, the focal length."""
    scene = make_scene(template, 1, noise=0.5)
    K = intrinsics(scene.focal, SIZE, SIZE)
    points = template[::40] + 0.01
    prior = bundle.Prior(template[::40], 0.05, 8.0, 0.1, (100.0, 9000.0))
    state = scene.viewmats[:4], points, K
    observed = scene.meshes[:4, ::40, :2]
    weights = np.linspace(0.5, 1, len(points))

    def cost(viewmats: np.ndarray, points: np.ndarray, K: np.ndarray) -> float:
        return bundle.adjustment_cost(viewmats, observed, points, weights, K, prior)

    equations = bundle.adjustment_equations(state[0], observed, points, weights, K, prior)
    step = 1e-6
    for unknown in range(6):
        ends = []
        for sign in (1, -1):
            move = np.zeros((4, 6))
            move[2, unknown] = sign * step
            ends.append(cost(poses.se3_retract(state[0], move), points, K))
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(2 * equations.gradient[12 + unknown], slope, rtol=1e-4)
    ends = [cost(state[0], points + sign * step * np.eye(len(points), 3), K) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(2 * np.trace(equations.point_gradient[:3]), slope, rtol=1e-4)
    ends = []
    for sign in (1, -1):
        growth = np.exp(sign * step)
        farther = state[0].copy()
        farther[:, 2, 3] *= growth
        ends.append(cost(farther, points, K * [[growth, 1, 1], [1, growth, 1], [1, 1, 1]]))
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(2 * equations.gradient[-1], slope, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_noisy_people_are_tracked(template: np.ndarray, seed: int):
    scene = make_scene(person(template, seed), seed, noise=0.5)
    found = solve(scene, template)
    assert rotation_error(found.viewmats, scene.viewmats) <= 1.5
    focal = found.K[0, 0]
    assert abs(focal / scene.focal - 1) <= 0.3
    place = face_places(found.viewmats, found.mesh)
    true = face_places(scene.viewmats, scene.shape)
    seen, expected = place / place[:, 2:] * focal, true / true[:, 2:] * scene.focal
    lateral = 100 * (seen - expected)[:, :2] * true[:, 2:] / scene.focal
    assert np.sqrt((lateral**2).sum(axis=1).mean()) <= 3.0
    depth = 100 * (place[:, 2] * scene.focal / focal - true[:, 2])
    assert np.sqrt((depth**2).mean()) <= 8.0
    assert np.median(found.residual) <= 1.2


def test_given_focal_length_is_kept(template: np.ndarray):
    scene = make_scene(template, 2, noise=0.3)
    found = solve(scene, template, focal_range=(scene.focal, scene.focal))
    assert found.K[0, 0] == pytest.approx(scene.focal, rel=1e-12)
    assert rotation_error(found.viewmats, scene.viewmats) < 0.5


def test_focal_length_stays_within_its_bounds(template: np.ndarray):
    scene = make_scene(template, 2, noise=0.3)
    for bounds in ((1.2, 2.0), (0.5, 0.8)):
        low, high = np.array(bounds) * scene.focal
        focal = solve(scene, template, focal_range=(low, high)).K[0, 0]
        assert low * (1 - 1e-9) <= focal <= high * (1 + 1e-9)


def test_focal_length_is_hardly_shown_by_a_head(template: np.ndarray):
    """The report therefore contains the curve, and the prior on the distance decides."""
    scene = make_scene(person(template, 3), 3, noise=0.5)
    curve = solve(scene, template).focal_curve
    assert max(curve.values()) < 1.15 * min(curve.values())


def test_image_size_does_not_matter(template: np.ndarray):
    scene = make_scene(person(template, 5), 5, noise=0.5)
    large = dataclasses.replace(scene, meshes=3 * scene.meshes)
    small, big = (
        fitting.fit_rigid(each.meshes, template, factor * SIZE, factor * SIZE, focal_range=(1, 1e5))
        for each, factor in ((scene, 1), (large, 3))
    )
    np.testing.assert_allclose(big.viewmats, small.viewmats, atol=1e-6)
    np.testing.assert_allclose(big.residual, 3 * small.residual, rtol=1e-5)


def test_corrupted_frames_stand_out_and_harm_no_other(template: np.ndarray):
    scene = make_scene(person(template, 6), 6, frames=300, noise=0.5)
    rng = np.random.default_rng(6)
    bad = rng.choice(300, 12, replace=False)
    meshes = scene.meshes.copy()
    meshes[bad, :, :2] = rng.normal(256, 60, (12, 478, 2))
    found = solve(dataclasses.replace(scene, meshes=meshes), template)
    flagged = np.flatnonzero(fitting.outliers(found.residual))
    assert set(bad) <= set(flagged) and len(flagged) <= 14
    good = np.setdiff1d(np.arange(300), bad)
    assert rotation_error(found.viewmats[good], scene.viewmats[good]) <= 1.5


def test_blinks_are_no_outliers():
    residual = np.random.default_rng(0).normal(1.0, 0.05, 200)
    residual[50:54] = 2.0
    assert not fitting.outliers(residual).any()
    residual[120] = 5.0
    assert np.flatnonzero(fitting.outliers(residual)).tolist() == [120]


def test_unprojected_points_project_where_they_were_seen(template: np.ndarray):
    scene = make_scene(template, 7, frames=10, noise=2.0)
    K = intrinsics(scene.focal, SIZE, SIZE)
    lifted = poses.unproject(scene.viewmats, scene.meshes[..., :2], template, K)
    np.testing.assert_allclose(project(lifted, scene.viewmats, K), scene.meshes[..., :2], atol=1e-9)
    depths = [
        (points @ scene.viewmats[:, :3, :3].transpose(0, 2, 1))[..., 2]
        for points in (lifted, template)
    ]
    np.testing.assert_allclose(*depths, atol=1e-9)


def test_pca_recovers_low_rank_motion():
    rng = np.random.default_rng(8)
    basis = np.linalg.qr(rng.normal(size=(60, 3)))[0].T.reshape(3, 20, 3)
    shapes = np.tensordot(rng.normal(size=(40, 3)) * [3, 2, 1], basis, 1)
    weights, flat = pca(shapes.reshape(40, -1), 5)
    found = flat.reshape(-1, 20, 3)
    np.testing.assert_allclose(np.tensordot(weights[:, :3], found[:3], 1), shapes, atol=1e-9)
    np.testing.assert_allclose(weights[:, 3:], 0, atol=1e-6)
    np.testing.assert_allclose(flat @ flat.T, np.eye(5), atol=1e-9)


def test_gaps_are_filled_along_the_shortest_turn():
    euler = np.radians([[0, 10, 0], [0, 30, 0]])
    viewmats = viewmats_from_pose(euler, np.array([[0.0, 0, -8], [1, 0, -8]]))
    filled = poses.fill_poses(viewmats, np.array([2, 6]), 9)
    expected = viewmats_from_pose(
        np.radians([[0, y, 0] for y in (10, 10, 10, 15, 20, 25, 30, 30, 30)]),
        np.array([[x, 0, -8] for x in (0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1)]),
    )
    np.testing.assert_allclose(filled, expected, atol=1e-12)


def test_same_input_gives_the_same_bytes(template: np.ndarray):
    scene = make_scene(person(template, 1), 1, noise=0.5)
    first, second = (solve(scene, template) for _ in range(2))
    assert first.viewmats.tobytes() == second.viewmats.tobytes()
    assert first.mesh.tobytes() == second.mesh.tobytes()


def test_temporary_arrays_do_not_grow_with_the_clip() -> None:
    """One array of Jacobians for all frames would take 20 times the memory of the projections."""
    rng = np.random.default_rng(0)
    frames, count = 2000, 300
    points = rng.normal(0, 0.5, (count, 3))
    viewmats = np.tile(np.eye(4), (frames, 1, 1))
    viewmats[:, :3, 3] = rng.normal((0, 0, 8), 0.1, (frames, 3))
    K = intrinsics(1000.0, 512, 512)
    observed = project(points, viewmats, K)
    faces = rng.integers(0, 255, (frames, 64, 64), np.uint8)
    for run, result in (
        (lambda: project(points, viewmats, K), observed.nbytes),
        (lambda: reprojection_errors(viewmats, observed, points, K), observed.nbytes),
        (lambda: unproject(viewmats, observed, points, K), 2 * observed.nbytes),
        (lambda: covered_frames(faces), frames),
    ):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result + 15e6, (peak, result)
