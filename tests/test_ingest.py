"""Every video file gives frames with the same properties, or is refused."""

import os
import re
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from flash import RATE, write_media
from test_video import even_times, numbered, numbers_shown, turn_track

from talker import audio
from talker.clip import Color
from talker.errors import UserError
from talker.media.audio import decode_audio, read_wav, write_wav
from talker.media.color import RgbConverter, describe_color, pq_to_nits
from talker.media.container import open_media
from talker.media.video_reader import frame_count, probe, read_frames
from talker.media.video_writer import video_writer

FIFTY = even_times(Fraction(25), 50)


def smooth_picture(height: int = 128, width: int = 192) -> np.ndarray:
    """RGB uint8 [H, W, 3] with smooth gradients of all colors."""
    y, x = np.mgrid[0:height, 0:width] / (max(height, width) - 1)
    red, green = 0.15 + 0.7 * x, 0.2 + 0.6 * y
    blue = 0.5 + 0.3 * np.sin(6 * x) * np.cos(5 * y)
    return np.round(255 * np.stack([red, green, blue], axis=-1)).astype(np.uint8)


def write_frames(
    path: Path,
    frames: Sequence[av.VideoFrame],
    pixel_format: str = "yuv420p",
    tags: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode frames at 25 fps and tag them with attributes of the codec context."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4", **(options or {})})
        stream.pix_fmt = pixel_format
        stream.width, stream.height = frames[0].width, frames[0].height
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def yuv_frame(rgb: np.ndarray, matrix: str, full: bool = False) -> av.VideoFrame:
    """Return RGB float [H, W, 3] from 0 to 1 as an untagged yuv444p10le frame."""
    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[
        matrix
    ]
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    cb = (rgb[..., 2] - luma) / (2 - 2 * blue)
    cr = (rgb[..., 0] - luma) / (2 - 2 * red)
    if full:
        planes = 1023 * luma, 512 + 1023 * cb, 512 + 1023 * cr
    else:
        planes = 64 + 876 * luma, 512 + 896 * cb, 512 + 896 * cr
    values = np.stack([np.clip(np.round(plane), 0, 1023) for plane in planes]).astype(np.uint16)
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], "yuv444p10le")
    for plane, value in zip(frame.planes, values, strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        rows[:, : value.shape[1]] = value
        plane.update(rows.tobytes())
    return frame


def first_frame(path: Path) -> np.ndarray:
    return next(read_frames(path, probe(path)))


@pytest.mark.parametrize(
    ("matrix", "upright", "rotation", "mirrored"),
    [
        ((-1, 0, 0, 1), lambda x: x[:, ::-1], 0, True),
        ((1, 0, 0, -1), lambda x: x[::-1], 180, True),
        ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1), -90, True),
        ((0, -1, -1, 0), lambda x: x[::-1, ::-1].swapaxes(0, 1), 90, True),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1), -90, False),
        ((2, 0, 0, 2), lambda x: x, 0, False),
        ((0, 0, 0, 0), lambda x: x, 0, False),
    ],
    ids=["mirror", "flip", "transpose", "transverse", "turn", "scale", "singular"],
)
def test_the_whole_display_matrix_is_applied(
    tmp_path, matrix, upright: Callable, rotation, mirrored
):
    stored = smooth_picture(48, 96)
    path = write_media(tmp_path / "a.mp4", FIFTY[:10], [stored] * 10)
    turn_track(path, matrix)
    source = probe(path)
    frame = next(read_frames(path, source))
    assert (source.rotation, source.mirrored) == (rotation, mirrored)
    assert frame.shape == upright(stored).shape == (source.height, source.width, 3)
    assert np.abs(frame.astype(int) - upright(stored)).mean() < 3


