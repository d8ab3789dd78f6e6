"""Videos of the avatar: as many frames as there is speech, in step with their sound."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from fake_avatar import FakeAvatar

from talker import render as stage
from talker.clip import SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.errors import UserError
from talker.media.audio import read_wav, write_wav
from talker.render import Config, speech_drive, split_drive

BATCH = 8


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, 64)


@pytest.fixture(autouse=True)
def fake(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> FakeAvatar:
    avatar = FakeAvatar(data)
    monkeypatch.setattr(stage, "load_avatar", lambda folder: avatar)
    return avatar


def decoded(video: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, H, W, 3] and sound float [S] of an mp4, without the encoder's delay."""
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    sound = []
    with av.open(str(video)) as container:
        for frame in container.decode(audio=0):
            assert frame.pts is not None
            sound.append(frame.to_ndarray()[0])
            if len(sound) == 1:
                skipped = max(0, -frame.pts)
    return np.stack(pictures), np.concatenate(sound)[skipped:]


def speech_of(data: Dataset, frames: int, folder: Path) -> dict[str, Path]:
    """Windows of `frames` frames, the clip's over and over, and noise that is as long."""
    speech, wav = folder / "hello.npy", folder / "hello.wav"
    np.save(speech, data.speech[np.arange(frames) % data.frames])
    noise = np.random.default_rng(0).normal(0, 3000, frames * SAMPLES_PER_FRAME)
    write_wav(wav, noise.astype(np.int16))
    return {"speech": speech, "wav": wav}


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_split_replays_its_frames_and_its_sound(
    dataset: Path, data: Dataset, tmp_path: Path, split: str
) -> None:
    video = tmp_path / "out.mp4"
    config = Config(batch=BATCH, crf=8)
    stage.main(data=dataset, avatar=tmp_path, video=video, split=split, config=config)
    ids = data.val_ids if split == "val" else data.train_ids
    pictures, sound = decoded(video)
    assert len(pictures) == len(ids)
    assert abs(len(sound) - len(ids) * SAMPLES_PER_FRAME) <= SAMPLES_PER_FRAME + 1024
    for k in (0, len(ids) // 2, len(ids) - 1):
        error = np.abs(pictures[k].astype(int) - data.frame(ids[k]))
        assert np.mean(error) < 6
    own = read_wav(dataset / "aud.wav")[ids[0] * SAMPLES_PER_FRAME :]
    length = min(len(sound), len(ids) * SAMPLES_PER_FRAME)
    likeness = np.fft.irfft(
        np.fft.rfft(sound[:length], 2 * length)
        * np.conj(np.fft.rfft(own[:length].astype(float), 2 * length))
    )
    late = int(likeness.argmax())
    late = late - 2 * length if late > length else late
    assert abs(late) < SAMPLES_PER_FRAME / 4


@pytest.mark.parametrize("frames", [1, BATCH - 1, BATCH, BATCH + 1, 120])
def test_novel_speech_of_any_length(
    dataset: Path, data: Dataset, tmp_path: Path, frames: int
) -> None:
    video = tmp_path / "out.mp4"
    speech = speech_of(data, frames, tmp_path)
    stage.main(data=dataset, avatar=tmp_path, video=video, **speech, config=Config(batch=BATCH))
    pictures, sound = decoded(video)
    assert len(pictures) == frames
    assert abs(len(sound) - frames * SAMPLES_PER_FRAME) <= SAMPLES_PER_FRAME + 1024


def test_long_speech_neither_jumps_nor_freezes(data: Dataset) -> None:
    """The head moves on beyond the clip's end, forth and back, and blinks with its frames."""
    windows = np.zeros((3 * data.frames, 16, 32), np.float32)
    drive = speech_drive(data, windows)
    assert len(drive) == len(windows)
    assert set(np.abs(np.diff(drive.frames))) == {1}
    assert set(drive.frames) == set(range(data.frames))
    assert np.array_equal(drive.heard, np.arange(len(windows)))
    assert data.eye[drive.frames[data.frames :]].max() > 0.5


def test_novel_speech_walks_over_the_longest_valid_run(data: Dataset) -> None:
    valid = np.ones(data.frames, bool)
    valid[[20, 70]] = False
    drive = speech_drive(dataclasses.replace(data, valid=valid), data.speech)
    assert set(drive.frames) == set(range(21, 70))


def test_a_split_holds_the_nearest_valid_frame_and_keeps_its_sound(data: Dataset) -> None:
    valid = np.ones(data.frames, bool)
    valid[[30, 31, 32]] = False
    ids = np.flatnonzero(valid[:90])
    drive = split_drive(dataclasses.replace(data, valid=valid, train_ids=ids), "train")
    assert drive.frames[28:35].tolist() == [28, 29, 29, 29, 33, 33, 34]
    assert drive.heard.tolist() == list(range(90))


def test_the_same_twice_is_the_same_file(dataset: Path, data: Dataset, tmp_path: Path) -> None:
    speech = speech_of(data, 10, tmp_path)
    made = []
    for name in ("a.mp4", "b.mp4"):
        stage.main(data=dataset, avatar=tmp_path, video=tmp_path / name, **speech)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("wrong", [{}, {"split": "val", "speech": "x.npy"}, {"speech": "x.npy"}])
def test_what_to_render_must_be_clear(dataset: Path, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match="--split"):
        stage.main(data=dataset, avatar=tmp_path, video=tmp_path / "out.mp4", **wrong)


def test_foreign_speech_is_refused(dataset: Path, data: Dataset, tmp_path: Path) -> None:
    video = tmp_path / "out.mp4"
    speech = speech_of(data, 10, tmp_path)
    np.save(speech["speech"], np.zeros((10, 16, 29), np.float32))
    with pytest.raises(UserError, match=r"hello\.npy: expected speech windows"):
        stage.main(data=dataset, avatar=tmp_path, video=video, **speech)
    np.save(speech["speech"], np.zeros((0, 16, 32), np.float32))
    with pytest.raises(UserError, match="N >= 1"):
        stage.main(data=dataset, avatar=tmp_path, video=video, **speech)
    speech["speech"].write_bytes(b"no array")
    with pytest.raises(UserError, match=r"\.npy"):
        stage.main(data=dataset, avatar=tmp_path, video=video, **speech)
    assert not video.exists()


def test_sound_of_another_length_is_refused(dataset: Path, data: Dataset, tmp_path: Path) -> None:
    speech = speech_of(data, 10, tmp_path)
    write_wav(speech["wav"], np.zeros(12 * SAMPLES_PER_FRAME, np.int16))
    with pytest.raises(UserError, match=r"12\.0 frames.*10 windows"):
        stage.main(data=dataset, avatar=tmp_path, video=tmp_path / "out.mp4", **speech)


def test_no_valid_frame_is_refused(data: Dataset) -> None:
    blind = dataclasses.replace(
        data, valid=np.zeros(data.frames, bool), val_ids=np.empty(0, np.int64)
    )
    with pytest.raises(UserError, match="no frame is valid"):
        speech_drive(blind, data.speech)
    with pytest.raises(UserError, match=r"transforms_val\.json"):
        split_drive(blind, "val")
