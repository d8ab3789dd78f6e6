"""New speech from any file gives a video of the same length, or one clear message."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fake_avatar import FakeAvatar
from flash import write_flashes

from talker import audio, evaluate, render, speech
from talker.clip import Clip, Source
from talker.dataset import Dataset
from talker.errors import UserError
from talker.media.audio import read_wav, write_wav
from talker.render import Config

BATCH = 8
KINDS = {
    "s16.wav": ("wav", "pcm_s16le", "s16", 16_000, "mono"),
    "s24.wav": ("wav", "pcm_s24le", "s32", 48_000, "mono"),
    "float.wav": ("wav", "pcm_f32le", "flt", 44_100, "stereo"),
    "stereo.flac": ("flac", "flac", "s16", 44_100, "stereo"),
    "speech.mp3": ("mp3", "libmp3lame", "fltp", 44_100, "stereo"),
    "speech.m4a": ("ipod", "aac", "fltp", 22_050, "mono"),
    "six.flac": ("flac", "flac", "s16", 48_000, "5.1"),
}


def write_sound(path: Path, kind: str, seconds: float, peak: float = 0.5) -> None:
    """Write a tone with vibrato in a sample format; float formats keep peaks above 1."""
    container, codec, sample_format, rate, layout = KINDS[kind]
    t = np.arange(round(rate * seconds)) / rate
    wave = peak * np.sin(2 * np.pi * np.cumsum(300 + 200 * np.sin(9 * t)) / rate)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
        scale = {"s16": 2**15 - 1, "s32": 2**31 - 1}.get(sample_format)
        samples = np.tile(wave, (channels, 1))
        if scale:
            samples = (samples * scale).astype({"s16": np.int16, "s32": np.int32}[sample_format])
        else:
            samples = samples.astype(np.float32)
        if not sample_format.endswith("p"):
            samples = samples.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, sample_format, layout)
        frame.sample_rate = rate
        frame.pts, frame.time_base = 0, Fraction(1, rate)
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, 64)


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Statistics of hama, computed from 4 s of the demo's speech."""
    folder = tmp_path_factory.mktemp("learned")
    write_wav(
        folder / "aud.wav", read_wav(request.config.rootpath / "demo/speech.wav")[: 100 * 640]
    )
    source = Source("me.mp4", 512, 512, 25.0, False, 0, 4.0, 0.0, 0.0, "h264")
    Clip(frames=100, height=512, width=512, source=source).save(folder / "clip.json")
    speech.main(
        wav=folder / "aud.wav",
        clip=folder / "clip.json",
        statistics=folder / "aud_hama.npz",
        features=folder / "aud_hama.npy",
    )
    return folder / "aud_hama.npz"


@pytest.fixture
def spoken(
    dataset: Path,
    data: Dataset,
    statistics: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Return a function that renders a video of a sound file with `audio`, `speech` and
    `render`."""
    monkeypatch.setattr("talker.avatar.bundle.load_avatar", lambda folder: FakeAvatar(data))

    def make(source: Path) -> Path:
        wav, features, video = (tmp_path / f"out.{suffix}" for suffix in ("wav", "npy", "mp4"))
        audio.main(source=source, wav=wav)
        speech.main(wav=wav, statistics=statistics, features=features)
        render.main(
            data=dataset,
            avatar=tmp_path,
            video=video,
            speech=features,
            wav=wav,
            config=Config(batch=BATCH),
        )
        return video

    return make


def frames_of(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def seconds_of_sound(video: Path) -> float:
    with av.open(str(video)) as container:
        frames = list(container.decode(audio=0))
        return sum(frame.samples for frame in frames) / frames[0].sample_rate


@pytest.mark.parametrize("kind", KINDS)
def test_any_format_becomes_a_video_of_its_length(spoken, tmp_path: Path, kind: str) -> None:
    write_sound(tmp_path / kind, kind, 1.5, peak=1.7 if kind.startswith("float") else 0.5)
    video = spoken(tmp_path / kind)
    filled = 1.5 if kind == "speech.m4a" else 0  # AAC comes in blocks of 46 ms
    assert abs(frames_of(video) - 37.5) <= 1.5 + filled
    assert abs(seconds_of_sound(video) - 1.5) < 0.12


@pytest.mark.parametrize(
    "samples",
    [1, 640, 641, 1600, *(n * 640 for n in (BATCH - 1, BATCH, BATCH + 1)), 250 * 640 + 1],
)
def test_any_length_becomes_a_video(spoken, tmp_path: Path, samples: int) -> None:
    noise = np.random.default_rng(0).normal(0, 3000, samples).astype(np.int16)
    write_wav(tmp_path / "a.wav", noise)
    assert frames_of(spoken(tmp_path / "a.wav")) == -(-samples // 640)


@pytest.mark.parametrize("samples", [1, 641])
def test_the_shortest_video_is_judged(
    spoken, dataset: Path, data: Dataset, tmp_path: Path, samples: int, monkeypatch
) -> None:
    monkeypatch.setattr(evaluate, "load_avatar", lambda folder: FakeAvatar(data))
    write_wav(tmp_path / "a.wav", np.full(samples, 3000, np.int16))
    metrics = tmp_path / "metrics.json"
    evaluate.main(data=dataset, avatar=tmp_path, metrics=metrics, video=spoken(tmp_path / "a.wav"))
    assert json.loads(metrics.read_text())["frames"] == -(-samples // 640)


def test_silence_becomes_a_video(spoken, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(30 * 640, np.int16))
    assert frames_of(spoken(tmp_path / "a.wav")) == 30


def test_the_sound_of_a_video_becomes_a_video(spoken, tmp_path: Path) -> None:
    times = [Fraction(i, 30) for i in range(45)]
    write_flashes(tmp_path / "me.mp4", times, [10, 30])
    assert abs(frames_of(spoken(tmp_path / "me.mp4")) - 37.5) <= 2


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.wav", b"", "cannot be read as audio"),
        ("notes.txt", b"hello, this is text\n" * 20, "cannot be read as audio"),
        ("fake.mp3", b"hello, this is text\n" * 20, "audio"),
        ("cut.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "audio"),
    ],
)
def test_what_is_no_sound_has_one_clear_message(
    spoken, tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{complaint}"):
        spoken(tmp_path / name)
    assert not (tmp_path / "out.wav").exists()


def test_a_wav_without_samples_has_one_clear_message(spoken, tmp_path: Path) -> None:
    write_wav(tmp_path / "none.wav", np.zeros(0, np.int16))
    with pytest.raises(UserError, match=r"none\.wav contains no audio samples"):
        spoken(tmp_path / "none.wav")


def test_an_unknown_file_has_one_clear_message(spoken, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.wav cannot be read"):
        spoken(tmp_path / "nowhere.wav")
