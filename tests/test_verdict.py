"""The verdict on renderings with known ground truth."""

import numpy as np
import pytest
import yaml
from scipy.ndimage import gaussian_filter1d

from talker.measure.verdict import blink_closing, effective_frames, grade_avatar


def signal(frames: int, seed: int) -> np.ndarray:
    """A mouth opening of unit variance."""
    rng = np.random.default_rng(seed)
    values = gaussian_filter1d(rng.normal(size=frames + 40), 2)[20:-20]
    return (values - values.mean()) / values.std()


def results(
    frames: int,
    follows: float,
    amplitude: float = 0.8,
    lag: float = 0.0,
    lost: int = 0,
    frozen: float = 0.05,
) -> dict:
    """Metrics of an avatar whose mouth correlates by about `follows` with the real one."""
    real = signal(frames, 1)
    noise = [signal(frames, seed) for seed in range(2, 12)]
    noise = [one - real * (one @ real) / frames for one in noise]
    noise = [one / one.std() for one in noise]
    avatar = amplitude * (follows * real + (1 - follows**2) ** 0.5 * noise[0])
    return {
        "held_out": {
            "mouth_correlation": float(np.corrcoef(avatar, real)[0, 1]),
            "mouth_std_ratio": amplitude,
            "best_lag_frames": lag,
            "faces_lost": lost,
            "frames": frames,
        },
        "curves": {
            "mouth_opening": {
                "real": real,
                "avatar": avatar,
                "frozen_mouth": frozen * noise[1],
                "shuffled_audio": noise[2:],
            }
        },
    }


@pytest.mark.parametrize(
    ("avatar", "grade", "words"),
    [
        (results(300, 0.8), "good", "follows the speech"),
        (results(120, 0.8), "good", "follows the speech"),
        (results(400, 0.45), "usable", "only loosely"),
        (results(300, 0.8, amplitude=0.45), "usable", "45 %"),
        (results(75, 0.7), "usable", "The 75 held-out frames cannot show"),
        (results(300, 0.8, lag=5.0), "usable", "5 frames late"),
        (results(300, 0.0), "failed", "does not follow the speech"),
        (results(100, 0.15, amplitude=0.07), "failed", "hardly moves"),
        (results(300, 0.8, amplitude=0.07), "failed", "hardly moves"),
        (results(300, 0.8, lost=200), "failed", "No face was detected in 200 of 300"),
        (
            results(11, 0.15, amplitude=0.07),
            "failed",
            "does not follow the speech, because it hardly moves",
        ),
        (
            results(12, 0.4, amplitude=0.29) | {"responses": {"silence_opening": 0.98}},
            "failed",
            "it stays open in silence, and it moves only 29 %",
        ),
        (
            results(12, 0.4, amplitude=0.29) | {"responses": {"silence_opening": 0.1}},
            "too short to tell",
            "show how the mouth moves: 12",
        ),
        (
            results(12, 0.4, amplitude=30.0) | {"responses": {"silence_opening": 1.2}},
            "too short to tell",
            "show how the mouth moves: 12",
        ),
        (results(20, 0.33, amplitude=0.29, frozen=0.32), "failed", "noise on a frozen mouth"),
        (results(20, 0.33, amplitude=0.4, frozen=0.9), "too short to tell", "moves: 20"),
        (results(20, 0.9), "too short to tell", "show how the mouth moves: 20"),
    ],
)
def test_grades(avatar: dict, grade: str, words: str) -> None:
    verdict = grade_avatar(avatar)
    assert verdict.grade == grade, verdict.text
    assert words in verdict.text
    assert grade == "good" or verdict.advice


@pytest.mark.parametrize(("amplitude", "scale"), [(0.45, 2.0), (0.55, 1.8), (1.6, 0.6)])
def test_the_advice_scales_the_mouth_to_its_real_amplitude(amplitude: float, scale: float) -> None:
    verdict = grade_avatar(results(300, 0.8, amplitude=amplitude))
    (line,) = [line for line in verdict.advice if "expression_scale" in line]
    options = yaml.safe_load(line.split("`")[1])
    assert options == {"options": {"render": {"expression_scale": scale}}}


@pytest.mark.parametrize("frames", [52, 150])
def test_a_deaf_mouth_seldom_passes(frames: int) -> None:
    """Of 40 unrelated mouths at most 5 % may be called usable."""
    grades = []
    for seed in range(40):
        avatar = results(frames, 0.0)
        mouth = signal(frames, 100 + seed)
        avatar["curves"]["mouth_opening"]["avatar"] = mouth
        real = avatar["curves"]["mouth_opening"]["real"]
        avatar["held_out"]["mouth_correlation"] = float(np.corrcoef(mouth, real)[0, 1])
        grades.append(grade_avatar(avatar).grade)
    assert sum(grade in ("good", "usable") for grade in grades) <= 2


def test_neighboring_frames_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 400))
    smooth = gaussian_filter1d(noise, 2)
    assert effective_frames(*noise) > 300
    assert 40 < effective_frames(*smooth) < 120


def test_the_interval_holds_the_correlation_and_shrinks_with_length() -> None:
    widths = []
    for frames in (150, 1500):
        low, high = grade_avatar(results(frames, 0.7)).intervals["correlation"]
        assert low < 0.7 < high
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def eye_opening(frames: int, blinks: int, closing: float, seed: int = 0) -> np.ndarray:
    """Return the eye aspect ratio of open eyes with noise and evenly spaced blinks."""
    opening = 0.3 + np.random.default_rng(seed).normal(0, 0.01, frames)
    for middle in np.linspace(0, frames, blinks + 2)[1:-1].astype(int):
        opening[middle - 1 : middle + 2] -= 0.24 * closing * np.array([0.8, 1, 0.8])
    return opening


@pytest.mark.parametrize(("blinks", "closing"), [(1, 0.1), (4, 0.35)])
def test_eyes_that_do_not_close_are_a_flaw(blinks: int, closing: float) -> None:
    still = results(300, 0.8)
    eyes = still["curves"]["eye_opening"] = {
        "real": eye_opening(300, blinks, 1.0),
        "avatar": eye_opening(300, blinks, closing, seed=1),
    }
    verdict = grade_avatar(still)
    assert verdict.grade == "usable"
    assert "The eyes hardly close in blinks" in verdict.text
    low, high = verdict.intervals["eye_closing"]
    assert low < closing + 0.05 and closing < high
    eyes["avatar"] = eye_opening(300, blinks, 0.9, seed=1)
    assert grade_avatar(still).grade == "good"


def test_eyes_are_not_graded_without_blinks_or_certainty() -> None:
    open_eyes = eye_opening(300, 0, 0.0)
    assert blink_closing(open_eyes, eye_opening(300, 0, 0.0, seed=1)) is None
    noisy = eye_opening(300, 1, 0.3) + np.random.default_rng(2).normal(0, 0.05, 300)
    interval = blink_closing(eye_opening(300, 1, 1.0), noisy)
    assert interval is not None and interval[1] > 0.5
    missing = np.full(300, np.nan)
    assert blink_closing(eye_opening(300, 1, 1.0), missing) is None
