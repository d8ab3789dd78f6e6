"""Fusion of landmarks and flow against known poses, with the errors of a real detector."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from test_fitting import SIZE, Scene, face_places, make_scene, person, rotation_error

from talker.head.camera import intrinsics, project
from talker.head.fitting import fit_rigid, stable_points
from talker.head.flow import Flow
from talker.head.fusion import fuse, motion_errors
from talker.head.morphable import MorphableHead

FRAMES = 400


@pytest.fixture(scope="module")
def template() -> np.ndarray:
    head = MorphableHead.load()
    return head.landmarks(head.vertices.astype(float))


def detect(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Meshes with the errors of a real detector: white, common, static, and sliding with yaw."""
    meshes = scene.meshes.copy()
    common = gaussian_filter1d(rng.normal(size=(len(meshes), 1, 2)), 1, axis=0)
    meshes[..., :2] += 0.5 * rng.normal(size=meshes[..., :2].shape)
    meshes[..., :2] += 0.5 * common / common.std()
    meshes[..., :2] += 1.5 * rng.normal(size=(1, 478, 2))
    yaw = np.degrees(scene.viewmats[:, :1, 2])
    meshes[..., 0] += 0.05 * yaw * (scene.shape[:, 1] > 0.4)
    return meshes


def see_flow(places: np.ndarray, step: int, rng: np.random.Generator) -> Flow:
    """Return the motion of true positions [T, P, 2] with the errors of Lucas-Kanade."""
    moved = places[step:] - places[:-step]
    moved = moved + 0.3 * rng.normal(size=moved.shape)
    moved += 0.05 * rng.normal(size=(len(moved), 1, 2))
    return Flow(moved.astype(np.float32), np.ones(moved.shape[:2], bool))


def shake(viewmats: np.ndarray, shape: np.ndarray, K: np.ndarray, scene: Scene) -> float:
    """RMS second difference of (found - true) projected points, pixels."""
    true = project(scene.shape, scene.viewmats, intrinsics(scene.focal, SIZE, SIZE))
    off = np.diff(project(shape, viewmats, K) - true, 2, axis=0)
    return float(np.sqrt((off**2).sum(axis=-1).mean()))


@pytest.mark.parametrize("seed", range(4))
def test_people_are_tracked_without_jitter(template: np.ndarray, seed: int):
    """Acceptance: rotation, place, distance, focal length and jitter of a talking head."""
    rng = np.random.default_rng(seed)
    scene = make_scene(person(template, seed), seed, frames=FRAMES)
    meshes = detect(scene, rng)
    found = fit_rigid(meshes, template, SIZE, SIZE, focal_range=(0.8 * SIZE, 6 * SIZE))
    followed = np.arange(0, len(found.stable), 2)
    true = project(
        scene.shape[found.stable[followed]], scene.viewmats, intrinsics(scene.focal, SIZE, SIZE)
    )
    viewmats = fuse(
        found.viewmats,
        meshes[:, found.stable, :2] / found.unit,
        found.mesh[found.stable],
        np.tile(found.weights, (FRAMES, 1)),
        found.K / [[found.unit], [found.unit], [1.0]],
        see_flow(true, 1, rng),
        followed,
        np.ones(FRAMES - 1, bool),
        found.unit,
    )
    assert rotation_error(viewmats, scene.viewmats) <= 1.5
    assert abs(found.K[0, 0] / scene.focal - 1) <= 0.2
    place, expected = (
        face_places(*poses) for poses in ((viewmats, found.mesh), (scene.viewmats, scene.shape))
    )
    seen = place / place[:, 2:] * found.K[0, 0] - expected / expected[:, 2:] * scene.focal
    lateral = 100 * seen[:, :2] * expected[:, 2:] / scene.focal
    assert np.sqrt((lateral**2).sum(axis=1).mean()) <= 3.0
    depth = 100 * (place[:, 2] * scene.focal / found.K[0, 0] - expected[:, 2])
    assert np.sqrt((depth**2).mean()) <= 8.0
    before = shake(found.viewmats, found.mesh, found.K, scene)
    after = shake(viewmats, found.mesh, found.K, scene)
    assert after <= 0.35 and after <= 0.4 * before


def exact(template: np.ndarray, frames: int = 140) -> tuple[Scene, np.ndarray, dict]:
    """A scene, its stable points, and the arguments of `fuse` without any error."""
    scene = make_scene(template, 3, frames=frames)
    points = template[stable_points(template)]
    K = intrinsics(scene.focal, SIZE, SIZE)
    observed = project(points, scene.viewmats, K)
    followed = np.arange(0, len(points), 3)
    moved = np.diff(observed[:, followed], axis=0).astype(np.float32)
    arguments = {
        "observed": observed,
        "points": points,
        "weights": np.full((frames, len(points)), 20 / len(points)),
        "K": K,
        "flow": Flow(moved, np.ones(moved.shape[:2], bool)),
        "followed": followed,
        "linked": np.ones(frames - 1, bool),
        "unit": 1.0,
    }
    return scene, points, arguments


def test_exact_poses_stay(template: np.ndarray):
    scene, points, arguments = exact(template)
    found = fuse(scene.viewmats, **arguments)
    off = project(points, found, arguments["K"]) - arguments["observed"]
    assert np.abs(off).max() < 0.1
    assert (
        np.nanmax(
            motion_errors(
                found, points[arguments["followed"]], arguments["K"], arguments["flow"], 1
            )
        )
        < 0.02
    )


def test_flow_carries_the_head_through_frames_without_landmarks(template: np.ndarray):
    scene, points, arguments = exact(template)
    arguments["weights"][60:70] = 0
    arguments["observed"][60:70] = 0
    start = scene.viewmats.copy()
    start[60:70] = start[59]
    off = project(points, fuse(start, **arguments), arguments["K"])
    off -= project(points, scene.viewmats, arguments["K"])
    assert np.abs(off[60:70]).max() < 0.5


def test_nothing_leaks_over_a_cut(template: np.ndarray):
    """The parts of a clip are solved independently."""
    scene, _, arguments = exact(template)
    arguments["observed"] += np.random.default_rng(0).normal(size=arguments["observed"].shape)
    arguments["linked"][79] = False
    whole = fuse(scene.viewmats, **arguments)
    part = {
        **arguments,
        "observed": arguments["observed"][:80],
        "weights": arguments["weights"][:80],
        "linked": arguments["linked"][:79],
        "flow": Flow(arguments["flow"].moved[:79], arguments["flow"].good[:79]),
    }
    np.testing.assert_allclose(whole[:80], fuse(scene.viewmats[:80], **part), atol=1e-6)


def test_frames_that_show_nothing_stay_where_they_are(template: np.ndarray):
    scene, _, arguments = exact(template)
    arguments["weights"][40:50] = 0
    arguments["linked"][39:50] = False
    found = fuse(scene.viewmats, **arguments)
    np.testing.assert_array_equal(found[40:50], scene.viewmats[40:50])


def test_motion_errors_are_pixels(template: np.ndarray):
    scene, points, arguments = exact(template)
    moved = arguments["flow"].moved + np.array([0.3, 0.4], np.float32)
    good = arguments["flow"].good.copy()
    good[5] = False
    followed = points[arguments["followed"]]
    error = motion_errors(scene.viewmats, followed, arguments["K"], Flow(moved, good), 1)
    assert np.isnan(error[5]) and np.isfinite(np.delete(error, 5)).all()
    np.testing.assert_allclose(np.delete(error, 5), 0.5, atol=1e-4)
