"""The sync score detects delays and unrelated mouths, and reports when it is unreliable."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from talker.dataset import Dataset
from talker.encoders import sync_encoder
from talker.head.landmarks68 import mouth_shape
from talker.measure.sync import Predictor, fit_predictor, sync_score
from talker.media.audio import WavFile, clip_sound, write_wav

FRAMES = 500


def faces(opening: np.ndarray) -> np.ndarray:
    """68 landmarks whose lips, mouth corners and chin follow `opening` [T]."""
    marks = np.zeros((len(opening), 68, 2))
    marks[:, 45, 0] = 100
    marks[:, 62, 1], marks[:, 66, 1] = 60 - 10 * opening, 60 + 10 * opening
    marks[:, 48, 0], marks[:, 54, 0] = 20 + 5 * opening, 80 - 5 * opening
    marks[:, 8, 1] = 120 + 20 * opening
    return marks


@pytest.fixture(scope="module")
def opening() -> np.ndarray:
    random = np.random.default_rng(0)
    return np.clip(np.convolve(random.normal(size=FRAMES + 8), np.ones(5), "same")[4:-4], 0, None)


@pytest.fixture(scope="module")
def wav(opening: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that is as loud as the mouth is open."""
    loud = np.interp(np.arange(FRAMES * 640) / 640 - 0.5, np.arange(FRAMES), opening)
    noise = np.random.default_rng(1).normal(size=len(loud))
    path = tmp_path_factory.mktemp("sync") / "aud.wav"
    write_wav(path, np.clip(noise * (1500 * loud + 20), -32768, 32767).astype(np.int16))
    return path


@pytest.fixture(scope="module")
def data(dataset: Path, wav: Path, opening: np.ndarray) -> Dataset:
    marks = faces(opening).astype(np.float32)
    return dataclasses.replace(
        Dataset.load(dataset, 64),
        folder=wav.parent,
        landmarks=marks,
        valid=np.ones(FRAMES, bool),
        train_ids=np.arange(350),
        val_ids=np.arange(380, FRAMES),
    )


@pytest.fixture(scope="module")
def predicted(data: Dataset, wav: Path) -> np.ndarray:
    predictor = fit_predictor(data)
    assert isinstance(predictor, Predictor)
    shapes = predictor.shapes(WavFile(wav))
    assert shapes.shape == (FRAMES, 3)
    assert np.isfinite(shapes).mean() > 0.9
    return shapes[380:]


@pytest.mark.parametrize("late", [-6, -1, 0, 2, 5])
def test_a_delay_is_found(predicted: np.ndarray, opening: np.ndarray, late: int) -> None:
    seen = faces(np.roll(opening, late))[380:]
    score = sync_score(predicted, seen)
    assert score["best_lag"] == late
    assert score["best_correlation"] > 0.6
    if late == 0:
        assert score["correlation"] == score["best_correlation"]
        assert score["null_share"] == pytest.approx(1 / 51)
        assert score["correlation"] > score["null_mean"] + 3 * score["null_sd"]


def test_a_deaf_mouth_scores_as_its_null(predicted: np.ndarray, opening: np.ndarray) -> None:
    score = sync_score(predicted, faces(opening[:120]))
    assert abs(score["correlation"]) < 0.35
    assert abs(score["correlation"] - score["null_mean"]) < 3 * score["null_sd"]


@pytest.mark.parametrize(
    ("frames", "has_null"), [(60, False), (79, False), (80, True), (100, True)]
)
def test_unrelated_sound_seldom_passes_for_related(frames: int, has_null: bool) -> None:
    """With few frames there is no null distribution; with more, 5 % of unrelated sounds pass."""
    random = np.random.default_rng(0)
    shares = []
    for _ in range(60):
        smooth = gaussian_filter1d(random.normal(size=(2, frames + 40)), 1.5, axis=1)[:, 20:-20]
        heard = np.repeat(smooth[0][:, None], 3, axis=1)
        shares.append(sync_score(heard, faces(smooth[1]))["null_share"])
    if has_null:
        assert min(shares) > 0 and np.mean(np.array(shares) <= 0.05) < 0.15
    else:
        assert np.isnan(shares).all()


