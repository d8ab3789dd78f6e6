"""The camera convention: round trips, the published projection, the published files."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from talker.head import camera


@pytest.fixture
def pose() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.uniform(-1.2, 1.2, (50, 3)), rng.normal([0.3, -0.2, -8.0], 0.4, (50, 3))


def test_rotation_is_the_product_of_its_factors(pose):
    euler, _ = pose
    expected = Rotation.from_euler("XYZ", euler * [1, 1, -1]).as_matrix()
    np.testing.assert_allclose(camera.rotation_from_euler(euler), expected, atol=1e-12)


def test_pose_round_trip(pose):
    euler, trans = pose
    euler_again, trans_again = camera.pose_from_viewmats(camera.viewmats_from_pose(euler, trans))
    np.testing.assert_allclose(euler_again, euler, atol=1e-12)
    np.testing.assert_allclose(trans_again, trans, atol=1e-12)


def test_projection_agrees_with_the_published_one(pose):
    euler, trans = pose
    points = np.random.default_rng(8).uniform(-1, 1, (30, 3))
    x, y, z = np.moveaxis(
        np.einsum("nij,pj->npi", camera.rotation_from_euler(euler), points) + trans[:, None], -1, 0
    )
    published = np.stack([-1100 * x / z + 225, 1100 * y / z + 225], axis=-1)
    K = camera.intrinsics(1100, 450, 450)
    projected = camera.project(points, camera.viewmats_from_pose(euler, trans), K)
    np.testing.assert_allclose(projected, published, atol=1e-9)


def test_a_frontal_head_stands_upright_before_the_camera():
    viewmats = camera.viewmats_from_pose(np.zeros((1, 3)), np.array([[0.0, 0.0, -8.0]]))
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    origin, right, up = camera.project(points, viewmats, camera.intrinsics(800, 400, 200))[0]
    np.testing.assert_allclose(origin, [200, 100])
    np.testing.assert_allclose(right - origin, [100, 0])
    np.testing.assert_allclose(up - origin, [0, -100])


def test_transform_matrices_invert_the_pose_in_metres(pose):
    euler, trans = pose
    inverse = np.linalg.inv(camera.transform_matrices(euler, trans))
    np.testing.assert_allclose(inverse[:, :3, :3], camera.rotation_from_euler(euler), atol=1e-12)
    np.testing.assert_allclose(inverse[:, :3, 3], trans / 10, atol=1e-12)


@pytest.mark.clips
def test_reference_poses_give_the_reference_transforms(clips: Path):
    import torch

    params = torch.load(clips.parent / "reference" / "track_params.pt", weights_only=True)
    document = json.loads((clips.parent / "reference" / "transforms_val.json").read_text())
    ids = [frame["img_id"] for frame in document["frames"]]
    expected = np.array([frame["transform_matrix"] for frame in document["frames"]])
    matrices = camera.transform_matrices(
        params["euler"].numpy().astype(float)[ids], params["trans"].numpy().astype(float)[ids]
    )
    assert len(ids) == 728 and ids[0] == 7272
    assert np.abs(matrices - expected).max() <= 1e-6
