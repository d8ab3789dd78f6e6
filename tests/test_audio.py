"""The sound of a clip matches its frames to the sample, and new speech may have any format."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest
from flash import RATE, onsets, write_flashes, write_media

from talker import audio
from talker.clip import SAMPLES_PER_FRAME, Clip
from talker.errors import UserError
from talker.frames import plan_clip
from talker.media.audio import decode_audio, read_wav, write_wav
from talker.media.video_reader import probe, read_frames

FILM = Fraction(24_000, 1001)
NTSC = Fraction(30_000, 1001)


def tone(samples: int, rate: int = 16_000, pitch: float = 440) -> np.ndarray:
    return np.sin(2 * np.pi * pitch * np.arange(samples) / rate)


def shaky_times() -> list[Fraction]:
    """30 fps, with a third of the frames dropped."""
    kept = np.random.default_rng(3).choice(np.arange(1, 150), 100, replace=False)
    return [Fraction(int(i), 30) for i in [0, *sorted(kept)]]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("video_start", "sound_start"),
    [(0, 0), (Fraction(1, 5), 0), (0, Fraction(3, 10)), (Fraction(1, 10), Fraction(3, 10))],
    ids=["together", "video late", "sound late", "both late"],
)
@pytest.mark.parametrize("rate", [25, NTSC, 30, FILM, 60, None], ids=str)
def test_flash_and_beep_stay_together(tmp_path, rate, video_start, sound_start, suffix):
    times = [i / Fraction(rate) for i in range(round(4 * rate))] if rate else shaky_times()
    times = [time + video_start for time in times]
    flashes = [round(len(times) * share) for share in (0.2, 0.41, 0.6, 0.83)]
    path = write_flashes(tmp_path / f"a{suffix}", times, flashes, Fraction(sound_start))
    clip = plan_clip(probe(path), None, 512)
    levels = np.array([frame.mean() for frame in read_frames(path, clip.source)])
    sound = audio.clip_sound(path, clip, audio.Config())
    seen = onsets(levels, 128, quiet=3) / 25
    heard = onsets(sound, 3000, quiet=1600) / 16_000
    assert len(levels) == clip.frames
    assert sound.shape == (clip.samples,)
    assert len(seen) == len(heard) == len(flashes)
    assert np.abs(seen - heard).max() <= 0.025
    assert heard == pytest.approx([float(times[f] - times[0]) for f in flashes], abs=0.002)


@pytest.fixture
def clip_file(tmp_path):
    """A video of 2 s with sound, and its clip.json: 50 frames, 45 for training."""
    times = [Fraction(i, 25) for i in range(50)]
    video = write_flashes(tmp_path / "a.mp4", times, [10, 47])
    plan_clip(probe(video), None, 512).save(tmp_path / "clip.json")
    return tmp_path / "clip.json"


def test_the_splits_are_the_whole_cut_at_the_last_training_frame(tmp_path, clip_file):
    wav, train, novel = (tmp_path / name for name in ("aud.wav", "train.wav", "novel.wav"))
    audio.main(source=tmp_path / "a.mp4", clip=clip_file, wav=wav, train=train, novel=novel)
    assert len(read_wav(wav)) == 50 * 640
    assert len(read_wav(train)) == 45 * 640
    assert np.array_equal(np.concatenate([read_wav(train), read_wav(novel)]), read_wav(wav))
    first = wav.read_bytes()
    audio.main(source=tmp_path / "a.mp4", clip=clip_file, wav=wav)
    assert wav.read_bytes() == first


@pytest.mark.parametrize("lag", [-3, 4])
def test_a_constant_lag_is_taken_out(tmp_path, clip_file, lag):
    clip = Clip.load(clip_file)
    as_it_is = audio.clip_sound(tmp_path / "a.mp4", clip, audio.Config())
    moved = audio.clip_sound(tmp_path / "a.mp4", clip, audio.Config(lag_frames=lag))
    assert moved.shape == as_it_is.shape
    first, second = (onsets(sound, 3000, quiet=1600)[0] for sound in (as_it_is, moved))
    assert first - second == pytest.approx(640 * lag, abs=2)


def test_sound_that_ends_early_is_filled_with_silence(tmp_path, clip_file, caplog):
    clip = dataclasses.replace(Clip.load(clip_file), frames=100)
    sound = audio.clip_sound(tmp_path / "a.mp4", clip, audio.Config())
    assert sound.shape == (64_000,)
    assert not sound[35_000:].any()
    assert "filled with silence" in caplog.text


def test_a_gap_in_the_sound_becomes_silence(tmp_path):
    sound = np.concatenate([tone(RATE, RATE, pitch=1000), np.zeros(RATE // 2), tone(RATE, RATE)])
    write_media(tmp_path / "whole.mkv", sound=sound[None], codecs=("", "aac"))
    with av.open(str(tmp_path / "whole.mkv")) as whole, av.open(str(tmp_path / "a.mkv"), "w") as a:
        copy = a.add_stream_from_template(whole.streams.audio[0])
        for packet in whole.demux(audio=0):
            if packet.dts is not None and not 0.5 < packet.pts * packet.time_base < 0.8:
                packet.stream = copy
                a.mux(packet)
    found = decode_audio(tmp_path / "a.mkv")
    assert not found[9_000:12_000].any()
    assert onsets(found, 3000, quiet=4000)[-1] == pytest.approx(24_000, abs=400)


@pytest.mark.parametrize("samples", [640, 639, 640 * 9 + 639, 640 * 10, 640 * 10 + 1, 1, 1600])
def test_new_speech_is_rounded_up_to_whole_frames(tmp_path, samples):
    content = (9000 * tone(samples, pitch=3000) + 500).astype(np.int16)
    write_wav(tmp_path / "in.wav", content)
    audio.main(source=tmp_path / "in.wav", wav=tmp_path / "out.wav")
    found = read_wav(tmp_path / "out.wav")
    assert len(found) == -(-samples // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME
    assert np.array_equal(found[:samples], content)
    assert not found[samples:].any()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.wav", "pcm_f32le"), ("a.mp3", "mp3"), ("a.m4a", "aac"), ("a.flac", "flac")],
)
def test_any_format_is_resampled_and_its_channels_averaged(tmp_path, name, codec):
    left, right = 0.5 * tone(RATE, RATE), 0.1 * tone(RATE, RATE)
    write_media(tmp_path / name, sound=np.stack([left, right]), codecs=("", codec))
    found = decode_audio(tmp_path / name)
    middle = found[4000:12_000] / 32_768
    phase = 2 * np.pi * 440 * np.arange(len(middle)) / 16_000
    amplitude = 2 * abs(np.mean(middle * np.exp(-1j * phase)))
    assert len(found) == pytest.approx(16_000, abs=1600)
    assert amplitude == pytest.approx(0.3, abs=0.02)
    assert middle.std() == pytest.approx(0.3 / np.sqrt(2), abs=0.02)


def test_joined_files_of_different_channels_go_on(tmp_path):
    sound = 0.3 * tone(RATE, RATE)[None]
    for name, channels in (("one.mp3", sound), ("two.mp3", sound.repeat(2, axis=0))):
        write_media(tmp_path / name, sound=channels, codecs=("", "mp3"))
    one, two = ((tmp_path / name).read_bytes() for name in ("one.mp3", "two.mp3"))
    (tmp_path / "a.mp3").write_bytes(one + two + one)
    found = decode_audio(tmp_path / "a.mp3")
    assert len(found) == pytest.approx(3 * 16_000, abs=3000)
    for middle in (8_000, 25_000, 42_000):
        part = found[middle - 4000 : middle + 4000] / 32_768
        assert np.abs(np.fft.rfft(part)).argmax() == 220
        assert part.std() == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_peaks_above_full_scale_are_clipped_and_do_not_wrap(tmp_path):
    loud = 3 * tone(RATE, RATE)[None]
    write_media(tmp_path / "a.wav", sound=loud, codecs=("", "pcm_f32le"))
    found = decode_audio(tmp_path / "a.wav").astype(int)
    expected = np.clip(3 * tone(len(found)), -1, 1) * 32_767
    assert found.max() == 32_767
    assert np.abs(found - expected)[100:-100].max() < 4000


def test_silence_is_new_speech_but_no_clip(tmp_path):
    times = [Fraction(i, 25) for i in range(50)]
    video = write_flashes(tmp_path / "a.mkv", times, [], codecs=("libx264", "pcm_s16le"))
    audio.main(source=video, wav=tmp_path / "out.wav")
    assert not read_wav(tmp_path / "out.wav").any()
    with pytest.raises(
        UserError, match=r"a\.mkv should contain speech, but its audio track is silent"
    ):
        audio.clip_sound(video, plan_clip(probe(video), None, 512), audio.Config())


def test_a_video_without_sound_is_refused(tmp_path):
    times = [Fraction(i, 25) for i in range(10)]
    write_media(tmp_path / "a.mp4", times, [np.zeros((64, 64, 3), np.uint8)] * 10)
    with pytest.raises(UserError, match=r"a\.mp4 has no audio track, but audio is needed"):
        audio.main(source=tmp_path / "a.mp4", wav=tmp_path / "out.wav")


@pytest.mark.parametrize("content", [None, b"", b"Not a sound.\n" * 100])
def test_what_is_no_sound_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp3 (cannot be read as audio|contains no audio)"):
        audio.main(source=tmp_path / "a.mp3", wav=tmp_path / "out.wav")


def test_a_split_needs_a_clip(tmp_path):
    with pytest.raises(UserError, match="Both also need --clip"):
        audio.main(source=tmp_path / "a.wav", wav=tmp_path / "o.wav", train=tmp_path / "t.wav")


def test_a_wav_of_another_kind_is_refused_with_advice(tmp_path):
    write_media(tmp_path / "a.wav", sound=np.zeros((2, 4410)), codecs=("", "pcm_s16le"))
    with pytest.raises(
        UserError,
        match=r"has a sample rate of 44100 Hz, 2 .*It must have 16000 Hz, 1 channel and 16 bits",
    ):
        read_wav(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_text("no wav")
    with pytest.raises(UserError, match=r"b\.wav cannot be read as wav"):
        read_wav(tmp_path / "b.wav")


@pytest.mark.parametrize("lost", [1, 2, 40_000, 64_000])
def test_a_wav_that_is_cut_off_is_refused(tmp_path, lost):
    write_wav(tmp_path / "a.wav", np.ones(32_000, np.int16))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[:-lost])
    with pytest.raises(UserError, match=r"a\.wav .*truncated: its header declares 32000 samples"):
        read_wav(tmp_path / "a.wav")


def test_a_wav_whose_parts_do_not_fit_into_it_is_refused(tmp_path):
    write_wav(tmp_path / "a.wav", np.ones(32_000, np.int16))
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[16] = 18  # the length of the format: the data begin in the middle of a number
    content[40:46] = b"data\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.wav"):
        read_wav(tmp_path / "a.wav")


@pytest.mark.clips
@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("english_16s_24k.wav", 15.754667),
        ("english_5s_16k.wav", 5.013313),
        ("german_9s_48k_s24.wav", 9.342667),
        ("overlay_5s_16k_stereo.wav", 5.04),
    ],
)
def test_real_speech_keeps_its_length(tmp_path, clips, name, seconds):
    audio.main(source=clips.parent / "speech" / name, wav=tmp_path / "out.wav")
    assert len(read_wav(tmp_path / "out.wav")) == -(-seconds * 25 // 1) * 640
