"""Metrics against their definitions and against shifts, scales and noise of known size."""

from collections.abc import Iterable

import cv2
import numpy as np
import pytest

from talker.head.flow import follow_points
from talker.head.landmarks68 import mouth_opening
from talker.measure import metrics as m

rng = np.random.default_rng(0)


def picture(height: int = 40, width: int = 48) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def face() -> np.ndarray:
    """Return 68 landmarks of a face in an image of 100 x 100 pixels."""
    points = rng.uniform(48, 52, (68, 2))
    points[36], points[45] = (30, 35), (70, 35)
    points[48:68] = rng.uniform((38, 62), (62, 74), (20, 2))
    points[8] = (50, 90)
    return points


def test_psnr_of_a_constant_error_is_its_definition() -> None:
    truth = np.full((20, 30, 3), 100, np.uint8)
    assert m.psnr(truth + 5, truth) == pytest.approx(20 * np.log10(255 / 5))
    assert m.psnr(truth, truth) == m.PSNR_CEILING


def test_psnr_in_a_box_sees_the_box_alone() -> None:
    truth = picture()
    image = truth.copy()
    image[:, :10] ^= 128
    assert m.psnr(image, truth, (10, 0, 48, 40)) == m.PSNR_CEILING
    assert m.psnr(image, truth, (0, 0, 11, 40)) < 12


def test_ssim_is_its_definition() -> None:
    """Compute one pixel by hand with the 11 x 11 Gaussian window."""
    x, y = picture(), picture()
    offsets = np.arange(11) - 5
    weight = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weight, weight) / weight.sum() ** 2
    row, column = 17, 21
    a, b = (one[row - 5 : row + 6, column - 5 : column + 6, 1].astype(float) for one in (x, y))
    ma, mb = (window * a).sum(), (window * b).sum()
    va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
    cov = (window * (a - ma) * (b - mb)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert m.ssim_map(x, y)[row, column, 1] == pytest.approx(expected, rel=1e-9)


def test_ssim_of_the_same_image_is_one_and_falls_with_noise() -> None:
    truth = np.full((40, 48, 3), 128, np.uint8) + picture() // 8
    scores = [
        m.ssim((truth + rng.normal(0, sigma, truth.shape)).astype(np.uint8), truth)
        for sigma in (0, 5, 20)
    ]
    assert scores[0] == pytest.approx(1, abs=1e-9)
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize("box", [(0, 0, 12, 9), (20, 17, 31, 22), (40, 30, 48, 40)])
def test_ssim_in_a_box_is_the_mean_of_its_map(box: m.Box) -> None:
    x, y = picture(), picture()
    x0, y0, x1, y1 = box
    expected = m.ssim_map(x, y)[y0:y1, x0:x1].mean()
    assert m.ssim(x, y, box) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "part", [(0, 0, 12, 9), (20, 17, 31, 22), (47, 39, 48, 40), (0, 0, 48, 40)]
)
def test_ssim_of_images_that_differ_in_a_part_is_the_mean_of_the_whole_map(part: m.Box) -> None:
    truth, (x0, y0, x1, y1) = picture(), part
    image = truth.copy()
    image[y0:y1, x0:x1, 2] ^= 3
    expected = m.ssim_map(image, truth)[5:-5, 5:-5].mean()
    assert m.ssim(image, truth) == pytest.approx(expected, rel=1e-12)


def test_boxes_hold_their_points_and_stay_in_the_image() -> None:
    points = face()
    for box, inner in (
        (m.head_box(points, 100, 100), points),
        (m.mouth_box(points, 100, 100), points[m.MOUTH]),
    ):
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= 100
        assert 0 <= y0 < y1 <= 100
        assert np.all(inner >= (x0, y0))
        assert np.all(inner <= (x1, y1))
    x0, y0, x1, y1 = m.mouth_box(points, 100, 100)
    assert (x1 - x0) == pytest.approx(1.5 * np.ptp(points[m.MOUTH][:, 0]), abs=1.5)


@pytest.mark.parametrize("far", [-500.0, 500.0])
def test_boxes_of_a_face_outside_are_not_empty(far: float) -> None:
    x0, y0, x1, y1 = m.mouth_box(face() + far, 100, 100)
    assert 0 <= x0 < x1 <= 100
    assert 0 <= y0 < y1 <= 100


def test_mouth_opening_ignores_size_and_place() -> None:
    faces = np.stack([face(), face()])
    faces[:, 62], faces[:, 66] = (50, 60), (50, 70)
    np.testing.assert_allclose(mouth_opening(faces), 10 / 40)
    np.testing.assert_allclose(mouth_opening(3 * faces - 7), 10 / 40)


