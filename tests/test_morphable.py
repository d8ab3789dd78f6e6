"""The head that comes with the package, and its smooth surface."""

import numpy as np
import pytest

from talker.errors import UserError
from talker.head.landmarks68 import MESH_INDICES
from talker.head.morphable import DEFAULT_MODEL, PARTS, MorphableHead, vertex_normals
from talker.synthetic.mesh import loop_subdivision, subdivide_corners

UPPER_LIP, LOWER_LIP, CHIN, FOREHEAD = 13, 14, 152, 10
RIGHT_EYE_LIDS, LEFT_EYE_LIDS = (159, 145), (386, 374)


@pytest.fixture(scope="module")
def head() -> MorphableHead:
    return MorphableHead.load()


def posed(head: MorphableHead, **weights: float) -> np.ndarray:
    values = np.array([weights.get(name, 0.0) for name in head.expression_names])
    return head.landmarks(head.vertices + np.tensordot(values, head.expressions, 1))


def gap(points: np.ndarray, pair: tuple[int, int]) -> float:
    return float(np.linalg.norm(points[pair[0]] - points[pair[1]]))


def test_it_is_a_head(head):
    assert DEFAULT_MODEL.stat().st_size < 8e6
    assert len(head.expression_names) == 52
    assert set(np.unique(head.parts)) == set(range(len(PARTS)))
    assert head.faces.max() == len(head.vertices) - 1
    points = head.landmarks(head.vertices)
    assert points.shape == (478, 3)
    np.testing.assert_allclose(points.mean(0), 0, atol=0.01)
    assert 1.1 < points[FOREHEAD, 1] - points[CHIN, 1] < 1.8  # dm
    np.testing.assert_allclose(head.landmark_weights.sum(1), 1, atol=1e-5)
    assert (head.landmark_weights > -1e-6).all()


def test_landmarks_are_where_their_names_say(head):
    points = head.landmarks(head.vertices)
    right_eye, left_eye = points[[33, 133, 159, 145]].mean(0), points[[263, 362, 386, 374]].mean(0)
    nose, mouth = points[1], points[[61, 291]].mean(0)
    assert right_eye[0] < -0.2 < 0.2 < left_eye[0]  # the subject's right is at the image's left
    assert right_eye[1] > nose[1] > mouth[1] > points[CHIN, 1]
    assert nose[2] == pytest.approx(points[MESH_INDICES, 2].max(), abs=0.03)
    mirrored = points[[133, 33, 61, 172]] * [-1, 1, 1]
    np.testing.assert_allclose(mirrored, points[[362, 263, 291, 397]], atol=0.06)


def test_units_move_what_they_name(head):
    rest = posed(head)
    wide = posed(head, jawOpen=0.5)
    assert gap(wide, (UPPER_LIP, LOWER_LIP)) > gap(rest, (UPPER_LIP, LOWER_LIP)) + 0.12
    assert gap(wide, RIGHT_EYE_LIDS) == pytest.approx(gap(rest, RIGHT_EYE_LIDS), abs=1e-3)
    blinks = [posed(head, eyeBlinkRight=weight) for weight in (0.3, 0.5, 0.6, 0.7)]
    gaps = [gap(blink, RIGHT_EYE_LIDS) for blink in blinks]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.2 * gap(rest, RIGHT_EYE_LIDS)
    assert gap(blinks[-1], LEFT_EYE_LIDS) == pytest.approx(gap(rest, LEFT_EYE_LIDS), abs=1e-3)
    assert gap(posed(head, mouthPucker=1.0), (61, 291)) < 0.9 * gap(rest, (61, 291))


def test_normals_point_outwards(head):
    skin = head.faces[head.parts == PARTS.index("skin")]
    normals = vertex_normals(head.vertices, head.faces)
    face = np.unique(skin[np.isin(skin, head.faces[head.landmark_faces[:468]]).all(1)])
    assert (normals[face, 2] > 0).mean() > 0.8


def test_shapes_are_named(head):
    shape = head.shape({"sex_male": 1.0, "chin-width-incr": 0.5})
    assert 0.01 < np.abs(shape - head.vertices).max() < 1.5
    with pytest.raises(ValueError, match="chin-size"):
        head.shape({"chin-size": 1.0})


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"head\.npz"):
        MorphableHead.load(tmp_path / "head.npz")
    np.savez(tmp_path / "other.npz", vertices=np.zeros((3, 3)))
    with pytest.raises(UserError, match="expressions"):
        MorphableHead.load(tmp_path / "other.npz")


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:n, :n]
    corner = (y * n + x)[:-1, :-1].ravel()
    faces = [(corner, corner + 1, corner + n + 1), (corner, corner + n + 1, corner + n)]
    vertices = np.column_stack([x.ravel(), y.ravel(), np.zeros(n * n)]).astype(float)
    return vertices, np.concatenate([np.stack(face, 1) for face in faces])


def test_subdivision_keeps_planes_and_orientation():
    vertices, faces = grid(6)
    fine = loop_subdivision(faces, len(vertices))
    np.testing.assert_allclose(fine.operator.sum(1), 1, atol=1e-12)
    tilted = vertices @ np.array([[1, 0.2, 0.5], [0, 1, -0.3], [0, 0, 1]]) + [3, 2, 1]
    smooth = fine.operator @ tilted
    plane = np.cross([1, 0.2, 0.5], [0, 1, -0.3])
    np.testing.assert_allclose((smooth - [3, 2, 1]) @ plane, 0, atol=1e-9)
    flat = fine.operator @ vertices
    a, b, c = flat[fine.faces].transpose(1, 0, 2)
    area = np.cross(b - a, c - a)[:, 2] / 2
    assert (area > 0).all()
    inner = 2 * 6 + 2
    np.testing.assert_allclose(flat[inner], vertices[inner], atol=1e-12)  # by symmetry
    assert 23.5 < area.sum() <= 25  # only the corners are cut


def test_children_lie_in_their_parent():
    _, faces = grid(4)
    fine = loop_subdivision(faces, 16)
    corners = subdivide_corners(np.tile(np.eye(3), (len(faces), 1, 1)))
    np.testing.assert_allclose(corners.sum(-1), 1)
    for parent, child in ((0, 0), (3, 1), (7, 3)):
        row = 4 * parent + child
        original = (corners[row] > 0.9).any(1)
        kept = faces[parent][corners[row].argmax(1)]
        np.testing.assert_array_equal(fine.faces[row][original], kept[original])
    assert fine.operator.shape[0] == fine.faces.max() + 1
