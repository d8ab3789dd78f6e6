"""Every encoder declares the times of its rows correctly, and agrees with its source."""

from pathlib import Path

import librosa
import numpy as np
import pytest

from talker.encoders import Choice, Encoder, load_encoder, mel, transformer
from talker.encoders.features import extract
from talker.encoders.loudness import gain_between, pauses, silence_of, slot_levels, speech_level
from talker.errors import UserError
from talker.media.audio import write_wav

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": (16,) * 7,
    "feat_extract_norm": "layer",
}
TRANSFORMERS = pytest.mark.transformers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of small networks with random weights."""
    import torch
    import transformers as t

    made = {}
    torch.manual_seed(0)
    for name, config, network, preprocessor in (
        ("hubert", t.HubertConfig, t.HubertModel, t.Wav2Vec2FeatureExtractor),
        ("wav2vec2", t.Wav2Vec2Config, t.Wav2Vec2Model, t.Wav2Vec2FeatureExtractor),
    ):
        made[name] = str(tmp_path_factory.mktemp(name))
        network(config(**TINY)).save_pretrained(made[name])
        preprocessor(do_normalize=True).save_pretrained(made[name])
    made["whisper"] = str(tmp_path_factory.mktemp("whisper"))
    small = t.WhisperConfig(
        d_model=32,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    t.WhisperModel(small).save_pretrained(made["whisper"])
    t.WhisperFeatureExtractor().save_pretrained(made["whisper"])
    return made


def click(at: float, seconds: float = 14.0) -> np.ndarray:
    """Return 30 ms of noise around the time `at`, within faint noise."""
    random = np.random.default_rng(0)
    sound = random.normal(0, 1e-4, round(16_000 * seconds))
    start = round(16_000 * at) - 240
    sound[start : start + 480] += random.normal(0, 0.3, 480)
    return sound.astype(np.float32)


def centre_of_change(encoder: Encoder, at: float) -> float:
    """Return the mean time in seconds at which the rows differ from those without the click."""
    quiet = encoder.extract(np.random.default_rng(0).normal(0, 1e-4, 224_000).astype("f4"), 0)
    moved = np.linalg.norm(encoder.extract(click(at), 0) - quiet, axis=1)
    moved = np.where(moved > 0.8 * moved.max(), moved, 0)
    times = encoder.first_center + np.arange(len(moved)) / encoder.rate
    return float((moved * times).sum() / moved.sum())


@pytest.mark.parametrize(("name", "within"), [("hama", 0.1), ("mel", 0.01)])
@pytest.mark.parametrize("at", [3.0, 5.11, 11.003])
def test_rows_lie_where_the_encoder_says(name: str, within: float, at: float) -> None:
    """hama's rows represent phonemes, which last about 100 ms after their onset."""
    assert centre_of_change(load_encoder(Choice(name)), at) == pytest.approx(at, abs=within)


@TRANSFORMERS
@pytest.mark.parametrize("name", ["hubert", "wav2vec2"])
def test_a_row_of_a_transformer_is_centred_on_its_samples(
    models: dict[str, str], name: str
) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(models[name])
    reach, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        reach, hop = reach + (kernel - 1) * hop, hop * stride
    encoder = load_encoder(Choice(name, models[name], 1))
    assert (encoder.dims, encoder.rate) == (32, 16_000 / hop)
    assert encoder.first_center == pytest.approx(
        ((reach - 1) / 2 - transformer.EDGE) / 16_000, 1e-2
    )


@TRANSFORMERS
def test_rows_of_whisper_lie_where_it_says(models: dict[str, str]) -> None:
    encoder = load_encoder(Choice("whisper", models["whisper"], 1))
    assert (encoder.dims, encoder.rate) == (32, 50)
    assert centre_of_change(encoder, 5.11) == pytest.approx(5.11, abs=0.03)