def test_b_frames_in_avi_keep_their_order(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "b-adapt": "0"})
        stream.pix_fmt, stream.width, stream.height = "yuv420p", 64, 64
        for picture in numbered(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    source = probe(path)
    assert source.timestamps == "dts"
    assert source.video_start == 0
    assert numbers_shown(path).tolist() == list(range(60))


def test_a_raw_stream_without_timestamps_is_read_at_its_frame_rate(tmp_path):
    path = write_media(tmp_path / "a.h264", FIFTY, numbered(50))
    assert frame_count(probe(path)) == 50
    assert numbers_shown(path).tolist() == list(range(50))


def changing(tmp_path: Path, second: tuple[int, int]) -> Path:
    """A transport stream whose picture changes from 96 x 64 to `second` after 1 s."""
    parts = []
    for i, (width, height) in enumerate([(96, 64), second]):
        times = even_times(Fraction(25), 25, Fraction(i))
        pictures = [cv2.resize(smooth_picture(), (width, height))] * 25
        parts.append(write_media(tmp_path / f"{i}.ts", times, pictures).read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    return tmp_path / "a.ts"


def test_a_change_of_size_is_scaled_to_the_first_size(tmp_path, caplog):
    path = changing(tmp_path, (48, 32))
    frames = list(read_frames(path, probe(path)))
    assert len(frames) == pytest.approx(50, abs=2)  # the parts overlap by the encoder's delay
    assert {frame.shape for frame in frames} == {(64, 96, 3)}
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() < 4
    assert "changes from 96 x 64 to 48 x 32 pixels after 1.00 s" in caplog.text


def test_a_change_of_aspect_is_refused_with_its_time(tmp_path):
    path = changing(tmp_path, (64, 96))
    with pytest.raises(UserError, match=r"from 96 x 64 to 64 x 96 pixels after 1\.00 s"):
        list(read_frames(path, probe(path)))


def comb(picture: np.ndarray) -> float:
    """Return how much neighboring rows differ, compared with every second row."""
    rows = picture[..., 1].astype(float)
    near = np.abs(rows[2:] - 2 * rows[1:-1] + rows[:-2]).mean()
    return near / np.abs(rows[4:] - 2 * rows[2:-2] + rows[:-4]).mean()


def test_interlaced_frames_are_deinterlaced(tmp_path):
    y, x = np.mgrid[0:96, 0:128]
    instants = [
        np.repeat((128 + 100 * np.sin((x + 5 * t) / 6) * np.sin(y / 30))[..., None], 3, axis=2)
        for t in range(100)
    ]
    woven = []
    for first, second in zip(instants[::2], instants[1::2], strict=True):
        frame = second.astype(np.uint8)
        frame[1::2] = first[1::2]  # x264 marks the bottom field as the first one
        woven.append(frame)
    frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in woven]
    options = {"flags": "+ildct+ilme", "x264-params": "bff=1"}
    path = write_frames(tmp_path / "a.mp4", frames, options=options)
    source = probe(path)
    found = list(read_frames(path, source))
    assert source.interlaced
    assert len(found) == len(woven)
    assert max(map(comb, found)) < 1 < min(map(comb, woven))
    pairs = zip(found, instants[::2], strict=True)
    errors = [np.abs(frame.astype(float) - instant).mean() for frame, instant in pairs]
    assert max(errors[1:-1]) < 2


@pytest.mark.parametrize(
    ("size", "matrix", "full", "tags"),
    [
        ((1280, 720), "bt709", False, {}),
        ((320, 240), "bt601", False, {}),
        ((320, 240), "bt709", False, {"colorspace": 1}),
        ((1280, 720), "bt601", False, {"colorspace": 6}),
        ((320, 240), "bt601", True, {"color_range": 2}),
    ],
    ids=["untagged HD", "untagged SD", "tagged BT.709", "tagged BT.601", "full range"],
)
def test_matrix_and_range_are_converted(tmp_path, size, matrix, full, tags):
    picture = smooth_picture(size[1], size[0])
    frame = yuv_frame(picture / 255, matrix, full)
    path = write_frames(tmp_path / "a.mp4", [frame] * 3, "yuv444p10le", tags)
    found = first_frame(path)
    assert np.abs(found.astype(int) - picture).max() <= 4
    assert np.abs((found.astype(int) - picture).mean(axis=(0, 1))).max() < (0.5 if full else 0.3)


def test_hlg_becomes_the_sdr_picture_of_a_203_nit_display(tmp_path):
    picture = smooth_picture()
    light = (picture / 255) ** 2.4  # BT.1886; white is the peak of the display
    to_2020 = np.array(
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )
    light = light @ to_2020.T
    luma = light @ np.array([0.2627, 0.6780, 0.0593])
    scene = light * luma[..., None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    high = a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 18}
    frame = yuv_frame(signal, "bt2020")
    path = write_frames(tmp_path / "a.mp4", [frame] * 3, "yuv444p10le", tags)
    error = first_frame(path).astype(int) - picture
    assert probe(path).color == Color("bt2020nc", "hlg", "bt2020", full_range=False, guessed=False)
    assert np.abs(error).mean() < 2
    assert np.percentile(np.abs(error), 99) <= 6


def test_pq_shows_203_nits_as_white_and_keeps_darker_light(tmp_path):
    levels = np.linspace(0, 1, 4096)
    nits = np.array([20.0, 50.0, 100.0, 203.0, 1000.0])
    signal = np.interp(nits, pq_to_nits(levels), levels)
    picture = np.repeat(np.repeat(signal, 32)[None, :, None], 64, axis=0).repeat(3, axis=2)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16}
    frame = yuv_frame(picture, "bt2020")
    path = write_frames(tmp_path / "a.mp4", [frame] * 3, "yuv444p10le", tags)
    found = first_frame(path)[32, 16::32, 1]
    expected = 255 * (nits[:3] / 203) ** (1 / 2.4)
    assert np.abs(found[:3] - expected).max() < 3
    assert 240 <= found[3] < found[4] <= 255