def test_missing_faces_leave_gaps(predicted: np.ndarray, opening: np.ndarray) -> None:
    seen = faces(opening)[380:]
    seen[30:60] = np.nan
    score = sync_score(predicted, seen)
    assert 80 < score["frames"] <= 90
    assert score["best_lag"] == 0
    assert score["correlation"] > 0.6


def test_too_little_or_a_frozen_mouth_is_no_number(predicted: np.ndarray) -> None:
    few = sync_score(predicted[:30], faces(np.ones(30)))
    assert np.isnan(few["correlation"]) and few["frames"] <= 30
    frozen = sync_score(predicted, faces(np.ones(120)))
    assert np.isnan(frozen["correlation"]) and np.isnan(frozen["best_lag"])


def test_loudness_of_new_sound_does_not_matter(data: Dataset, wav: Path) -> None:
    predictor = fit_predictor(data)
    sound = WavFile(wav)[:]
    loud, quiet = (predictor.shapes((sound * f).astype(np.int16)) for f in (1.0, 0.3))
    both = np.isfinite(loud[:, 0]) & np.isfinite(quiet[:, 0])
    assert np.corrcoef(loud[both, 0], quiet[both, 0])[0, 1] > 0.97
    assert abs(loud[both].mean() - quiet[both].mean()) < 0.2


def test_pauses_say_nothing(data: Dataset, wav: Path, opening: np.ndarray) -> None:
    """A closed mouth in ten seconds of silence does not change the score."""
    predictor = fit_predictor(data)
    sound = WavFile(wav)[380 * 640 :]
    gap = np.zeros(250 * 640, np.int16)
    shapes = predictor.shapes(np.concatenate([sound, gap]))
    assert np.isnan(shapes[140:360]).all()
    seen = faces(np.concatenate([opening[380:], np.zeros(250)]))
    score = sync_score(shapes, seen)
    assert score["frames"] < 140
    assert score["correlation"] > 0.6 and score["best_lag"] == 0


@pytest.mark.parametrize("driver", ["hama", "mel", "hubert", "deepspeech"])
def test_the_score_hears_with_other_ears_than_the_avatar(driver: str) -> None:
    assert sync_encoder(driver) != driver


def own_score(data: Dataset) -> dict[str, float]:
    """The score of the real held-out frames with the clip's own sound."""
    ids = data.val_ids
    predicted = fit_predictor(data, "hama").shapes(clip_sound(data.folder / "aud.wav", data.frames))
    return sync_score(predicted[ids], data.landmarks[ids])


def test_a_clip_s_own_sync(data: Dataset, wav: Path, tmp_path: Path) -> None:
    whole = own_score(data)
    assert whole["best_lag"] == 0 and whole["correlation"] > 0.5
    write_wav(tmp_path / "aud.wav", WavFile(wav)[:][::-1].copy())
    foreign = own_score(dataclasses.replace(data, folder=tmp_path))
    assert foreign["correlation"] < whole["correlation"] - 0.3
    write_wav(tmp_path / "aud.wav", WavFile(wav)[:-500])
    ragged = own_score(dataclasses.replace(data, folder=tmp_path))
    assert ragged["correlation"] == pytest.approx(whole["correlation"], abs=0.05)
    short = own_score(dataclasses.replace(data, val_ids=np.arange(30)))
    assert np.isnan(short["correlation"])


def test_shapes_do_not_depend_on_size_or_place() -> None:
    marks = faces(np.linspace(0, 1, 10))
    np.testing.assert_allclose(mouth_shape(3 * marks + 17), mouth_shape(marks))
