"""Videos are read by their timestamps, upright and complete; written videos can be read."""

import itertools
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from flash import write_media

from talker.errors import UserError
from talker.media import video_writer as writer_module
from talker.media.audio import decode_audio, read_wav, write_wav
from talker.media.video_reader import frame_count, probe, read_frames
from talker.media.video_writer import video_writer

SECOND = np.arange(16_000) / 16_000


def even_times(rate: Fraction, count: int, start: Fraction = Fraction(0)) -> list[Fraction]:
    return [start + i / rate for i in range(count)]


def numbered(count: int) -> list[np.ndarray]:
    """Return pictures that encode their number: eight bits from left to right, white for 1."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    lines = 255 * np.repeat(bits, 8, axis=1).astype(np.uint8)
    return list(np.broadcast_to(lines[:, None, :, None], (count, 64, 64, 3)))


def numbers_shown(path) -> np.ndarray:
    pictures = np.stack(list(read_frames(path, probe(path))))
    bits = pictures.mean(axis=(1, 3))[:, 4::8] > 128
    return bits @ (1 << np.arange(8))


@pytest.mark.parametrize(
    ("rate", "count"),
    [
        (Fraction(25), 50),
        (Fraction(30_000, 1001), 60),
        (Fraction(30), 60),
        (Fraction(24_000, 1001), 48),
        (Fraction(50), 100),
        (Fraction(60), 100),
        (Fraction(15), 30),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_each_frame_shows_the_instant_it_stands_for(tmp_path, rate, count, suffix):
    path = write_media(tmp_path / f"a{suffix}", even_times(rate, count), numbered(count))
    source = probe(path)
    shown = numbers_shown(path)
    assert source.fps == pytest.approx(float(rate), rel=2e-3)
    assert not source.variable_rate
    assert len(shown) == frame_count(source) == round(float(count / rate * 25))
    instants, pictures = np.arange(len(shown)) / 25, shown / float(rate)
    ahead = pictures - instants
    assert ahead.max() <= 0.5 / max(25, float(rate)) + 1e-3
    assert ahead.min() >= 0.5 / max(25, float(rate)) - 1 / float(rate) - 1e-3


def test_25_fps_passes_through_frame_by_frame(tmp_path):
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(25), 60), numbered(60))
    assert numbers_shown(path).tolist() == list(range(60))


def test_a_gap_in_a_variable_rate_holds_the_picture_before_it(tmp_path):
    times = [Fraction(t, 100) for t in (0, 4, 8, 60, 64, 68)]
    path = write_media(tmp_path / "a.mp4", times, numbered(6))
    assert probe(path).variable_rate
    assert numbers_shown(path).tolist() == [0, 1] + [2] * 13 + [3, 4, 5]


def test_the_first_frame_is_time_zero_wherever_the_file_starts(tmp_path):
    late = even_times(Fraction(25), 50, Fraction(1, 5))
    path = write_media(tmp_path / "a.mkv", late, numbered(50), np.zeros((1, 44_100)))
    source = probe(path)
    assert source.video_start == pytest.approx(0.2)
    assert source.audio_start == pytest.approx(0.0)
    assert source.duration == pytest.approx(2.0, abs=2e-3)
    assert numbers_shown(path).tolist() == list(range(50))


def test_every_nth_frame_is_the_same_picture_as_in_the_whole(tmp_path):
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(30), 60), numbered(60))
    source = probe(path)
    whole, some = list(read_frames(path, source)), list(read_frames(path, source, every=7))
    assert len(some) == -(-len(whole) // 7)
    assert all(np.array_equal(a, b) for a, b in zip(some, whole[::7], strict=True))


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "half", "anticlockwise"],
)
def test_a_rotated_video_comes_out_upright(tmp_path, matrix, turns):
    stored = np.zeros((48, 96, 3), np.uint8)
    stored[:24, :48], stored[24:, 48:] = (255, 0, 0), (0, 0, 255)
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(25), 10), [stored] * 10)
    turn_track(path, matrix)
    source = probe(path)
    frame = next(read_frames(path, source))
    upright = np.rot90(stored, turns)
    assert frame.shape == upright.shape == (source.height, source.width, 3)
    assert np.abs(frame.astype(int) - upright).mean() < 6


def turn_track(path, matrix):
    """Put a display matrix (a, b, c, d) into the header of an mp4's first track."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    assert (
        content[at : at + 36]
        == np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    )
    content[at : at + 36] = values.tobytes()
    path.write_bytes(content)