def test_wide_primaries_are_converted():
    picture = np.full((16, 16, 3), (90, 200, 60), np.uint8)
    to_p3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])
    wide = ((picture / 255) ** 2.4 @ to_p3.T) ** (1 / 2.4)
    frame = av.VideoFrame.from_ndarray(np.round(65535 * wide).astype(np.uint16), format="rgb48le")
    frame.color_primaries = 12
    assert describe_color(frame).primaries == "smpte432"
    found = RgbConverter(16, 16, Path("a")).convert(frame)
    assert np.abs(found.astype(int) - picture).max() <= 2


@pytest.mark.parametrize("tags", [{"color_trc": 9}, {"colorspace": 14}], ids=["log", "ICtCp"])
def test_rare_colors_are_refused_by_name(tmp_path, tags):
    frame = yuv_frame(smooth_picture() / 255, "bt709")
    path = write_frames(tmp_path / "a.mp4", [frame] * 3, "yuv444p10le", tags)
    with pytest.raises(UserError, match=r"color (transfer log100|matrix ictcp)"):
        probe(path)


@pytest.mark.parametrize("late", [100, 10**6, 10**9])
def test_a_gap_of_minutes_or_years_is_refused(tmp_path, late):
    times = [*FIFTY, Fraction(late), Fraction(late) + Fraction(1, 25)]
    path = write_media(tmp_path / "a.mkv", times, numbered(52))
    with pytest.raises(UserError, match=r"has no frame|cannot be read"):
        probe(path)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 ::1\ns=x\nc=IN IP4 ::1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".m3u8", ".ffconcat", ".sdp", ".mp4"])
def test_playlists_are_never_opened(tmp_path, name, suffix):
    video = write_media(tmp_path / "video.mp4", FIFTY, numbered(50))
    path = tmp_path / f"a{suffix}"
    path.write_text(PLAYLISTS[name].format(video))
    with pytest.raises(UserError, match="cannot be read as a video"):
        probe(path)


