"""The network equals the published one, and every speech window has the right time."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import ValidationError

from talker import speech
from talker.clip import Clip, Source
from talker.core.provenance import closure
from talker.encoders import ENCODERS, Choice, Encoder, encoder_module, hama, load_encoder
from talker.encoders.features import (
    FeatureStats,
    WindowsFile,
    extract,
    fit_stats,
    save_windows,
    windows,
)
from talker.errors import UserError
from talker.media.audio import read_wav, write_wav
from talker.speech import Config

DEFAULT = Config()
BLOCK_6 = "/acoustic_model/backbone/backbone.6/Add_output_0"


@pytest.fixture(scope="module")
def sound(request) -> np.ndarray:
    """Real phoneme sounds: the demo's speech, float32 at 16 kHz."""
    samples = read_wav(request.config.rootpath / "demo" / "speech.wav")
    return samples.astype(np.float32) / 32_768


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(Choice("hama"))


def made(rows, rate: float = 50, first_center: float = 0.0) -> Encoder:
    """An encoder that returns rows(number of samples, first sample)."""
    return Encoder("made", 2, rate, first_center, "0", lambda sound, start: rows(len(sound), start))


def described(encoder: Encoder, samples: np.ndarray) -> np.ndarray:
    return np.concatenate(list(extract(encoder, samples)))


def fit(slots: np.ndarray, encoder: Encoder, components: int) -> FeatureStats:
    levels = np.linspace(-60, -20, len(slots))
    return fit_stats(slots, levels, encoder, Choice("made"), components, 2, 0.3)