def test_pixels_that_are_not_square_are_scaled(tmp_path):
    wide = even_times(Fraction(25), 10)
    path = write_media(tmp_path / "a.mp4", wide, numbered(10), aspect=Fraction(3, 2))
    source = probe(path)
    assert (source.width, source.height) == (96, 64)
    assert next(read_frames(path, source)).shape == (64, 96, 3)


def test_a_video_may_have_no_sound_and_says_so(tmp_path):
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(25), 10), numbered(10))
    assert probe(path).audio_start is None


@pytest.mark.parametrize("content", [None, b"", b"No video, only text.\n" * 100])
def test_what_is_no_video_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4 cannot be read as a video"):
        probe(path)


def test_a_single_frame_is_a_short_video(tmp_path):
    with video_writer(tmp_path / "a.mp4") as write:
        write(np.zeros((64, 64, 3), np.uint8))
    source = probe(tmp_path / "a.mp4")
    assert (source.fps, frame_count(source)) == (25, 1)
    assert len(list(read_frames(tmp_path / "a.mp4", source))) == 1


def test_a_sound_file_is_no_video(tmp_path):
    write_wav(tmp_path / "a.wav", np.zeros(640, np.int16))
    with pytest.raises(UserError, match="contains no video stream"):
        probe(tmp_path / "a.wav")


def noisy(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (count, 64, 64, 3), np.uint8))


def test_a_truncated_video_is_refused(tmp_path):
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(25), 75), noisy(75))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"is damaged. It declares a duration of 3\.0 s"):
        probe(path)


def test_damaged_frames_are_refused_with_their_time(tmp_path):
    path = write_media(tmp_path / "a.mp4", even_times(Fraction(25), 75), noisy(75))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged after [01]\.\d\d s"):
        list(read_frames(path, probe(path)))


def read_back(path) -> tuple[np.ndarray, dict[str, float]]:
    with av.open(str(path)) as container:
        lasts = {s.type: float(s.duration * s.time_base) for s in container.streams}
    return np.stack(list(read_frames(path, probe(path)))), lasts


def test_written_frames_come_back_in_order_and_colour(tmp_path):
    height, width = 48, 80
    frames = np.zeros((30, height, width, 3), np.uint8)
    frames[:, :, :40] = (200, 30, 60)
    frames[:, :, 40:, 1] = 8 * np.arange(30)[:, None, None]
    with video_writer(tmp_path / "a.mp4", crf=10) as write:
        for frame in frames:
            write(frame)
    found, _ = read_back(tmp_path / "a.mp4")
    assert found.shape == frames.shape
    away_from_the_edge = np.r_[0:36, 44:80]
    assert np.abs(found.astype(int) - frames)[:, :, away_from_the_edge].max() <= 6


def test_an_odd_size_grows_by_a_repeated_pixel(tmp_path):
    with video_writer(tmp_path / "a.mp4", crf=1) as write:
        for picture in numbered(5):
            write(np.ascontiguousarray(picture[:33, :47]))
    found, _ = read_back(tmp_path / "a.mp4")
    assert found.shape == (5, 34, 48, 3)
    assert np.abs(found[:, :33, :47].astype(int) - np.stack(numbered(5))[:, :33, :47]).max() < 10
    assert np.abs(found[:, :, 47].astype(int) - found[:, :, 46]).max() < 10