def test_a_name_is_never_taken_for_a_url_or_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_media(tmp_path / "video.mp4", FIFTY, numbered(50))
    for name in ("concat:video.mp4", "file:video.mp4", "http://127.0.0.1:9/a.mp4", "%d.png", "-"):
        with pytest.raises(UserError, match="No such file"):
            probe(Path(name))
    Path("concat:video.mp4").write_bytes((tmp_path / "video.mp4").read_bytes())
    assert frame_count(probe(Path("concat:video.mp4"))) == 50


def test_special_files_are_refused_without_opening_them(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    found: list[str] = []

    def read() -> None:
        for path in (tmp_path / "a.mp4", Path("/dev/zero"), tmp_path):
            with pytest.raises(UserError) as error:
                probe(path)
            found.append(str(error.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert [re.findall(r"\((.*)\)\.$", text) for text in found] == [
        [f"it is a {kind}, not a file"] for kind in ("named pipe", "device", "folder")
    ]


def test_metadata_of_any_encoding_is_read(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "titelQQQ"
        stream = container.add_stream("libx264", rate=25)
        stream.pix_fmt, stream.width, stream.height = "yuv420p", 64, 64
        for picture in numbered(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert b"titelQQQ" in content
    path.write_bytes(content.replace(b"titelQQQ", b"titel\xe9\xff\xfe"))
    assert frame_count(probe(path)) == 50


def stereo(path: Path, *tracks: np.ndarray, default: int = 0) -> Path:
    """Write audio tracks float [C, S] at 44.1 kHz as 16-bit PCM, one of them the default."""
    with av.open(str(path), "w") as container:
        streams = []
        for i, sound in enumerate(tracks):
            layout = "mono" if len(sound) == 1 else "stereo"
            stream = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
            stream.disposition = av.stream.Disposition.default if i == default else 0
            streams.append(stream)
        for stream, sound in zip(streams, tracks, strict=True):
            frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), "fltp", stream.layout.name)
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def tone(pitch: float, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)


def pitch_of(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples[:16_000])).argmax())


@pytest.mark.parametrize("gain", [-1.0, -0.8, -1.2])
def test_channels_of_opposite_phase_do_not_cancel(tmp_path, gain, caplog):
    sound = np.stack([tone(440), gain * tone(440)])
    found = decode_audio(stereo(tmp_path / "a.mkv", sound))
    loudest = max(1.0, -gain)
    assert np.abs(found).max() == pytest.approx(0.5 * loudest * 32_768, rel=0.02)
    assert "cancel each other" in caplog.text


def test_channels_that_differ_are_still_averaged(tmp_path, caplog):
    sound = np.stack([tone(440), np.zeros(RATE)])
    found = decode_audio(stereo(tmp_path / "a.mkv", sound))
    assert np.abs(found).max() == pytest.approx(0.25 * 32_768, rel=0.02)
    assert "cancel" not in caplog.text


def test_the_default_audio_track_is_taken_or_the_chosen_one(tmp_path):
    path = stereo(tmp_path / "a.mkv", tone(300)[None], tone(500)[None], tone(700)[None], default=1)
    assert pitch_of(decode_audio(path)) == 500
    assert pitch_of(decode_audio(path, track=3)) == 700
    audio.main(source=path, wav=tmp_path / "o.wav", config=audio.Config(track=1))
    assert pitch_of(read_wav(tmp_path / "o.wav")) == 300
    with pytest.raises(UserError, match=r"has no audio track 4. Its tracks are 1 to 3"):
        decode_audio(path, track=4)


@pytest.mark.parametrize("samples", [1, 2, 3, 10])
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_a_few_samples_of_any_rate_are_sound(tmp_path, rate, samples):
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, samples), 1000, np.int16), "s16", "mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert 1 <= len(decode_audio(path)) <= samples * 16_000 / rate + 20


