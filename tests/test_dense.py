"""Heads are fitted to face meshes: known shapes are recovered, and the rest stays plausible."""

import numpy as np
import pytest

from talker.head.dense import HAIR, fit_head, head_surface, with_hair
from talker.head.fitting import stable_points
from talker.head.morphable import PARTS, MorphableHead
from talker.head.poses import procrustes


@pytest.fixture(scope="module")
def head() -> MorphableHead:
    return MorphableHead.load()


def person(head: MorphableHead, seed: int) -> np.ndarray:
    """Return the vertices of a random person, aligned with the mean face like a tracked mesh."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.15, len(head.identities))
    vertices = head.vertices + np.tensordot(weights, head.identities, 1)
    template = head.landmarks(head.vertices.astype(float))
    stable = stable_points(template)
    points = head.landmarks(vertices)[stable]
    scale, rotation, shift = procrustes(points[None], template[stable])
    return (vertices - shift[0]) @ rotation[0] / scale[0]


def regions(head: MorphableHead) -> tuple[np.ndarray, np.ndarray]:
    """Return which vertices are skin of the face, and which are skin of the skull: bool [V]
    each."""
    skin = np.zeros(len(head.vertices), bool)
    skin[head.faces[head.parts == PARTS.index("skin")]] = True
    low, high = (getattr(head.landmarks(head.vertices), name)(axis=0) for name in ("min", "max"))
    _, y, z = head.vertices.T
    face = skin & (z > 0) & (y > low[1]) & (y < high[1])
    skull = skin & (y > 0) & (z < low[2])
    return face, skull


def error(found: np.ndarray, true: np.ndarray) -> float:
    """Median distance in mm."""
    return float(100 * np.median(np.linalg.norm(found - true, axis=1)))


def test_the_mean_face_gives_the_mean_head(head: MorphableHead):
    found, weights = fit_head(head, head.landmarks(head.vertices.astype(float)))
    assert weights.shape == (len(head.identities),) and abs(weights).max() < 1e-6
    np.testing.assert_allclose(found, head.vertices, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_person_is_found_from_a_noisy_mesh(head: MorphableHead, seed: int):
    true = person(head, seed)
    rng = np.random.default_rng(seed)
    mesh = head.landmarks(true) + rng.normal(0, 0.01, (478, 3))
    found, _ = fit_head(head, mesh)
    face, skull = regions(head)
    assert error(found[face], true[face]) < 1.5
    assert error(found[face], true[face]) < 0.6 * error(head.vertices[face], true[face])
    assert error(found[skull], true[skull]) < error(head.vertices[skull], true[skull])


def test_noise_does_not_move_the_skull(head: MorphableHead):
    points = head.landmarks(head.vertices.astype(float))
    mesh = points + np.random.default_rng(5).normal(0, 0.03, points.shape)
    _, skull = regions(head)
    assert error(fit_head(head, mesh)[0][skull], head.vertices[skull]) < 5.0


def test_surface_is_the_head_down_to_the_neck(head: MorphableHead):
    vertices, faces = head_surface(head, head.vertices)
    assert set(np.unique(faces)) == set(range(len(vertices)))
    chin = head.landmarks(head.vertices)[152, 1]
    assert chin - 0.6 < vertices[:, 1].min() < chin - 0.2
    assert vertices[:, 1].max() == head.vertices[:, 1].max()
    assert np.ptp(vertices[:, 0]) < 2.0


def test_hair_covers_the_skull_and_spares_the_face(head: MorphableHead):
    raised = np.linalg.norm(with_hair(head, head.vertices) - head.vertices, axis=1)
    points = head.landmarks(head.vertices)
    face, skull = regions(head)
    top = skull & (head.vertices[:, 1] > points[10, 1])
    assert np.median(raised[face]) == 0 and raised[head.vertices[:, 2] > 0.1].max() == 0
    np.testing.assert_allclose(raised[top], HAIR, rtol=0.01)
    assert raised[head.masks["ears"] == 1].max() == 0
    chin = head.vertices[:, 1] < points[152, 1]
    assert raised[chin].max() == 0
