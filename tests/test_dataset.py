"""Reading a dataset folder against the truth that it was written from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flash import RATE, write_media

from talker.dataset import Dataset, over
from talker.errors import UserError
from talker.media.audio import clip_sound, read_wav, write_wav


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "subject")


def test_every_array_has_a_row_a_frame(dataset: Path) -> None:
    data = Dataset.load(dataset, 64)
    for name in ("viewmats", "speech", "eye", "landmarks", "expression"):
        assert len(getattr(data, name)) == data.frames, name
    assert max(data.height, data.width) == 64
    assert data.eye[:, 0].min() >= 0 and np.abs(data.eye).max() <= 1
    assert len(np.intersect1d(data.train_ids, data.val_ids)) == 0
    assert data.train_ids.max() < data.val_ids.min() == data.frames * 10 // 11


def test_size_scales_pixels_and_nothing_else(dataset: Path) -> None:
    small, large = Dataset.load(dataset, 64), Dataset.load(dataset, 128)
    np.testing.assert_allclose(small.landmarks * 2, large.landmarks, rtol=1e-5)
    np.testing.assert_allclose(small.K[:2] * 2, large.K[:2], rtol=1e-6)
    assert np.array_equal(small.viewmats, large.viewmats)
    assert large.frame(3).shape == (large.height, large.width, 3)


@pytest.mark.parametrize("behind", [0, 1, 127, 254, 255])
def test_layers_are_blended_to_the_nearest_value(behind: int) -> None:
    alpha, value = np.indices((256, 256))
    front = np.dstack([value, 255 - value, value]).astype(np.uint8)
    blended = over(front, np.full_like(front, behind), alpha.astype(np.uint8))
    exact = (front * alpha[..., None] + behind * (255 - alpha[..., None]) + 127) // 255
    assert np.array_equal(blended, exact)


def test_layers_make_the_frame(dataset: Path) -> None:
    """Outside the head, the torso over the plate equals the frame (both were JPEG-coded once)."""
    data = Dataset.load(dataset, 128)
    images = data.images(np.array([0, 5]))
    outside = images.head_mask == 0
    difference = np.abs(images.frame.astype(int) - images.background)[outside]
    assert np.median(difference) <= 4
    inside = images.head_mask == 255
    assert np.abs(images.frame.astype(int) - images.background)[inside].mean() > 10


@pytest.mark.parametrize("more", [-15 * 640, -1, 500, 3 * 640])
def test_sound_of_another_length_is_made_to_fit(folder: Path, more: int) -> None:
    """The folder has the layout of the published scripts."""
    sound = read_wav(folder / "aud.wav")
    write_wav(folder / "aud.wav", np.pad(sound, (0, max(0, more)))[: len(sound) + more])
    found = clip_sound(folder / "aud.wav", Dataset.load(folder, 64).frames)
    assert found.dtype == np.int16 and len(found) == 64_000
    kept = min(len(sound), len(sound) + more)
    assert np.array_equal(found[:kept], sound[:kept]) and not found[kept:].any()


def test_sound_of_another_kind_is_converted(folder: Path) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE)
    codecs = ("", "pcm_s16le")
    write_media(folder / "aud.wav", sound=np.stack([tone, 0 * tone]), codecs=codecs)
    found = clip_sound(folder / "aud.wav", Dataset.load(folder, 64).frames)
    assert len(found) == 64_000
    assert found.std() / 32_768 == pytest.approx(0.15 / np.sqrt(2), rel=0.05)


def test_sound_of_other_frames_is_refused(folder: Path) -> None:
    write_wav(folder / "aud.wav", np.zeros(2 * 16_000, np.int16))
    with pytest.raises(
        UserError, match=r"aud\.wav lasts 2\.00 s, but the frames of the dataset last 4\.00 s"
    ):
        _ = clip_sound(folder / "aud.wav", Dataset.load(folder, 64).frames)


def test_shots_are_those_of_the_tracker(folder: Path) -> None:
    assert Dataset.load(folder, 64).cuts.tolist() == []
    shots = [{"first": 0}, {"first": 40}, {"first": 70}]
    (folder / "track_report.json").write_text(json.dumps({"segments": shots}))
    assert Dataset.load(folder, 64).cuts.tolist() == [40, 70]


def test_wrong_row_count_is_named(folder: Path) -> None:
    np.save(folder / "aud_hama.npy", np.load(folder / "aud_hama.npy")[:-3])
    with pytest.raises(UserError, match=r"aud_hama\.npy has \d+ rows"):
        Dataset.load(folder, 64)


@pytest.mark.parametrize(
    "silence",
    [np.zeros(31, np.float32), np.full(32, np.nan), np.zeros(32, int), np.full(32, -1e30)],
)
def test_statistics_that_do_not_fit_the_windows_are_named(
    folder: Path, silence: np.ndarray
) -> None:
    np.savez(folder / "aud_hama.npz", silence=silence, scale=np.ones(32))
    with pytest.raises(UserError, match=r"aud_hama\.npz has an array 'silence' .* 32 finite"):
        Dataset.load(folder, 64)
    np.savez(folder / "aud_hama.npz", silence=np.ones(32), scale=np.zeros(32))
    with pytest.raises(UserError, match=r"aud_hama\.npz has an array 'scale' .* 32 finite"):
        Dataset.load(folder, 64)


def test_speech_features_that_are_too_large_are_refused(folder: Path) -> None:
    windows = np.load(folder / "aud_hama.npy")
    windows[3, 0, 0] = 1e30
    np.save(folder / "aud_hama.npy", windows)
    with pytest.raises(UserError, match=r"aud_hama\.npy contains values .* above 1e\+06"):
        Dataset.load(folder, 64)


def test_missing_pose_file_says_who_writes_it(folder: Path) -> None:
    (folder / "track_params.pt").unlink()
    with pytest.raises(UserError, match="talker track"):
        Dataset.load(folder, 64)


def test_a_published_folder_loads(folder: Path) -> None:
    """DeepSpeech windows, no clip.json, no landmarks.npz, OpenFace's column name without blank."""
    frames = Dataset.load(folder, 64).frames
    np.save(folder / "aud_ds.npy", np.zeros((frames, 16, 29)))
    for name in ("clip.json", "landmarks.npz", "aud_hama.npy"):
        (folder / name).unlink()
    table = (folder / "au.csv").read_text()
    (folder / "au.csv").write_text(table.replace(" AU45_r", "AU45_r"))
    assert Dataset.load(folder, 64, "deepspeech").speech.shape == (frames, 16, 29)