@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.0])
def test_sound_lies_under_its_frames_and_ends_with_them(tmp_path, seconds):
    beep = np.zeros(round(seconds * 16_000))
    beep[8_000:9_600] = np.sin(2 * np.pi * 1000 * SECOND[:1600])
    write_wav(tmp_path / "a.wav", (20_000 * beep).astype(np.int16))
    with video_writer(tmp_path / "a.mp4", tmp_path / "a.wav") as write:
        for picture in numbered(50):
            write(picture)
    _, lasts = read_back(tmp_path / "a.mp4")
    assert lasts["video"] == pytest.approx(2.0)
    assert lasts["audio"] == pytest.approx(min(seconds, 2.0), abs=0.04)
    heard = decode_audio(tmp_path / "a.mp4", 0.0)
    assert np.flatnonzero(np.abs(heard) > 5000)[0] == pytest.approx(8000, abs=80)


def test_the_same_frames_give_the_same_file(tmp_path):
    write_wav(tmp_path / "a.wav", (9000 * np.sin(4000 * SECOND)).astype(np.int16))
    for name in ("a.mp4", "b.mp4"):
        with video_writer(tmp_path / name, tmp_path / "a.wav") as write:
            for picture in noisy(25):
                write(picture)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


GROUP = 8
"""Number of frames in a group of pictures, instead of 250."""


@pytest.fixture
def short_groups(monkeypatch):
    """Encode groups of 8 frames on a machine with many cores."""
    formats = {s: replace(f, group=GROUP) for s, f in writer_module.FORMATS.items()}
    monkeypatch.setattr(writer_module, "FORMATS", formats)
    monkeypatch.setitem(writer_module.CODECS, "libx264", formats[".mp4"])
    monkeypatch.setattr(writer_module, "usable_cores", lambda: 64)


def write_numbered(path: Path, count: int, sound: Path | None = None) -> Path:
    with video_writer(path, sound, crf=10) as write:
        for picture in numbered(count):
            write(picture)
    return path


def video_packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov"])
@pytest.mark.parametrize("count", [1, 2 * GROUP, 5 * GROUP + 1, 5 * GROUP + 2])
def test_groups_of_pictures_are_joined_in_order(short_groups, tmp_path, suffix, count):
    path = write_numbered(tmp_path / f"a{suffix}", count)
    assert numbers_shown(path).tolist() == list(range(count))
    packets = video_packets(path)
    stamps = [packet.pts * packet.time_base * 25 for packet in packets]
    assert sorted(stamps) == list(range(count))
    decoded = [packet.dts for packet in packets]
    assert decoded == sorted(set(decoded))
    keys = [n for n, packet in zip(stamps, packets, strict=True) if packet.is_keyframe]
    assert set(range(0, count, GROUP)) <= set(keys)


def test_a_video_starts_with_the_headers_and_reference_frames_of_one_encoder(
    short_groups, tmp_path
):
    """Otherwise players that read the headers only once would show errors after a group."""
    path = write_numbered(tmp_path / "a.mp4", 4 * GROUP)
    packets = video_packets(path)
    assert any(packet.pts != packet.dts for packet in packets)  # there are B-frames
    assert [b"x264" in bytes(packet) for packet in packets].count(True) == 4
    kinds = {nal[0] & 31 for packet in packets for nal in nal_units(bytes(packet))}
    assert kinds == {1, 5, 6}  # slices and SEI: no group carries headers of its own


def nal_units(packet: bytes) -> list[bytes]:
    """Split a packet of H.264 in an .mp4, where each unit follows its length."""
    units = []
    while packet:
        length = int.from_bytes(packet[:4], "big")
        units.append(packet[4 : 4 + length])
        packet = packet[4 + length :]
    return units