@pytest.mark.parametrize("late", [100, 10**6])
def test_a_gap_of_minutes_in_the_sound_is_refused(tmp_path, late):
    write_media(tmp_path / "whole.mkv", sound=tone(440)[None], codecs=("", "aac"))
    with av.open(str(tmp_path / "whole.mkv")) as a, av.open(str(tmp_path / "a.mkv"), "w") as b:
        copy = b.add_stream_from_template(a.streams.audio[0])
        for packet in a.demux(audio=0):
            if packet.dts is not None:
                if packet.pts * packet.time_base > 0.5:
                    packet.pts = packet.dts = packet.pts + round(late / packet.time_base)
                packet.stream = copy
                b.mux(packet)
    with pytest.raises(UserError, match=r"has a gap of \d+ s in its audio, after 0\.\d\d s"):
        decode_audio(tmp_path / "a.mkv")


def decoded_by_opencv(path: Path) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    ok, frame = capture.read()
    assert ok
    return frame[..., ::-1]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov"])
def test_written_pictures_keep_their_mean_in_every_reader(tmp_path, suffix):
    picture = smooth_picture()
    path = tmp_path / f"a{suffix}"
    with video_writer(path, crf=4) as write:
        for _ in range(3):
            write(picture)
    ours, opencv = first_frame(path), decoded_by_opencv(path)
    with av.open(str(path)) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs((ours.astype(int) - picture).mean(axis=(0, 1))).max() < 0.3
    assert np.abs(ours.astype(int) - picture).mean() < 1.5
    # these readers round down, which costs up to 1.5 levels whatever the file
    for found in (opencv, plain):
        assert np.abs((found.astype(int) - picture).mean(axis=(0, 1))).max() < 2


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov", ""])
def test_a_written_video_has_the_given_sound_at_its_own_rate(tmp_path, suffix):
    sound = stereo(tmp_path / "in.wav", np.stack([tone(440, 3), tone(12_000, 3)]))
    path = tmp_path / f"a{suffix}"
    with video_writer(path, sound) as write:
        for picture in numbered(50):
            write(picture)
    with av.open(str(path if suffix else path / "sound.wav")) as container:
        stream = container.streams.audio[0]
        rate = 48_000 if suffix == ".webm" else RATE
        assert (stream.rate, stream.channels) == (rate, 2)
        resampler = av.AudioResampler("fltp")
        blocks = [
            block.to_ndarray()
            for frame in container.decode(stream)
            for block in resampler.resample(frame)
        ]
    samples = np.concatenate(blocks, axis=1)
    assert samples.shape[1] / rate == pytest.approx(2, abs=0.05)
    middle = samples[:, rate // 2 : rate // 2 + rate]
    pitches = np.abs(np.fft.rfft(middle)).argmax(axis=1)
    assert pitches.tolist() == [440, 12_000]


def test_sound_of_a_video_can_start_later(tmp_path):
    sound = np.concatenate([tone(300, 1), tone(700, 2)])
    stereo(tmp_path / "in.mkv", sound[None])
    with video_writer(tmp_path / "a.mp4", tmp_path / "in.mkv", sound_start=1.0) as write:
        for picture in numbered(25):
            write(picture)
    assert pitch_of(decode_audio(tmp_path / "a.mp4", 0.0)) == 700


def test_a_wav_and_its_video_carry_the_same_sound(tmp_path):
    samples = (9000 * np.sin(np.arange(16_000) / 5)).astype(np.int16)
    write_wav(tmp_path / "in.wav", samples)
    with video_writer(tmp_path / "a.mov", tmp_path / "in.wav") as write:
        for picture in numbered(25):
            write(picture)
    assert np.array_equal(decode_audio(tmp_path / "a.mov", 0.0), samples)


def test_the_first_frame_of_a_probed_file_is_opened_read_only(tmp_path):
    path = write_media(tmp_path / "a.mp4", FIFTY, numbered(50))
    path.chmod(0o444)
    with open_media(path, "a video") as container:
        assert container.streams.video
