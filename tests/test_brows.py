import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from talker.head.brows import BROWS, brow_distance, brow_motion, brow_raise
from talker.media.mediapipe import track_meshes


def pixels(mesh: np.ndarray, size: float = 60.0) -> np.ndarray:
    """Return meshes in the axes of the image: y down, z away from the camera."""
    return size * mesh * [1, -1, -1]


def raised(mesh: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return copies of a mesh [478, 3] whose brows are higher by fractions [T] of the eye width."""
    meshes = np.repeat(mesh[None], len(by), axis=0)
    meshes[:, BROWS, 1] -= (by * np.linalg.norm(mesh[33] - mesh[263]))[:, None]
    return meshes


def test_the_raise_does_not_depend_on_place_size_and_pose(synthetic) -> None:
    by = np.linspace(-0.05, 0.05, 21)
    meshes = raised(pixels(synthetic.truth.mesh[0]), by)
    distance = brow_distance(meshes)
    assert distance - distance[10] == pytest.approx(by, rel=0.2, abs=1e-3)
    turns = Rotation.from_euler("xyz", np.random.default_rng(0).uniform(-20, 20, (21, 3)), True)
    moved = 1.7 * np.einsum("tij,tpj->tpi", turns.as_matrix(), meshes) + [50, -20, 3]
    assert brow_distance(moved) == pytest.approx(distance, abs=1e-6)


def test_the_median_is_relaxed_and_lost_frames_are_interpolated(synthetic) -> None:
    by = np.zeros(101)
    by[40:60] = 0.05
    valid = np.ones(101, bool)
    valid[50:53] = False
    meshes = raised(pixels(synthetic.truth.mesh[0]), by)
    meshes[50:53] = 0
    found = brow_raise(meshes, valid, np.zeros(101))
    assert found[:30] == pytest.approx(0, abs=0.01)
    assert found[44:56] == pytest.approx(0.5, abs=0.1)
    assert not brow_raise(meshes, np.zeros(101, bool), np.zeros(101)).any()


def test_blinks_do_not_move_the_brows(synthetic) -> None:
    closure = np.zeros(100)
    closure[[20, 50, 80]] = 1
    by = 0.02 * np.sin(np.arange(100) / 8)
    mesh = pixels(synthetic.truth.mesh[0])
    pure, blinking = (brow_motion(raised(mesh, by + part * closure), closure) for part in (0, 0.03))
    assert blinking - blinking.mean() == pytest.approx(pure - pure.mean(), abs=2e-3)


def test_detected_brows_follow_the_truth(synthetic) -> None:
    truth = synthetic.truth
    every = np.ones(len(synthetic.images), bool)
    detected = np.concatenate(list(track_meshes(synthetic.images)))
    found, expected = (
        brow_raise(mesh, every, truth.blink) for mesh in (detected, pixels(truth.mesh))
    )
    assert expected.std() > 0.05
    assert np.corrcoef(found, expected)[0, 1] > 0.85
    assert 0.6 < found.std() / expected.std() < 1.4
