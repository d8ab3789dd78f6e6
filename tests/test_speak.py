"""Live speech gives the same frames as offline rendering, for any pieces of sound, in time."""

import io
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from talker.avatar.model import Avatar
from talker.clip import SAMPLES_PER_FRAME
from talker.core.parallel import one_thread
from talker.dataset import Dataset
from talker.encoders import Choice, Encoder
from talker.encoders.features import FeatureStats, avatar_features, extract, fit_stats, windows
from talker.encoders.loudness import slot_levels
from talker.encoders.mel import load
from talker.errors import UserError
from talker.media.audio import write_wav
from talker.tools import speak as stage
from talker.tools.speak import Config, StreamingAvatar, measure_latency, raw_frames, speak


class Listener(Avatar):
    """Renders gray frames and records the windows that it receives, in their order."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.device_of = nn.Parameter(torch.zeros(1))
        self.windows: list[torch.Tensor] = []

    def shared(self) -> None:
        return None

    def speech_to_expression(self, windows):
        self.windows.extend(windows)
        return windows.flatten(1)

    def render_from_expression(self, expression, eye, viewmats, Ks, height, width, shared):
        shape = len(expression), height, width
        return torch.full((*shape, 3), 0.5), torch.ones(*shape, 1)


@pytest.fixture(autouse=True)
def in_order() -> Iterator[None]:
    """Frames are rendered by as many threads as torch has: with one they come to `Listener` so."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return Dataset.load(dataset, 32)