def test_mouth_distance_ignores_place_and_measures_shape() -> None:
    faces = np.stack([face(), face()])
    np.testing.assert_allclose(m.mouth_distance(faces + np.array((4, -9)), faces), 0, atol=1e-9)
    moved = faces.copy()
    moved[:, 48:58] += (0, 1)
    moved[:, 58:68] -= (0, 1)
    np.testing.assert_allclose(m.mouth_distance(moved, faces), 1)


def test_correlation_is_pearson_where_both_are_known() -> None:
    a, b = rng.normal(size=50), rng.normal(size=50)
    a[3], b[9] = np.nan, np.nan
    known = np.isfinite(a) & np.isfinite(b)
    assert m.correlation(a, b) == pytest.approx(np.corrcoef(a[known], b[known])[0, 1])
    assert m.correlation(2 * a + 1, a) == pytest.approx(1)


def test_a_flat_curve_correlates_with_nothing() -> None:
    assert np.isnan(m.correlation(np.full(20, 0.3), rng.normal(size=20)))
    assert np.isnan(m.correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    assert np.isnan(m.best_lag(np.full(20, 0.3), rng.normal(size=20)))


@pytest.mark.parametrize("late", [-7, -1, 0, 1, 12])
def test_best_lag_is_how_late_the_curve_is(late: int) -> None:
    truth = np.convolve(rng.normal(size=200), np.ones(4), "same")
    assert m.best_lag(np.roll(truth, late), truth) == late


def test_best_lag_of_a_short_curve_keeps_half_of_it() -> None:
    truth = rng.normal(size=6)
    assert m.best_lag(truth, truth) == 0
    assert abs(m.best_lag(rng.normal(size=6), truth)) <= 3


def test_std_ratio() -> None:
    truth = rng.normal(size=100)
    assert m.std_ratio(0.25 * truth + 3, truth) == pytest.approx(0.25)
    assert np.isnan(m.std_ratio(truth, np.ones(100)))


def shifted(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An image uint8 [H, W, 3] moved by [x, y] pixels, exactly (its ends meet)."""
    fy, fx = (np.fft.fftfreq(size) for size in image.shape[:2])
    turn = np.exp(-2j * np.pi * (fx[None] * by[0] + fy[:, None] * by[1]))[..., None]
    moved = np.fft.ifft2(np.fft.fft2(image, axes=(0, 1)) * turn, axes=(0, 1)).real
    return np.clip(moved.round(), 0, 255).astype(np.uint8)


def scene(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames uint8 [T, 160, 160, 3] of a moving textured head, and 68 points on it."""
    random = np.random.default_rng(2)
    noise = cv2.GaussianBlur(random.standard_normal((160, 160, 3)), (0, 0), 3)
    image = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
    path = np.cumsum(random.normal(0, 0.5, (frames, 2)), axis=0)
    points = random.uniform(60, 100, (68, 2))
    return np.stack([shifted(image, by) for by in path]), points + path[:, None]


def shake(
    images: Iterable[np.ndarray], real: np.ndarray, landmarks: np.ndarray, step: int
) -> np.ndarray:
    flow, truth = (
        follow_points(frames, landmarks[:, m.STEADY], [step])[step] for frames in (images, real)
    )
    return m.head_shake(flow.moved, truth.moved, flow.good & truth.good)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("step", [1, 5])
def test_shaking_is_measured_in_pixels(sigma: float, step: int) -> None:
    real, landmarks = scene(40)
    off = np.random.default_rng(1).normal(0, sigma, (40, 2))
    drawn = [shifted(image, by) for image, by in zip(real, off, strict=True)]
    found = shake(drawn, real, landmarks, step)
    known = np.linalg.norm(off[step:] - off[:-step], axis=1)
    assert np.sqrt((found**2).mean()) == pytest.approx(np.sqrt((known**2).mean()), rel=0.1)
    assert np.corrcoef(found, known)[0, 1] > 0.95


def test_neither_blur_nor_a_constant_displacement_is_shaking() -> None:
    real, landmarks = scene(20)
    drawn = [cv2.GaussianBlur(shifted(image, np.array([2.3, -1.6])), (0, 0), 2) for image in real]
    assert np.sqrt((shake(drawn, real, landmarks, 1) ** 2).mean()) < 0.05


def test_a_head_that_is_not_seen_has_no_shaking() -> None:
    real, landmarks = scene(4)
    assert np.isnan(shake(np.zeros_like(real), real, landmarks, 1)).all()
    assert shake(real, real, landmarks, 9).shape == (0,)