def test_each_group_can_be_decoded_alone(short_groups, tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 4 * GROUP)
    whole = list(read_frames(path, probe(path)))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for first in range(0, 4 * GROUP, GROUP):
            container.seek(int((first + 3) / 25 / stream.time_base), stream=stream)
            frames = [f for _, f in zip(range(GROUP), container.decode(stream), strict=False)]
            assert [round(25 * f.time) for f in frames] == list(range(first, first + GROUP))
            shown = [f.to_ndarray(format="rgb24").astype(int) for f in frames]
            assert all(
                np.abs(a - b).max() <= 2
                for a, b in zip(shown, whole[first : first + GROUP], strict=True)
            )


@pytest.fixture
def short_audio_groups(monkeypatch):
    """Encode groups of 12 packets of audio."""
    for name, value in {"AUDIO_GROUP": 12, "LEAD_IN": 8}.items():
        monkeypatch.setattr(writer_module, name, value)


def test_groups_of_audio_packets_are_joined_without_a_gap(short_audio_groups, tmp_path):
    """The noise near the joints must not be larger than that of one encoder."""
    random = np.random.default_rng(0)
    tones = sum(np.sin(2 * np.pi * f * np.arange(160_000) / 16_000) for f in (150, 420, 1300))
    speech = 3000 * tones * (1.2 + np.sin(np.arange(160_000) / 2000))
    samples = (speech + random.normal(0, 100, len(speech))).astype(np.int16)
    write_wav(tmp_path / "a.wav", samples)
    path = write_numbered(tmp_path / "a.mp4", 250, tmp_path / "a.wav")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    assert {b.pts - a.pts for a, b in itertools.pairwise(packets)} == {1024}
    assert (packets[0].pts, packets[-1].pts + packets[-1].duration) == (-1024, 160_000)
    decoded = decode_audio(path, 0.0)[:160_000].astype(float)
    noise = np.square(decoded - samples[: len(decoded)])[: 1024 * 150].reshape(-1, 1024).mean(1)
    assert 10 * np.log10(np.square(samples.astype(float)).mean() / noise[2:].max()) > 25


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov"])
def test_every_kind_of_audio_ends_with_the_frames(short_audio_groups, tmp_path, suffix):
    beep = np.zeros(80_000)
    beep[56_000:57_600] = 20_000 * np.sin(2 * np.pi * 1000 * SECOND[:1600])
    write_wav(tmp_path / "a.wav", beep.astype(np.int16))
    path = write_numbered(tmp_path / f"a{suffix}", 100, tmp_path / "a.wav")
    heard = decode_audio(path, 0.0)
    assert len(heard) == pytest.approx(64_000, abs=1100)
    assert np.flatnonzero(np.abs(heard) > 5000)[0] == pytest.approx(56_000, abs=80)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mov", "a"])
def test_audio_without_samples_is_refused(tmp_path, name):
    """The video would lack its audio track."""
    write_wav(tmp_path / "none.wav", np.zeros(0, np.int16))
    with pytest.raises(UserError, match=r"none\.wav contains no audio samples"):
        write_numbered(tmp_path / name, 30, tmp_path / "none.wav")
    assert not (tmp_path / name).exists()


def test_the_number_of_cores_does_not_change_a_byte(
    short_groups, short_audio_groups, tmp_path, monkeypatch
):
    write_wav(tmp_path / "a.wav", (9000 * np.sin(4000 * np.tile(SECOND, 2))).astype(np.int16))
    files = set()
    for cores in (1, 6, 64):
        monkeypatch.setattr(writer_module, "usable_cores", lambda cores=cores: cores)
        path = write_numbered(tmp_path / f"{cores}.mp4", 5 * GROUP + 3, tmp_path / "a.wav")
        files.add(path.read_bytes())
    assert len(files) == 1


