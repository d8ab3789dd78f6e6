"""The z-buffer: coverage, depth order, perspective-correct weights, holes."""

import numpy as np

from talker.head.zbuffer import Cutouts, zbuffer

SQUARE = np.array([[0, 1, 2], [0, 2, 3]])


def square(left: float, top: float, right: float, bottom: float, depth: float) -> np.ndarray:
    return np.array(
        [(left, top, depth), (right, top, depth), (right, bottom, depth), (left, bottom, depth)]
    )


def test_a_pixel_is_covered_where_its_centre_lies_inside():
    face, weights, depth = zbuffer(square(2.4, 1.6, 5.6, 4.4, 3.0), SQUARE, 7, 8)
    covered = np.zeros((7, 8), bool)
    covered[2:4, 2:6] = True  # centres at 2.5 .. 5.5 and 2.5, 3.5
    np.testing.assert_array_equal(face >= 0, covered)
    np.testing.assert_allclose(depth[covered], 3.0, rtol=1e-6)
    assert np.isinf(depth[~covered]).all()
    assert (weights >= 0).all()
    assert (weights.sum(-1) <= 1 + 1e-6).all()


def test_the_nearer_triangle_wins_in_any_order():
    points = np.concatenate([square(0, 0, 8, 8, 5.0), square(2, 2, 6, 6, 4.0)])
    near, far = SQUARE + 4, SQUARE
    for faces, nearest in (([*far, *near], (2, 3)), ([*near, *far], (0, 1))):
        face, _, depth = zbuffer(points, np.array(faces), 8, 8)
        inner = np.zeros((8, 8), bool)
        inner[2:6, 2:6] = True
        np.testing.assert_array_equal(np.isin(face, nearest), inner)
        np.testing.assert_allclose(depth, np.where(inner, 4.0, 5.0), rtol=1e-6)


def test_weights_are_correct_in_perspective():
    """A ray through each pixel meets the plane of the triangle at the interpolated corner."""
    focal, size = 90.0, 64
    corners = np.array([(-1.0, -0.8, 3.0), (1.2, -0.6, 6.0), (0.1, 1.1, 4.0)])
    points = np.column_stack([corners[:, :2] / corners[:, 2:] * focal + size / 2, corners[:, 2]])
    face, weights, depth = zbuffer(points, np.array([[0, 1, 2]]), size, size)
    rows, columns = np.nonzero(face == 0)
    assert len(rows) > 500
    b, c = weights[rows, columns].T
    places = np.column_stack([1 - b - c, b, c]) @ corners
    pixels = places[:, :2] / places[:, 2:] * focal + size / 2
    np.testing.assert_allclose(pixels, np.column_stack([columns, rows]) + 0.5, atol=1e-3)
    np.testing.assert_allclose(depth[rows, columns], places[:, 2], rtol=1e-5)


def test_holes_show_what_lies_behind():
    points = np.concatenate([square(0, 0, 8, 8, 5.0), square(0, 0, 8, 8, 4.0)])
    faces = np.concatenate([SQUARE, SQUARE + 4])
    corners = np.float32([[(0, 0), (1, 0), (1, 1)], [(0, 0), (1, 1), (0, 1)]])
    opacity = np.zeros((1, 8, 4), np.uint8)
    opacity[..., 3] = [200, 200, 200, 0, 0, 0, 0, 200]
    cutoff = np.float32([0, 0, 100, 100])[:, None].repeat(3, 1)
    cutouts = Cutouts(np.tile(corners, (2, 1, 1)), cutoff, np.zeros(4, int), (opacity,))
    depth = zbuffer(points, faces, 8, 8, cutouts)[2]
    expected = np.where(opacity[0, :, 3] >= 100, 4.0, 5.0)
    np.testing.assert_allclose(depth, np.tile(expected, (8, 1)), rtol=1e-6)
    np.testing.assert_allclose(zbuffer(points, faces[:2], 8, 8, cutouts.only(slice(2)))[2], 5.0)
