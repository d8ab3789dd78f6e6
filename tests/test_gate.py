"""The gate: lag and correlation of sound and mouth, changes of the background, the verdicts."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from talker.data.masks import BACKGROUND, HEAD
from talker.measure.gate import LAGS, LEAD, Limits, background_change, judge, lag_of, sync_curve

FRAMES = 400
GOOD = {
    "rejected": {},
    "valid_percent": 100.0,
    "usable_seconds": 60.0,
    "held_out_frames": 130,
    "residual_percent_of_face": 0.4,
    "c1_px_at_250": 0.05,
    "c5_px_at_250": 0.2,
    "worst_shot_ratio": 1.0,
    "rival_percent": 0.0,
    "mouth_range": 0.15,
    "sync_correlation": 0.6,
    "sync_lag_frames": 0.5,
    "background_change_percent": 0.2,
    "yaw_range_degrees": 12.0,
    "focal_at_bound": False,
    "blinks": 9,
}


def talk(late: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Speech windows [T, 16, 8] that come `late` frames after the mouth [T] that they open."""
    rng = np.random.default_rng(0)
    mouth = gaussian_filter1d(rng.normal(size=FRAMES + 60), 1.5)[30:-30]
    mouth /= mouth.std()
    heard = np.interp(np.arange(2 * FRAMES) / 2 - late, np.arange(FRAMES), mouth)
    slots = heard[:, None] * rng.normal(size=8) + noise * rng.normal(size=(2 * FRAMES, 8))
    index = 2 * np.arange(FRAMES)[:, None] + np.arange(-8, 8)
    return slots[index.clip(0, 2 * FRAMES - 1)], mouth


@pytest.mark.parametrize("late", [-6, -2, 0, 3, 7])
def test_lag_of_the_sound_is_found(late: int):
    speech, mouth = talk(late)
    lag, correlation = lag_of(sync_curve(speech, mouth, np.ones(FRAMES, bool)))
    assert abs(lag + LEAD - late) < 0.7
    assert correlation > 0.6


def test_sound_of_someone_else_says_nothing():
    speech, mouth = talk(0)
    curve = sync_curve(speech, np.roll(mouth, 150), np.ones(FRAMES, bool))
    assert lag_of(curve)[1] < Limits().min_sync


def test_frames_without_a_face_do_not_count():
    speech, mouth = talk(0)
    valid = np.ones(FRAMES, bool)
    valid[100:200] = False
    mouth[100:200] = 50
    assert lag_of(sync_curve(speech, mouth, valid))[1] > 0.6


def test_too_few_frames_say_nothing():
    speech, mouth = talk(0)
    curve = sync_curve(speech, mouth, np.arange(FRAMES) < 50)
    assert curve.shape == LAGS.shape and np.isnan(curve).all()


def test_background_that_moves_is_seen():
    rng = np.random.default_rng(0)
    plate = np.repeat(rng.integers(0, 256, (64, 64, 1), np.uint8), 3, axis=2)
    plate = np.kron(plate[::8, ::8], np.ones((8, 8, 1), np.uint8))
    mask = np.full((64, 64), BACKGROUND, np.uint8)
    mask[20:50, 20:44] = HEAD
    person = np.where((mask == HEAD)[..., None], np.uint8(0), plate)
    assert background_change([person] * 3, [mask] * 3, plate) == 0.0
    moved = [np.roll(person, shift, axis=1) for shift in (5, 6, 7)]
    assert background_change(moved, [mask] * 3, plate) > 30


def test_good_clip_passes():
    verdict = judge(GOOD, Limits())
    assert not verdict.failures and not verdict.warnings


def test_what_was_not_measured_is_not_judged():
    facts = {"rejected": {}, "blinks": 3, "valid_percent": 100.0, "usable_seconds": 60.0}
    verdict = judge(facts, Limits())
    assert not verdict.failures and not verdict.warnings


FAILURES = {
    "valid_percent": (70.0, ["70 %", "12 times no face", "at least 80"]),
    "usable_seconds": (7.0, ["7.0 s", "at least 10", "longer clip"]),
    "held_out_frames": (2, ["held-out", "ends with a good part"]),
    "residual_percent_of_face": (1.0, ["1.00 %", "track_overlay.mp4"]),
    "c1_px_at_250": (0.3, ["shakes", "0.30 px"]),
    "c5_px_at_250": (1.2, ["shakes", "1.20 px"]),
    "worst_shot_ratio": (2.0, ["2.0 times", "someone else"]),
    "rival_percent": (50.0, ["another face", "crop"]),
    "mouth_range": (0.01, ["hardly moves"]),
    "sync_correlation": (0.1, ["nothing about the mouth"]),
    "sync_lag_frames": (5.2, ["5.2 frames late", "add 5 to `audio: {lag_frames: ...}`"]),
    "background_change_percent": (40.0, ["40 %", "fixed camera"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_limit_has_a_reason_and_advice(name: str):
    value, words = FAILURES[name]
    verdict = judge(GOOD | {name: value, "rejected": {"no face": 12}}, Limits())
    assert len(verdict.failures) == 1 and "; " in verdict.failures[0]
    assert all(word in verdict.failures[0] for word in words), verdict.failures


WARNINGS = {
    "yaw_range_degrees": (2.0, "turns by 2.0 degrees"),
    "focal_at_bound": (True, "focal_px"),
    "blinks": (0, "no blink"),
}


@pytest.mark.parametrize(
    ("seconds", "correlation", "passes"),
    [(10, 0.3, False), (10, 0.34, True), (5, 0.4, False), (5, 0.5, True), (60, 0.26, True)],
)
def test_short_clips_have_to_say_more_of_the_mouth(seconds: int, correlation: float, passes: bool):
    """Chance alone reaches more in fewer frames."""
    facts = GOOD | {"usable_seconds": float(seconds), "sync_correlation": correlation}
    assert (not judge(facts, Limits(min_seconds=3)).failures) == passes


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings_do_not_stop(name: str):
    value, words = WARNINGS[name]
    verdict = judge(GOOD | {name: value}, Limits())
    assert not verdict.failures
    assert len(verdict.warnings) == 1 and words in verdict.warnings[0]


def test_uncertain_lag_is_a_warning_only():
    verdict = judge(GOOD | {"sync_lag_frames": -4.0, "sync_correlation": 0.3}, Limits())
    assert not verdict.failures and "may come 4.0 frames early" in verdict.warnings[0]
    verdict = judge(GOOD | {"sync_lag_frames": 2.5}, Limits())
    assert not verdict.failures and "comes 2.5 frames late" in verdict.warnings[0]