def test_a_job_on_few_cores_starts_few_encoders(tmp_path, monkeypatch):
    """The size of the machine does not matter, only the cores that the job may use."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {7}, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    encoders = []

    def spy(self, pixels):
        encoders.append(len(self.encoder_threads))
        original(self, pixels)

    original = writer_module._Encoder.write
    monkeypatch.setattr(writer_module._Encoder, "write", spy)
    write_numbered(tmp_path / "a.mp4", 1)
    assert encoders == [1]


def test_waiting_frames_are_limited_by_their_memory(short_groups, tmp_path, monkeypatch):
    """The encoder waits for the last frame, so that all others that may wait do."""
    monkeypatch.setattr(writer_module, "QUEUED_BYTES", 10 * 64 * 64 * 3)
    waiting, enough = [], threading.Event()

    def encode(self, codec, picture, number):
        enough.wait(60)
        return original(self, codec, picture, number)

    def mux(self):
        waiting.append(len(self.pending))
        enough.set()
        mux_next(self)

    original, mux_next = writer_module._Encoder._encode, writer_module._Encoder._mux_next
    monkeypatch.setattr(writer_module._Encoder, "_encode", encode)
    monkeypatch.setattr(writer_module._Encoder, "_mux_next", mux)
    path = write_numbered(tmp_path / "a.mp4", 60)
    assert max(waiting) == writer_module.QUEUED_FRAMES + 10 + 1
    assert numbers_shown(path).tolist() == list(range(60))


@pytest.mark.parametrize("error", [av.error.ExternalError(1, "broken"), KeyboardInterrupt()])
def test_an_error_in_an_encoder_leaves_no_file(short_groups, tmp_path, monkeypatch, error):
    def encode(self, codec, picture, number):
        if number == 2 * GROUP + 1:
            raise error
        return original(self, codec, picture, number)

    original = writer_module._Encoder._encode
    monkeypatch.setattr(writer_module._Encoder, "_encode", encode)
    before = threading.active_count()
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(expected) as caught:
        write_numbered(tmp_path / "a.mp4", 5 * GROUP)
    if expected is UserError:
        assert f"FFmpeg could not write {tmp_path / 'a.mp4'}" in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert threading.active_count() == before


def test_an_interrupted_writer_leaves_no_file(short_groups, tmp_path):
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), video_writer(tmp_path / "a.mp4") as write:
        for number, picture in enumerate(numbered(5 * GROUP)):
            write(picture)
            if number == 3 * GROUP + 1:
                raise KeyboardInterrupt
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert threading.active_count() == before


def test_a_failed_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("before")
    with pytest.raises(ValueError, match="Frame 1 must be"), video_writer(path) as write:
        write(np.zeros((64, 64, 3), np.uint8))
        write(np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(UserError, match="no frame was rendered"), video_writer(path):
        pass
    with pytest.raises(UserError, match=r"none\.wav"), video_writer(path, tmp_path / "none.wav"):
        pass
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["a.mp4"]


def test_a_hardware_encoder_is_used_or_refused_by_name(tmp_path):
    """Most machines of the tests have no NVENC."""
    path = tmp_path / "hardware.mp4"
    try:
        with video_writer(path, codec="h264_nvenc") as write:
            for _ in range(5):
                write(np.full((256, 256, 3), 128, np.uint8))
    except UserError as error:
        assert "The video encoder h264_nvenc does not work on this machine" in str(error)
        assert not path.exists()
    else:
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 5


def test_a_size_that_h264_cannot_hold_is_refused_by_name(tmp_path):
    refused = pytest.raises(UserError, match=r"FFmpeg could not write .*a\.mp4")
    with refused, video_writer(tmp_path / "a.mp4") as write:
        write(np.zeros((2, 20_000, 3), np.uint8))


def test_wav_files_keep_every_sample(tmp_path):
    samples = np.random.default_rng(0).integers(-32_768, 32_768, 1000).astype(np.int16)
    write_wav(tmp_path / "a.wav", samples)
    assert np.array_equal(read_wav(tmp_path / "a.wav"), samples)