@TRANSFORMERS
@pytest.mark.parametrize("name", ["hubert", "wav2vec2", "whisper"])
@pytest.mark.parametrize("frames", [1, 3, 249, 250, 251])
def test_a_transformer_gives_two_slots_a_frame(
    models: dict[str, str], name: str, frames: int
) -> None:
    encoder = load_encoder(Choice(name, models[name]))
    noise = np.random.default_rng(0).normal(0, 3000, frames * 640).astype(np.int16)
    slots = np.concatenate(list(extract(encoder, noise)))
    assert slots.shape == (2 * frames, 32)
    assert np.isfinite(slots).all()


@TRANSFORMERS
def test_layers_differ_and_weights_have_a_fingerprint(models: dict[str, str]) -> None:
    first, last = (load_encoder(Choice("hubert", models["hubert"], k)) for k in (1, 3))
    sound = click(1.0, 2.0)
    assert not np.allclose(first.extract(sound, 0), last.extract(sound, 0))
    assert first.sha256 == last.sha256
    assert first.sha256 != load_encoder(Choice("wav2vec2", models["wav2vec2"])).sha256
    with pytest.raises(UserError, match="it must be from 1 to 3"):
        load_encoder(Choice("hubert", models["hubert"], 4))


@TRANSFORMERS
def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"speech encoder hubert cannot be loaded from .*nowhere.*model"
    ):
        load_encoder(Choice("hubert", str(tmp_path / "nowhere")))


def test_a_tone_lies_in_its_mel_band() -> None:
    filters, bands = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=80), []
    for pitch in (200, 1000, 4000):
        tone = 0.1 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16_000)
        rows = mel.log_mel(tone.astype(np.float32))
        assert rows.shape == (51, 80)
        bands.append(int(rows[25].argmax()))
        low, high = (np.flatnonzero(filters[bands[-1]])[[0, -1]] * 40).tolist()
        assert low - 40 <= pitch <= high + 40
    assert bands == sorted(bands)
    assert mel.log_mel(np.zeros(640, np.float32)).max() == pytest.approx(np.log(1e-10))


def scores(frames: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2 * frames, 29)).astype(np.float32)


def test_deepspeech_takes_scores_or_their_windows(tmp_path: Path) -> None:
    logits = scores(20)
    padded = np.pad(logits, ((8, 8), (0, 0)))
    stored = np.stack([padded[2 * i : 2 * i + 16] for i in range(20)])
    found = []
    write_wav(tmp_path / "aud.wav", np.zeros(20 * 640, np.int16))
    for array in (logits, stored):
        np.save(tmp_path / "aud_ds.npy", array)
        encoder = load_encoder(Choice("deepspeech"), tmp_path / "aud.wav")
        found.append(np.concatenate(list(extract(encoder, np.zeros(20 * 640, np.int16)))))
    assert np.array_equal(*found)
    assert found[0][:-1] == pytest.approx((logits[:-1] + logits[1:]) / 2, abs=1e-6)


def test_deepspeech_s_windows_must_overlap(tmp_path: Path) -> None:
    path = tmp_path / "aud_ds.npy"
    np.save(path, scores(160).reshape(-1, 16, 29))
    with pytest.raises(UserError, match=r"aud_ds\.npy contains windows that do not overlap"):
        load_encoder(Choice("deepspeech"), tmp_path / "aud.wav")
    np.save(path, np.zeros((20, 16, 30)))
    with pytest.raises(UserError, match=r"has the shape \(20, 16, 30\)"):
        load_encoder(Choice("deepspeech"), tmp_path / "aud.wav")
    path.unlink()
    with pytest.raises(UserError, match=r"aud_ds\.npy cannot be read"):
        load_encoder(Choice("deepspeech"), tmp_path / "aud.wav")