def test_the_trunk_is_the_published_network_up_to_block_6(sound):
    model = onnx.load(hama.weights())
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(BLOCK_6, onnx.TensorProto.FLOAT16, None)
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    trunk = hama.Trunk()
    trunk.load_onnx(hama.weights())
    for part in (sound[:80_000], sound[80_000:100_123]):
        feed = {"waveform": part[None], "waveform_lengths": np.array([len(part)])}
        expected = session.run([BLOCK_6], feed)[0][0].astype(np.float32)
        with torch.inference_mode():
            found = trunk(torch.from_numpy(part)[None])[0].numpy()
        assert found.shape == expected.shape == (256, 1 + len(part) // 320)
        assert np.sqrt(np.mean((found - expected) ** 2)) < 3e-3 * expected.std()


def test_a_chunk_s_border_is_not_heard(encoder, sound):
    """Slot 500 begins the second chunk; without the first 3 s, it is inside the first chunk."""
    samples = np.round(sound * 32_768).astype(np.int16)[: 300 * 640]
    border = described(encoder, samples)[450:550]
    inside = described(encoder, samples[3 * 16_000 :])[300:400]
    assert np.corrcoef(border.ravel(), inside.ravel())[0, 1] > 0.98


def test_features_do_not_depend_on_what_is_far_away(encoder, sound):
    samples = np.tile(np.round(sound * 32_768).astype(np.int16), 3)
    short, longer = samples[: 310 * 640], samples[: 400 * 640]
    assert np.array_equal(described(encoder, short)[:500], described(encoder, longer)[:500])


def test_loudness_changes_features_little(encoder, sound):
    loud, quiet = encoder.extract(sound, 0), encoder.extract(sound * 0.25, 0)
    assert np.corrcoef(loud.ravel(), quiet.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("frames", [1, 2, 3, 249, 250, 251, 300])
def test_sound_of_any_length_has_two_slots_a_frame(frames):
    """Rows contain their position, so that the slots show whether a row was lost at a border."""

    def places(samples: int, start: int) -> np.ndarray:
        k = np.arange(1 + samples // 320)
        return np.tile((start / 16_000 + k / 50)[:, None], 2).astype(np.float32)

    slots = described(made(places), np.zeros(frames * 640, np.int16))
    assert slots.shape == (2 * frames, 2)
    assert slots[:, 0] == pytest.approx(0.01 + 0.02 * np.arange(2 * frames), abs=1e-4)


def test_the_ends_are_continued_by_their_mirror_image():
    pieces = []

    def listen(samples: np.ndarray, start: int) -> np.ndarray:
        pieces.append(samples)
        return np.zeros((1 + len(samples) // 320, 2), np.float32)

    ramp = np.arange(0, 10 * 640, dtype=np.int16)
    described(Encoder("made", 2, 50, 0.0, "0", listen), ramp)
    (piece,) = pieces
    zero = 2 * 16_000
    assert len(piece) == 14 * 16_000
    assert np.array_equal(piece[zero : zero + 6400] * 32_768, ramp)
    assert np.array_equal(piece[zero - 100 : zero] * 32_768, ramp[100:0:-1])
    assert np.array_equal(piece[zero + 6400 : zero + 6500] * 32_768, ramp[-2:-102:-1])


def test_the_number_of_threads_does_not_change_a_bit(encoder, sound):
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(encoder.extract(sound[:50_000], 0))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(hama, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"hama .* have 0000"):
        load_encoder(Choice("hama"))
    monkeypatch.setattr(hama, "WEIGHTS", "hama/assets/none.onnx")
    with pytest.raises(UserError, match=r"none\.onnx cannot be read.*pip install hama==1\.3\.10"):
        load_encoder(Choice("hama"))
    with pytest.raises(UserError, match=r"'mfcc' does not exist.* hama, mel"):
        load_encoder(Choice("mfcc"))


@pytest.mark.parametrize(
    ("rate", "first_center"), [(50, 0.0), (50, 0.0125), (100, 0.0128), (41.67, 0.0279), (80, 0.0)]
)
def test_slots_take_the_features_of_their_centres(rate, first_center):
    """Rows that contain their own time become 10 + 20 k ms, for any rate of the encoder."""

    def times(samples: int, start: int) -> np.ndarray:
        rows = round(samples / 16_000 * rate)
        own = start / 16_000 + first_center + np.arange(rows)[:, None] / rate
        return np.tile(own, 2).astype(np.float32)

    slots = described(made(times, rate, first_center), np.zeros(600 * 640, np.int16))
    assert slots.shape == (1200, 2)
    assert slots[:, 0] == pytest.approx(0.01 + 0.02 * np.arange(1200), abs=1e-5)


def test_an_encoder_that_loses_sound_is_a_bug():
    lossy = made(lambda samples, start: np.zeros((samples // 640, 2), np.float32))
    with pytest.raises(RuntimeError, match="made returned 350 rows instead of 700"):
        described(lossy, np.zeros(100 * 640, np.int16))


@pytest.mark.parametrize("look_ahead", [0, 2, 5, 8])
@pytest.mark.parametrize("frames", [1, 3, 20])
@pytest.mark.parametrize("block", [2, 6, 500])
def test_a_window_holds_its_slots_and_repeats_the_ends(look_ahead, frames, block):
    slots = np.arange(2 * frames)[:, None]
    blocks = (slots[at : at + block] for at in range(0, 2 * frames, block))
    found = np.concatenate(list(windows(blocks, look_ahead)))[:, :, 0]
    assert found.shape == (frames, 16)
    for i in range(frames):
        first = 2 * i - 7 + look_ahead
        last = 2 * frames - 1
        assert found[i].tolist() == [min(max(k, 0), last) for k in range(first, first + 16)]


def test_windows_overlap_as_deepspeech_s_do():
    slots = np.random.default_rng(0).normal(size=(60, 4))
    found = np.concatenate(list(windows([slots], look_ahead=2)))
    assert np.array_equal(found[1:, :-2], found[:-1, 2:])


def correlated(count: int, dims: int) -> np.ndarray:
    random = np.random.default_rng(1)
    mixing = random.normal(size=(dims, dims)) * np.linspace(3, 0.1, dims)
    return (random.normal(size=(count, dims)) @ mixing.T + 5).astype(np.float32)


def test_components_are_whitened_on_the_training_slots():
    slots = correlated(500, 8)
    fitted = fit(slots, dataclasses.replace(made(len), dims=8), components=5)
    reduced = fitted.reduce(slots)
    assert reduced.shape == (500, 5)
    assert reduced.dtype == np.float32
    assert np.abs(reduced.mean(axis=0)).max() < 1e-3
    assert np.cov(reduced.T, bias=True) == pytest.approx(np.eye(5), abs=1e-3)
    assert fitted.components @ fitted.components.T == pytest.approx(np.eye(5), abs=1e-5)
    assert (np.diff(fitted.scale) <= 0).all()
    variances = np.linalg.eigvalsh(np.cov(slots.T, bias=True))[::-1]
    assert fitted.scale**2 == pytest.approx(variances[:5], rel=1e-3)


def test_the_sign_of_a_component_is_fixed():
    slots = correlated(500, 8)
    encoder = dataclasses.replace(made(len), dims=8)
    one, other = (fit(x, encoder, components=5) for x in (slots, -slots))
    assert one.components == pytest.approx(other.components, abs=1e-5)
    assert (one.components.max(axis=1) == np.abs(one.components).max(axis=1)).all()


def test_a_pause_does_not_last_less_than_nothing(prepared):
    with pytest.raises(ValidationError, match="pause"):
        run(prepared, config=Config(pause=-1))


@pytest.mark.parametrize("components", [0, -1, 9])
def test_more_components_than_features_are_refused(components):
    encoder = dataclasses.replace(made(len), dims=8)
    with pytest.raises(UserError, match=f"`components` is {components}.* from 1 to 8"):
        fit(correlated(50, 8), encoder, components=components)


@pytest.fixture
def prepared(tmp_path, sound):
    """aud.wav of 100 frames with its clip.json."""
    samples = np.round(sound * 32_768).astype(np.int16)[: 100 * 640]
    write_wav(tmp_path / "aud.wav", samples)
    source = Source("me.mp4", 512, 512, 25.0, False, 0, 4.0, 0.0, 0.0, "h264")
    Clip(frames=100, height=512, width=512, source=source).save(tmp_path / "clip.json")
    return tmp_path


def run(folder, wav="aud.wav", features="aud_hama.npy", clip=True, config=DEFAULT) -> np.ndarray:
    speech.main(
        wav=folder / wav,
        clip=folder / "clip.json" if clip else None,
        statistics=folder / "aud_hama.npz",
        features=folder / features,
        config=config,
    )
    return np.load(folder / features)


def test_a_clip_s_features_are_learned_from_its_training_frames_only(prepared):
    first = run(prepared)
    statistics = FeatureStats.load(prepared / "aud_hama.npz")
    slots = described(load_encoder(Choice("hama")), read_wav(prepared / "aud.wav"))
    again = fit(slots[: 2 * 90], load_encoder(Choice("hama")), components=32)
    assert first.shape == (100, 16, 32)
    assert first.dtype == np.float32
    assert 0.5 < first.std() < 2
    assert statistics.components == pytest.approx(again.components, abs=1e-5)
    assert (statistics.encoder, statistics.look_ahead) == ("hama", 2)


def test_new_speech_passes_through_the_clip_s_statistics(prepared):
    learned = run(prepared, config=Config(components=12, look_ahead=4))
    before = (prepared / "aud_hama.npz").read_bytes()
    applied = run(prepared, features="novel.npy", clip=False)
    assert learned.shape == (100, 16, 12)
    np.testing.assert_allclose(applied, learned, atol=0.02)  # all is louder than what it learnt of
    assert (prepared / "aud_hama.npz").read_bytes() == before


def test_a_tenth_of_a_second_is_enough_for_new_speech(prepared):
    run(prepared)
    write_wav(prepared / "short.wav", read_wav(prepared / "aud.wav")[8000 : 8000 + 3 * 640])
    short = run(prepared, wav="short.wav", features="short.npy", clip=False)
    assert short.shape == (3, 16, 32)
    assert np.isfinite(short).all()
    assert np.abs(short).max() < 20


def test_the_same_sound_gives_the_same_bytes(prepared):
    run(prepared)
    files = [prepared / "aud_hama.npy", prepared / "aud_hama.npz"]
    before = [file.read_bytes() for file in files]
    run(prepared)
    assert [file.read_bytes() for file in files] == before


def test_sound_of_another_length_is_refused(prepared):
    write_wav(prepared / "other.wav", np.zeros(99 * 640, np.int16))
    with pytest.raises(UserError, match=r"other\.wav lasts 99 frames, but .* has 100"):
        run(prepared, wav="other.wav")
    write_wav(prepared / "part.wav", np.zeros(1000, np.int16))
    with pytest.raises(UserError, match=r"part\.wav has .* multiple of the 640 samples"):
        run(prepared, wav="part.wav", clip=False)


def test_damaged_or_foreign_statistics_are_refused(prepared):
    run(prepared)
    path = prepared / "aud_hama.npz"
    statistics = FeatureStats.load(path)
    with open(path, "wb") as file:
        dataclasses.replace(statistics, sha256="0").save(file)
    with pytest.raises(UserError, match="was computed with other weights of hama"):
        run(prepared, clip=False)
    np.savez(path, mean=statistics.mean)
    with pytest.raises(UserError, match=r"aud_hama\.npz does not contain the statistics"):
        run(prepared, clip=False)
    path.write_text("no archive")
    with pytest.raises(UserError, match=r"aud_hama\.npz does not contain the statistics"):
        run(prepared, clip=False)
    for other in (b"", (prepared / "aud_hama.npy").read_bytes()):
        path.write_bytes(other)
        with pytest.raises(UserError, match=r"aud_hama\.npz does not contain the statistics"):
            run(prepared, clip=False)
    path.unlink()
    with pytest.raises(UserError, match=r"aud_hama\.npz does not contain the statistics"):
        run(prepared, clip=False)


@pytest.mark.clips
def test_deepspeech_windows_obey_the_same_overlap(clips):
    published = np.load(clips.parent / "reference" / "deepspeech_windows.npy")
    assert np.array_equal(published[1:, :-2], published[:-1, 2:])


def test_the_stage_depends_on_no_encoder():
    """An edit of one encoder must not rerun a stage that uses another."""
    imported = {name.removeprefix("talker.encoders.") for name in closure("talker.speech")}
    assert not imported & set(ENCODERS.values())
    for name, module in ENCODERS.items():
        assert encoder_module(name) == f"talker.encoders.{module}"
        assert closure(encoder_module(name))


def test_windows_are_read_without_being_kept_in_memory(tmp_path):
    """An hour of speech: a memory map would keep all pages resident that were read."""
    path, frames = tmp_path / "hour.npy", 90_000
    block = np.ones((1000, 16, 32), np.float32)
    save_windows(path, (block for _ in range(frames // 1000)), frames)
    file = WindowsFile(path)

    def resident():
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )

    before = resident()
    for start in range(0, frames, 1000):
        assert file[start : start + 1000].shape == (1000, 16, 32)
    assert resident() - before < 20 * 2**20 < path.stat().st_size
