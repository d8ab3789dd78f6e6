"""Following points: a texture that moves by a known amount, points that cannot be followed."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from talker.head.flow import follow_points

FRAMES, SIZE = 8, 128
PLACES = np.stack(np.meshgrid([40.0, 60, 80], [40.0, 60, 80]), axis=-1).reshape(-1, 2)
VELOCITY = np.array([1.3, -0.7])


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """A texture that moves by `VELOCITY` pixels a frame."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(SIZE, SIZE)), 2)
    grey = 128 + 40 * texture / texture.std()
    frames = [shift(grey, i * VELOCITY[::-1], mode="wrap", order=3) for i in range(FRAMES)]
    return [np.repeat(f.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2) for f in frames]


def test_motion_is_measured_to_hundredths_of_a_pixel(images: list[np.ndarray]):
    places = np.repeat(PLACES[None], FRAMES, axis=0)
    flows = follow_points(images, places, [1, 3])
    for step, flow in flows.items():
        assert flow.moved.shape == (FRAMES - step, len(PLACES), 2)
        assert flow.good.all() and (flow.share == 1).all()
        off = flow.moved - step * VELOCITY
        assert np.sqrt((off**2).mean()) < 0.05


def test_what_cannot_be_followed_does_not_count(images: list[np.ndarray]):
    changed = [image.copy() for image in images]
    changed[5][:50] = np.random.default_rng(1).integers(0, 255, (50, SIZE, 3))
    places = np.repeat(PLACES[None], FRAMES, axis=0)
    flow = follow_points(changed, places, [1])[1]
    upper = PLACES[:, 1] < 50
    assert not flow.good[[4, 5]][:, upper].any()
    assert flow.good[:4].all() and flow.good[6:].all()


def test_points_far_from_where_they_were_expected_do_not_count(images: list[np.ndarray]):
    places = np.repeat(PLACES[None], FRAMES, axis=0)
    places[4:, 0] += 14
    assert not follow_points(images, places, [1])[1].good[3, 0]
