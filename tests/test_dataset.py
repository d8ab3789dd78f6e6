"""Reading a dataset folder against the truth that it was written from."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from talker.dataset import Dataset
from talker.errors import UserError


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "subject")


def test_every_array_has_a_row_a_frame(dataset: Path) -> None:
    data = Dataset.load(dataset, 64)
    for name in ("viewmats", "speech", "eye", "landmarks", "expression"):
        assert len(getattr(data, name)) == data.frames, name
    assert max(data.height, data.width) == 64
    assert data.eye.min() >= 0 and data.eye.max() <= 1
    assert len(np.intersect1d(data.train_ids, data.val_ids)) == 0
    assert data.train_ids.max() < data.val_ids.min() == data.frames * 10 // 11


def test_size_scales_pixels_and_nothing_else(dataset: Path) -> None:
    small, large = Dataset.load(dataset, 64), Dataset.load(dataset, 128)
    np.testing.assert_allclose(small.landmarks * 2, large.landmarks, rtol=1e-5)
    np.testing.assert_allclose(small.K[:2] * 2, large.K[:2], rtol=1e-6)
    assert np.array_equal(small.viewmats, large.viewmats)
    assert large.frame(3).shape == (large.height, large.width, 3)


def test_layers_make_the_frame(dataset: Path) -> None:
    """Outside the head, torso over plate is the frame (both were jpeg-coded once)."""
    data = Dataset.load(dataset, 128)
    images = data.images(np.array([0, 5]))
    outside = images.head_mask == 0
    difference = np.abs(images.frame.astype(int) - images.background)[outside]
    assert np.median(difference) <= 4
    inside = images.head_mask == 255
    assert np.abs(images.frame.astype(int) - images.background)[inside].mean() > 10


def test_wrong_row_count_is_named(folder: Path) -> None:
    np.save(folder / "aud_hama.npy", np.load(folder / "aud_hama.npy")[:-3])
    with pytest.raises(UserError, match=r"aud_hama\.npy: has \d+ rows"):
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
