"""Filters of the ffmpeg program: pictures change, timestamps and sound do not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from talker.errors import UserError
from talker.media.audio import decode_audio, write_wav
from talker.media.ffmpeg import filtered
from talker.media.video_reader import probe, read_frames
from talker.media.video_writer import video_writer

pytest.importorskip("ffmpeg")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A second of gray pictures that become brighter, with a tone; its name contains a %."""
    write_wav(tmp_path / "a.wav", (9000 * np.sin(np.arange(16_000) / 5)).astype(np.int16))
    path = tmp_path / "100% gray.mp4"
    with video_writer(path, tmp_path / "a.wav", crf=0) as write:
        for level in range(50, 75):
            write(np.full((64, 96, 3), 2 * level, np.uint8))
    return path


def levels(video: Path) -> np.ndarray:
    return np.array([frame.mean() for frame in read_frames(video, probe(video))])


def test_filters_change_the_pictures_and_nothing_else(video: Path, tmp_path: Path) -> None:
    with filtered(video, "negate", tmp_path / "new") as copy:
        assert levels(copy) == pytest.approx(255 - levels(video), abs=6)  # limited range
        before, after = (
            dataclasses.replace(probe(path), name="", codec="") for path in (video, copy)
        )
        # FFmpeg 5 counts the samples before the start of the sound that AAC adds
        assert after.audio_start == pytest.approx(before.audio_start, abs=0.065)
        assert dataclasses.replace(after, audio_start=before.audio_start) == before
        sounds = [decode_audio(path, 0.0)[:15_000] for path in (copy, video)]
        assert np.array_equal(*sounds)
    assert not copy.exists() and list((tmp_path / "new").iterdir()) == []


def test_filters_may_change_the_size(video: Path, tmp_path: Path) -> None:
    with filtered(video, "crop=48:32:0:0,hue=s=0", tmp_path) as copy:
        assert (probe(copy).width, probe(copy).height) == (48, 32)
        assert levels(copy) == pytest.approx(levels(video), abs=2)


def test_without_filters_the_video_itself_is_read(video: Path, tmp_path: Path) -> None:
    with filtered(video, "", tmp_path) as same:
        assert same == video


def test_what_ffmpeg_cannot_do_is_refused(video: Path, tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=r"apply the filters 'sharpest' to .*gray\.mp4")
    with refused, filtered(video, "sharpest", tmp_path / "new"):
        pass
    assert list((tmp_path / "new").iterdir()) == []
    with (
        pytest.raises(UserError, match=r"none\.mp4"),
        filtered(tmp_path / "none.mp4", "negate", tmp_path),
    ):
        pass