def syllables(frames: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    t = np.arange(frames * 640) / 16_000
    loud = 3000 * np.maximum(np.sin(2 * np.pi * 3 * t), 0) ** 2
    loud[(t > 3) & (t < 4.5)] = 0
    tone = np.sin(2 * np.pi * np.cumsum(300 + 200 * np.sin(7 * t)) / 16_000)
    return np.round((tone + 0.2 * random.normal(size=len(t))) * loud).astype(np.int16)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load(Choice("mel"), None)


@pytest.fixture(scope="module")
def learned(encoder: Encoder) -> FeatureStats:
    sound = syllables(200)
    slots = np.concatenate(list(extract(encoder, sound)))
    return fit_stats(slots, slot_levels(sound), encoder, Choice("mel"), 12, 2, 0.3)


def streaming_avatar(data, encoder, learned, **options) -> StreamingAvatar:
    return StreamingAvatar(Listener(), data, encoder, learned, Config(**options))


@pytest.mark.parametrize("block", [160, 640, 1000, 16_000])
def test_live_windows_are_those_of_the_whole(data, encoder, learned, block: int) -> None:
    """Mel has no context, so only the loudness, which is estimated step by step, can differ."""
    sound = syllables(200, seed=0)
    streaming = streaming_avatar(data, encoder, learned)
    frames = 0
    for start in range(0, len(sound), block):
        frames += sum(1 for _ in streaming.push_audio(sound[start : start + block]))
    live = frames
    frames += sum(1 for _ in streaming.finish())
    assert frames == 200
    assert live >= 185
    whole = np.concatenate(list(windows(avatar_features(encoder, learned, sound), 2)))
    found = torch.stack(streaming.avatar.windows).numpy()
    assert found.shape == whole.shape
    off = np.abs(found - whole).max((1, 2))
    assert np.median(off[40:]) < 0.2
    assert np.corrcoef(found[40:190].ravel(), whole[40:190].ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    "options", [{"past": 0.5, "ahead": 2.0}, {"past": 0.5, "hop": 60}, {"ahead": 6.0}]
)
@pytest.mark.parametrize("block", [640, 200 * 640])
def test_whatever_it_waits_for_is_kept(data, encoder, learned, options, block: int) -> None:
    sound = syllables(250)
    streaming = streaming_avatar(data, encoder, learned, **options)
    for start in range(0, len(sound), block):
        list(streaming.push_audio(sound[start : start + block]))
    list(streaming.finish())
    whole = np.concatenate(list(windows(avatar_features(encoder, learned, sound), 2)))
    found = torch.stack(streaming.avatar.windows).numpy()
    assert found.shape == whole.shape
    assert np.corrcoef(found[60:240].ravel(), whole[60:240].ravel())[0, 1] > 0.97


def test_a_frame_comes_within_the_promised_time(data, encoder, learned) -> None:
    streaming = streaming_avatar(data, encoder, learned, hop=1, ahead=0.1)
    shown = 0
    for k in range(100):
        shown += sum(1 for _ in streaming.push_audio(np.zeros(640, np.int16)))
        received, rendered = (k + 1) * 0.04, shown * 0.04
        assert received - rendered <= streaming.latency + 1e-6
    assert streaming.latency == pytest.approx(0.22 + 0.1 + 0.04)


@pytest.mark.parametrize("samples", [0, 1, 640, 1600, 6400])
def test_short_sounds_have_their_frames(data, encoder, learned, samples: int) -> None:
    streaming = streaming_avatar(data, encoder, learned)
    frames = list(streaming.push_audio(np.zeros(samples, np.int16))) + list(streaming.finish())
    assert len(frames) == -(-samples // SAMPLES_PER_FRAME)
    for frame in frames:
        assert frame.shape == (data.height, data.width, 3)


def test_nothing_that_was_heard_long_ago_is_kept(data, encoder, learned) -> None:
    streaming = streaming_avatar(data, encoder, learned)
    sizes = []
    for k in range(4):
        for start in range(0, 150 * 640, 640):
            list(streaming.push_audio(syllables(150, k)[start : start + 640]))
        streaming.avatar.windows.clear()
        sizes.append((len(streaming.audio), len(streaming.slots), len(streaming.levels)))
    assert sizes[1] == sizes[2] == sizes[3]
    assert len(streaming.audio) < 6 * 16_000


def test_pcm_goes_in_and_raw_frames_come_out(data, encoder, learned) -> None:
    sound, picture = io.BytesIO(syllables(60).astype("<i2").tobytes()), io.BytesIO()
    frames = speak(streaming_avatar(data, encoder, learned), sound, raw_frames(picture))
    assert frames == 60
    assert len(picture.getvalue()) == 60 * data.height * data.width * 3


def test_a_label_is_drawn_into_every_frame(data, encoder, learned) -> None:
    plain, labeled = (
        list(streaming_avatar(data, encoder, learned, label=label).push_audio(syllables(20)))
        for label in ("", "Synthetic")
    )
    assert len(plain) == len(labeled) > 5
    for one, other in zip(plain, labeled, strict=True):
        rows, columns = np.nonzero((one != other).any(-1))
        assert len(rows) > 20 and rows.mean() > len(one) / 2 and columns.min() <= 2


def test_a_socket_serves_one_client(
    data, encoder, learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming = streaming_avatar(data, encoder, learned)
    monkeypatch.setattr(stage, "load_streaming_avatar", lambda *_: streaming)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = threading.Thread(
        target=stage.main, kwargs={"data": tmp_path, "avatar": tmp_path, "port": port}
    )
    serving.start()
    for _ in range(100):
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            break
        except ConnectionRefusedError:
            serving.join(0.05)
    with client:
        client.sendall(syllables(20).astype("<i2").tobytes())
        client.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    serving.join(10)
    assert len(received) == 20 * data.height * data.width * 3


class Closed(io.BytesIO):
    """A viewer that is closed after ten frames."""

    def flush(self) -> None:
        self.frames = getattr(self, "frames", 0) + 1
        if self.frames > 10:
            raise BrokenPipeError


def test_it_ends_when_the_viewer_is_closed(data, encoder, learned, caplog) -> None:
    caplog.set_level(logging.INFO)
    sound = io.BytesIO(syllables(60).astype("<i2").tobytes())
    assert speak(streaming_avatar(data, encoder, learned), sound, raw_frames(Closed())) == 10
    assert "closed the connection" in caplog.text


def test_a_viewer_may_leave_the_socket(
    data, encoder, learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stage, "load_streaming_avatar", lambda *_: streaming_avatar(data, encoder, learned)
    )
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(stage, "_connection", lambda port: theirs)
    ours.sendall(syllables(60).astype("<i2").tobytes())
    ours.close()
    stage.main(data=tmp_path, avatar=tmp_path, port=1)


def test_what_cannot_be_spoken_is_refused(
    data, encoder, learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stage, "load_streaming_avatar", lambda *_: streaming_avatar(data, encoder, learned)
    )

    def refused(complaint: str, **arguments) -> None:
        with pytest.raises(UserError, match=complaint):
            stage.main(data=tmp_path, avatar=tmp_path, **arguments)

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(f"The port {port} cannot be used", port=port)
    refused("The port 70000 cannot be used", port=70_000)
    write_wav(tmp_path / "none.wav", np.zeros(0, np.int16))
    refused(r"none\.wav has .* multiple of the", benchmark=tmp_path / "none.wav")


@pytest.mark.parametrize("options", [{"hop": 0}, {"ahead": -0.1}, {"past": -1.0}], ids=str)
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        Config(**options)


def test_the_benchmark_counts_what_it_waits_for(data, encoder, learned) -> None:
    row = measure_latency(streaming_avatar(data, encoder, learned), syllables(80))
    assert row["frames"] == 80
    assert row["latency_ms_p95"] >= row["waits_ms"] == pytest.approx(400)
    assert 0 < row["real_time_factor"] < 5