@pytest.mark.parametrize(("frames", "fits"), [(17, False), (18, True), (22, True), (23, False)])
def test_deepspeech_s_scores_last_as_long_as_the_sound(
    tmp_path: Path, frames: int, fits: bool
) -> None:
    np.save(tmp_path / "aud_ds.npy", scores(20))
    write_wav(tmp_path / "aud.wav", np.zeros(frames * 640, np.int16))
    if fits:
        load_encoder(Choice("deepspeech"), tmp_path / "aud.wav")
        return
    with pytest.raises(
        UserError, match=rf"aud_ds\.npy has 40 scores, but .* needs {2 * frames} scores"
    ):
        load_encoder(Choice("deepspeech"), tmp_path / "aud.wav")


@pytest.mark.clips
def test_published_deepspeech_windows_are_taken(clips: Path, tmp_path: Path) -> None:
    published = clips.parent / "reference" / "deepspeech_windows.npy"
    (tmp_path / "aud_ds.npy").symlink_to(published.resolve())
    write_wav(tmp_path / "aud.wav", np.zeros(262 * 640, np.int16))
    encoder = load_encoder(Choice("deepspeech"), tmp_path / "aud.wav")
    assert encoder.extract(np.zeros(262 * 640, np.float32), 0).shape == (524, 29)


def talk(seconds: float, level: float, noise: float = -70) -> np.ndarray:
    """Noise that comes and goes 4 times a second like syllables, int16; levels in dBFS."""
    random = np.random.default_rng(0)
    t = np.arange(round(16_000 * seconds)) / 16_000
    syllables = 10 ** (level / 20) * np.maximum(np.sin(2 * np.pi * 4 * t), 0)
    sound = random.normal(size=len(t)) * syllables * 1.4
    sound += random.normal(size=len(t)) * 10 ** (noise / 20)
    return np.round(sound * 32768).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize("level", [-35.0, -20.0, -12.0])
def test_speech_level_ignores_pauses(level: float) -> None:
    speech = talk(4, level)
    padded = np.concatenate([speech, np.zeros(10 * 16_000, np.int16)])
    alone, both = (speech_level(slot_levels(x)) for x in (speech, padded))
    assert both == pytest.approx(alone, abs=0.2)
    assert alone == pytest.approx(level, abs=4)
    assert gain_between(alone, -20) == pytest.approx(10 ** ((-20 - alone) / 20))


def test_gain_is_bounded_and_needs_both_levels() -> None:
    assert gain_between(-60, -20) == pytest.approx(10)
    assert gain_between(float("nan"), -20) == gain_between(-20, float("nan")) == 1


@pytest.mark.parametrize("noise", [-100, -70, -50])
def test_silence_and_steady_noise_hold_no_speech(noise: float) -> None:
    sound = np.random.default_rng(0).normal(0, 32768 * 10 ** (noise / 20), 160_000)
    levels = slot_levels(sound.astype(np.int16))
    assert np.isnan(speech_level(levels))
    assert pauses(levels, 0.3).min() == 1


@pytest.mark.parametrize("noise", [-100, -70, -48])
def test_a_pause_is_found_and_lips_get_time_to_move(noise: float) -> None:
    gap = talk(1, -100, noise)
    sound = np.concatenate([talk(2, -20, noise), gap, talk(2, -20, noise), gap])
    silent = pauses(slot_levels(sound), 0.3)
    assert silent.shape == (300,)
    assert silent[:98].max() == silent[156:248].max() == 0, "the last syllable ends 0.12 s early"
    assert silent[112:138].min() == 1
    assert silent[262:].min() == 1, "the pause continues after the end"


def test_closures_within_words_are_no_pauses() -> None:
    quiet = np.zeros(200, bool)
    quiet[50:60] = quiet[100:115] = True
    silent = silence_of(quiet, 0.3)
    assert silent[:104].max() == 0
    assert 0 < silent[104:111].max() <= 1
    assert silent[111:].max() == 0


def test_levels_of_an_hour_s_worth_come_in_pieces() -> None:
    sound = talk(130, -20)
    whole = slot_levels(sound)
    assert len(whole) == 130 * 50
    np.testing.assert_allclose(whole[:50], slot_levels(sound[:16_000]))
    np.testing.assert_allclose(whole[-50:], slot_levels(sound[-16_000:]))
