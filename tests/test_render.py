"""Videos of the avatar are as long as the speech and in sync with it."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fake_avatar import FakeAvatar, untrained_avatar
from pydantic import ValidationError

from talker import render as stage
from talker.clip import SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.errors import UserError
from talker.media.audio import read_wav, write_wav
from talker.media.images import read_image, write_image
from talker.media.video_writer import video_writer
from talker.render import Config, Tracks, apply_tracks, speech_drive, split_drive
from talker.tools.pack import Config as PackConfig
from talker.tools.pack import main as pack

BATCH = 8


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, 64)


@pytest.fixture(autouse=True)
def fake(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> FakeAvatar:
    avatar = FakeAvatar(data)
    monkeypatch.setattr("talker.avatar.bundle.load_avatar", lambda folder: avatar)
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
    """Return speech windows for `frames` frames by repeating those of the clip, and noise as
    sound."""
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


def test_a_pack_is_rendered_like_its_folder(dataset: Path, tmp_path: Path) -> None:
    pack(data=dataset, pack=tmp_path / "me.zip", config=PackConfig(quality=100))
    found = []
    for data in (dataset, tmp_path / "me.zip"):
        stage.main(data=data, avatar=tmp_path, video=tmp_path / "out.mp4", split="val")
        found.append(decoded(tmp_path / "out.mp4"))
    (pictures, sound), (others, heard) = found
    assert np.abs(pictures.astype(int) - others).mean() < 2
    assert np.array_equal(sound, heard)


def test_an_avatar_of_other_speech_features_is_refused(
    dataset: Path, tmp_path: Path, fake: FakeAvatar
) -> None:
    fake.config.speech_features += 1
    with pytest.raises(UserError, match="channels"):
        stage.main(data=dataset, avatar=tmp_path, video=tmp_path / "out.mp4", split="val")


def test_no_batch_is_negative() -> None:
    with pytest.raises(ValidationError, match="batch"):
        Config(batch=-1)


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


def test_the_given_sound_goes_into_the_video_at_its_own_rate(
    dataset: Path, data: Dataset, tmp_path: Path
) -> None:
    speech = speech_of(data, 25, tmp_path)
    clock = np.arange(48_000) / 48_000
    stereo = np.sin(2 * np.pi * np.outer([440, 15_000], clock)).astype(np.float32)
    sound = tmp_path / "hello.flac"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("flac", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(0.3 * stereo, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode()])
    video = tmp_path / "out.mp4"
    stage.main(data=dataset, avatar=tmp_path, video=video, **speech, sound=sound)
    with av.open(str(video)) as container:
        track = container.streams.audio[0]
        assert (track.rate, track.channels) == (48_000, 2)
    with pytest.raises(UserError, match="--sound can only be used with new speech"):
        stage.main(data=dataset, avatar=tmp_path, video=video, split="val", sound=sound)


def test_long_speech_neither_jumps_nor_freezes(data: Dataset) -> None:
    """After the end of the clip, the head moves back and forth, and blinks."""
    windows = np.zeros((1000, 16, 32), np.float32)
    drive = speech_drive(data, windows)
    assert len(drive) == len(windows)
    assert set(np.abs(np.diff(drive.background_frame_ids))) == {1}
    assert np.ptp(drive.background_frame_ids) > data.frames / 3
    assert np.array_equal(drive.window_ids, np.arange(len(windows)))
    assert drive.eye is not None
    assert drive.eye[data.frames :, 0].max() > 0.5


def test_novel_speech_walks_over_the_longest_valid_run(data: Dataset) -> None:
    valid = np.ones(data.frames, bool)
    valid[[18, 19, 20, 70, 71, 72, 90]] = False
    drive = speech_drive(dataclasses.replace(data, valid=valid), data.speech)
    assert set(drive.background_frame_ids) == set(range(21, 70)), (
        "50 frames are too few to choose among"
    )


def test_blinks_are_the_subject_s_the_recorded_ones_or_none(data: Dataset) -> None:
    windows = np.zeros((400, 16, 32), np.float32)

    def eye(**options) -> np.ndarray:
        found = speech_drive(data, windows, Config(**options))
        assert found.eye is not None
        assert np.array_equal(found.eye[:, 1], data.eye[found.background_frame_ids, 1])
        return found.eye[:, 0]

    recorded = speech_drive(data, windows, Config(blinks="recorded"))
    assert np.array_equal(eye(blinks="recorded"), data.eye[recorded.background_frame_ids, 0])
    assert eye(blinks="none").max() == 0
    assert np.array_equal(eye(seed=1), eye(seed=1))
    assert not np.array_equal(eye(seed=1), eye(seed=2))


def test_a_pose_can_be_held(data: Dataset) -> None:
    drive = speech_drive(data, data.speech, Config(pose_frame=17))
    assert set(drive.background_frame_ids) == {17}
    with pytest.raises(UserError, match=r"`pose_frame` is 100, but the last frame .* is 99\."):
        speech_drive(data, data.speech, Config(pose_frame=100))


def test_scales_and_tracks_change_what_they_say(
    data: Dataset, fake: FakeAvatar, tmp_path: Path
) -> None:
    plain = speech_drive(data, data.speech)
    names = ("pose.csv", "blink.csv", "brows.csv", "mouth.npz")
    tracks = Tracks(*(tmp_path / name for name in names))
    (tmp_path / "pose.csv").write_text("frame\n" + "\n".join(str(i) for i in range(100)))
    (tmp_path / "blink.csv").write_text("blink\n" + "0.5\n" * 100)
    (tmp_path / "brows.csv").write_text("brows\n" + "0.01\n" * 50 + "1\n" * 50)
    np.savez(tmp_path / "mouth.npz", e0=np.arange(100.0))
    drive = apply_tracks(
        plain, fake, data, tracks, Config(blink_scale=0.5, brow_scale=2, expression_scale=2)
    )
    assert np.array_equal(drive.background_frame_ids, np.arange(100))
    assert drive.viewmats is None
    assert drive.eye is not None and set(drive.eye[:, 0]) == {0.25}
    highest = data.eye[data.valid, 1].max()
    assert 0.02 < highest < 1
    assert drive.eye[[0, 99], 1].tolist() == pytest.approx([0.02, highest])
    assert drive.expression is not None and drive.expression[5].tolist() == [5] + [0] * 9
    assert drive.expression_scale == 2
    still = apply_tracks(plain, fake, data, Tracks(), Config(pose_scale=0)).viewmats
    assert still is not None
    assert np.abs(still - still[0]).max() < 1e-5


def test_relaxed_brows_are_the_median_of_the_recording(
    data: Dataset, fake: FakeAvatar, tmp_path: Path
) -> None:
    """The intensities of OpenFace and py-feat are not 0 where the brows are relaxed."""
    eye = data.eye.copy()
    eye[:, 1] = 0.3 + 0.2 * np.linspace(-1, 1, data.frames)
    shifted = dataclasses.replace(data, eye=eye)
    plain = speech_drive(shifted, data.speech)

    def brows(**options) -> np.ndarray:
        found = apply_tracks(plain, fake, shifted, Tracks(brows=track), Config(**options))
        assert found.eye is not None
        return found.eye[:, 1]

    track = None
    recorded = eye[plain.background_frame_ids, 1]
    assert brows(brow_scale=0) == pytest.approx(0.3)
    assert np.array_equal(brows(), recorded)
    assert brows(brow_scale=0.5) == pytest.approx((recorded + 0.3) / 2)
    track = tmp_path / "brows.csv"
    track.write_text("brows\n" + "0\n" * 50 + "-0.1\n" * 25 + "-1\n" * 25)
    assert brows()[[0, 50, 99]] == pytest.approx([0.3, 0.2, 0.1])
    assert brows(brow_scale=0.5)[[0, 50, 99]] == pytest.approx([0.3, 0.25, 0.1])


@pytest.mark.parametrize("lacking", ["recording", "avatar"])
def test_brows_that_cannot_move_are_reported(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    avatar, recording = untrained_avatar(data), data
    if lacking == "avatar":
        for value in avatar.brow_shape[-1].parameters():
            value.data.zero_()
    else:
        recording = dataclasses.replace(data, eye=data.eye * np.float32([1, 0]))
    drive = speech_drive(recording, recording.speech)
    track = tmp_path / "brows.csv"
    track.write_text("brows\n" + "0.1\n" * 100)

    def apply(tracks: Tracks, **options) -> list[str]:
        caplog.clear()
        apply_tracks(drive, avatar, recording, tracks, Config(**options))
        return [record.getMessage() for record in caplog.records]

    with pytest.raises(UserError, match=r"brows\.csv cannot be used\. The brows .* do not move"):
        apply(Tracks(brows=track))
    (warning,) = apply(Tracks(), brow_scale=2)
    assert "`brow_scale` has no effect" in warning
    assert apply(Tracks(), blink_scale=2) == []
    avatar = untrained_avatar(data)
    recording = data
    assert apply(Tracks(brows=track), brow_scale=2) == []


def test_a_split_holds_the_nearest_valid_frame_and_keeps_its_sound(data: Dataset) -> None:
    valid = np.ones(data.frames, bool)
    valid[[30, 31, 32]] = False
    ids = np.flatnonzero(valid[:90])
    drive = split_drive(dataclasses.replace(data, valid=valid, train_ids=ids), "train")
    assert drive.background_frame_ids[28:35].tolist() == [28, 29, 29, 29, 33, 33, 34]
    assert drive.window_ids.tolist() == list(range(90))


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
    with pytest.raises(UserError, match=r"hello\.npy has the shape"):
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
    with pytest.raises(UserError, match="no tracked frame"):
        speech_drive(blind, data.speech)
    with pytest.raises(UserError, match=r"transforms_val\.json"):
        split_drive(blind, "val")


class Flat(FakeAvatar):
    """A red head in the left half of the picture."""

    def render_from_expression(self, expression, eye, viewmats, Ks, height, width, shared):
        alpha = torch.zeros(len(expression), height, width, 1)
        alpha[:, :, : width // 2] = 1
        return alpha * torch.tensor([1.0, 0, 0]), alpha


def rgba(video: Path) -> np.ndarray:
    with av.open(str(video)) as container:
        if video.suffix == ".webm":  # FFmpeg's own decoder of VP9 drops its alpha
            codec = av.CodecContext.create("libvpx-vp9", "r")
            packets = [packet for packet in container.demux(video=0) if packet.size]
            return np.stack([f.to_ndarray(format="rgba") for p in packets for f in codec.decode(p)])
        return np.stack([f.to_ndarray(format="rgba") for f in container.decode(video=0)])


@pytest.mark.parametrize("name", ["out.webm", "out.mov", "out"])
def test_the_background_can_be_transparent(
    dataset: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("talker.avatar.bundle.load_avatar", lambda folder: Flat(data))
    speech = speech_of(data, 5, tmp_path)
    video = tmp_path / name
    config = Config(background="transparent", crf=10)
    stage.main(data=dataset, avatar=tmp_path, video=video, **speech, config=config)
    if name == "out":
        pictures = np.stack([read_image(video / f"{i:05d}.png") for i in range(5)])
        assert read_wav(video / "sound.wav").shape == (5 * SAMPLES_PER_FRAME,)
    else:
        pictures = rgba(video)
    assert pictures.shape == (5, data.height, data.width, 4)
    head, right = pictures[:, :20, :20], pictures[:, :20, -20:]
    assert head[..., 3].min() > 250
    assert np.abs(head[..., :3].reshape(-1, 3).mean(0) - (255, 0, 0)).max() < 12
    assert right[..., 3].max() < 5
    assert pictures[:, -8:, -30:-20, 3].max() > 100, "the torso is there"


def test_an_mp4_cannot_be_transparent(dataset: Path, data: Dataset, tmp_path: Path) -> None:
    speech = speech_of(data, 2, tmp_path)
    config = Config(background="transparent")
    with pytest.raises(
        UserError, match=r"out\.mp4 has a format .* transparency. Use \.webm, \.mov"
    ):
        stage.main(
            data=dataset, avatar=tmp_path, video=tmp_path / "out.mp4", **speech, config=config
        )
    with pytest.raises(
        UserError, match=r"out\.gif has the suffix .* must be one of \.mp4, \.webm, \.mov"
    ):
        stage.main(data=dataset, avatar=tmp_path, video=tmp_path / "out.gif", **speech)


@pytest.mark.parametrize("moving", [False, True])
def test_the_background_can_be_a_picture_or_a_video(
    dataset: Path, data: Dataset, tmp_path: Path, moving: bool
) -> None:
    """A background video of 5 frames, from dark to light green, is repeated."""
    shades = [50, 90, 130, 170, 210]
    pictures = [np.full((48, 96, 3), (0, shade, 0), np.uint8) for shade in shades]
    backdrop = tmp_path / ("green.mp4" if moving else "green.png")
    if moving:
        with video_writer(backdrop, crf=5) as write:
            for picture in pictures:
                write(picture)
    else:
        write_image(backdrop, pictures[0])
    out = tmp_path / "out"
    config = Config(background=str(backdrop), batch=3)
    stage.main(
        data=dataset, avatar=tmp_path, video=out, **speech_of(data, 12, tmp_path), config=config
    )
    corners = [int(read_image(out / f"{i:05d}.png")[:8, :8, 1].mean()) for i in range(12)]
    expected = [shades[i % 5] if moving else shades[0] for i in range(12)]
    assert corners == pytest.approx(expected, abs=8)
    with pytest.raises(UserError, match=r"nowhere\.png does not exist"):
        stage.main(
            data=dataset,
            avatar=tmp_path,
            video=out,
            **speech_of(data, 2, tmp_path),
            config=Config(background=str(tmp_path / "nowhere.png")),
        )


def test_memory_does_not_grow_with_the_speech(
    dataset: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are read when they are needed, and rendered frames are discarded."""
    import tracemalloc

    monkeypatch.setattr("talker.avatar.bundle.load_avatar", lambda folder: Flat(data))
    # groups of a second, so that the longest audio in memory is shorter than both speeches
    monkeypatch.setattr("talker.media.video_writer.AUDIO_GROUP", 16)
    peaks = []
    for frames in (400, 1000):
        speech = speech_of(data, frames, tmp_path)
        tracemalloc.start()
        stage.main(data=dataset, avatar=tmp_path, video=tmp_path / "out.mp4", **speech)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 600 * 1000, "less than a thousandth of a megabyte a frame"
