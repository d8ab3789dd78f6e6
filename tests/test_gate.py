"""The gate: lag and correlation of sound and mouth, background changes, and its decisions."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from talker.data.layout import BACKGROUND, HEAD
from talker.lipsync import LAGS, LEAD, peak_lag, sync_curve, sync_facts
from talker.measure.gate import SURE_Z, Limits, assess
from talker.measure.quality import background_change

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
    "sync_frames": 1500,
    "sync_z": 8.0,
    "sync_lag_z": 0.0,
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
    lag, correlation = peak_lag(sync_curve(speech, mouth, np.ones(FRAMES, bool)))
    assert abs(lag + LEAD - late) < 0.7
    assert correlation > 0.6


def test_sound_of_someone_else_says_nothing():
    speech, mouth = talk(0)
    curve = sync_curve(speech, np.roll(mouth, 150), np.ones(FRAMES, bool))
    assert peak_lag(curve)[1] < Limits().min_sync


def test_frames_without_a_face_do_not_count():
    speech, mouth = talk(0)
    valid = np.ones(FRAMES, bool)
    valid[100:200] = False
    mouth[100:200] = 50
    assert peak_lag(sync_curve(speech, mouth, valid))[1] > 0.6


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
    assessment = assess(GOOD, Limits())
    assert not assessment.failures and not assessment.warnings


def test_what_was_not_measured_is_not_judged():
    facts = {"rejected": {}, "blinks": 3, "valid_percent": 100.0, "usable_seconds": 60.0}
    assessment = assess(facts, Limits())
    assert not assessment.failures and not assessment.warnings


FAILURES = {
    "valid_percent": ({"valid_percent": 70.0}, ["70 %", "no face (12 frames)", "at least 80"]),
    "usable_seconds": ({"usable_seconds": 2.0}, ["2.0 s", "at least 3", "longer clip"]),
    "held_out_frames": ({"held_out_frames": 2}, ["held-out", "up to its end"]),
    "residual": ({"residual_percent_of_face": 1.0}, ["1.00 %", "track_overlay.mp4"]),
    "c1": ({"c1_px_at_250": 0.3}, ["jitters", "0.30 px"]),
    "c5": ({"c5_px_at_250": 1.2}, ["jitters", "1.20 px"]),
    "person": ({"worst_shot_ratio": 2.0}, ["2.0 times", "a different person"]),
    "rival": ({"rival_percent": 50.0}, ["Another face", "Crop"]),
    "mouth": ({"mouth_range": 0.01}, ["hardly moves"]),
    "tone": ({"level_range_db": 0.4}, ["does not sound like speech", "0.4 dB"]),
    "unrelated": ({"sync_correlation": 0.1, "sync_z": 1.0}, ["mouth does not move with the audio"]),
    "lag": (
        {"sync_lag_frames": 5.2, "sync_lag_z": 3.0},
        ["lags the video by 5.2 frames", "`audio: {lag_frames: 5}`"],
    ),
    "background": ({"background_change_percent": 40.0}, ["40 %", "fixed camera"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_limit_has_a_reason_and_advice(name: str):
    values, words = FAILURES[name]
    assessment = assess(GOOD | {"rejected": {"no face": 12}} | values, Limits())
    assert len(assessment.failures) == 1 and assessment.failures[0].endswith(".")
    assert all(word in assessment.failures[0] for word in words), assessment.failures


WARNINGS = {
    "yaw_range_degrees": (2.0, "turns by only 2.0 degrees"),
    "focal_at_bound": (True, "focal_px"),
    "blinks": (0, "No blink"),
    "usable_seconds": (7.0, "Only 7.0 s of the clip are tracked"),
    "cut_by_border": (3, "cuts off the face in 3 frames"),
}


@pytest.mark.parametrize(("frames", "refused"), [(1500, True), (200, True), (125, False)])
def test_a_short_clip_is_not_refused_for_what_it_cannot_show(frames: int, refused: bool):
    facts = GOOD | {"sync_frames": frames, "sync_correlation": 0.3, "sync_z": 1.5}
    assessment = assess(facts, Limits())
    assert bool(assessment.failures) == refused
    assert refused or "too short to verify" in assessment.warnings[0]


@pytest.mark.parametrize(
    ("frames", "z", "lag", "refused"),
    [
        (200, 2.0, 0.5, False),
        (200, 2.0, 5.0, True),
        (200, 1.5, 0.5, True),
        (500, 2.0, 0.5, True),
    ],
)
def test_weak_evidence_at_the_right_lag_is_a_warning_on_short_clips(
    frames: int, z: float, lag: float, refused: bool
):
    facts = GOOD | {"sync_frames": frames, "sync_z": z, "sync_lag_frames": lag}
    assessment = assess(facts, Limits())
    assert bool(assessment.failures) == refused
    assert refused or "too short to verify" in assessment.warnings[0]


def test_below_three_seconds_nothing_is_said_about_the_audio():
    speech, mouth = talk(0)
    facts = sync_facts(speech, mouth, np.arange(FRAMES) < 70)
    assert all(value is None for value in facts.values())
    assessment = assess(GOOD | facts, Limits())
    assert not assessment.failures and "too short to verify" in assessment.warnings[0]


@pytest.mark.parametrize("frames", [200, 400])
def test_unrelated_audio_seldom_stands_out_from_chance(frames: int):
    """The rate of false positives for 40 pairs of independent signals is near the stated 2 %."""
    passed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        slots = gaussian_filter1d(rng.normal(size=(frames, 16, 8)), 2, axis=0)
        mouth = gaussian_filter1d(rng.normal(size=frames), 2)
        z = sync_facts(slots, mouth, np.ones(frames, bool))["sync_z"]
        passed += z is not None and z >= SURE_Z
    assert passed <= 6


def test_the_right_audio_stands_out_from_chance():
    facts = sync_facts(*talk(0, noise=2.0), np.ones(FRAMES, bool))
    assert facts["sync_z"] is not None and facts["sync_z"] > 2 * SURE_Z


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings_do_not_stop(name: str):
    value, words = WARNINGS[name]
    assessment = assess(GOOD | {name: value}, Limits())
    assert not assessment.failures
    assert len(assessment.warnings) == 1 and words in assessment.warnings[0]


def test_uncertain_lag_is_a_warning_only():
    assessment = assess(GOOD | {"sync_lag_frames": -4.0, "sync_lag_z": 0.5}, Limits())
    assert not assessment.failures and "may lead the video by 4.0" in assessment.warnings[0]
    assessment = assess(GOOD | {"sync_lag_frames": 2.5, "sync_lag_z": 3.0}, Limits())
    assert not assessment.failures and "seems to lag the video by 2.5" in assessment.warnings[0]
