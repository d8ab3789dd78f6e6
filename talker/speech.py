"""Extract speech features: for each frame a window of 16 steps of 20 ms, reduced by PCA.

`talker speech --wav aud.wav --clip clip.json --statistics aud_hama.npz --features aud_hama.npy`
computes the PCA from the clip's training frames; without `--clip` it applies it to new speech.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from talker.clip import Clip
from talker.core.config import DEFAULT_ENCODER, AtLeast0, AtLeast1, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.encoders import Choice, EncoderName, load_encoder
from talker.encoders.features import (
    MAX_LOOK_AHEAD,
    FeatureStats,
    avatar_features,
    extract_clip,
    save_windows,
    whole_frames,
    windows,
)
from talker.errors import UserError
from talker.media.audio import WavFile, clip_sound


@validated
class Config:
    """How speech features are extracted; new speech uses the options of the clip's statistics."""

    encoder: EncoderName = DEFAULT_ENCODER
    """Speech encoder: `hama` (layers of a small phoneme recognizer, installed with talker), `mel`
    (mel spectrogram), `deepspeech`, `hubert`, `wav2vec2` or `whisper`. docs/speech.md describes
    them. The workflow sets this option from the key `encoder` of its configuration."""
    model: str = ""
    """For hubert, wav2vec2 and whisper: folder with the weights, or model ID on the Hugging Face
    Hub. By default, facebook/hubert-base-ls960, facebook/wav2vec2-base-960h or openai/whisper-tiny
    is used. For deepspeech: path of the network file. By default, the file that `talker weights
    fetch deepspeech` downloads is used."""
    layer: AtLeast0 = 0
    """Layer of hubert, wav2vec2 or whisper, counted from 1. The default of 0 selects the layer at
    3/4 of the depth."""
    components: AtLeast1 = 32
    """Number of principal components to keep. Encoders with fewer dimensions keep all of them."""
    look_ahead: Annotated[int, Field(ge=0, le=MAX_LOOK_AHEAD)] = 2
    """Time from a frame to the center of its speech window, in steps of 20 ms. The window is
    centered after the frame, because the lips move before the speech is audible."""
    pause: NonNegative = 0.3
    """Minimum duration of a pause in seconds. In pauses of at least this duration, the features are
    replaced by those of silence, so that the mouth closes."""
    match_level: bool = True
    """Scale new speech to the loudness of the training speech before its features are extracted."""


def main(
    *,
    wav: Path,
    statistics: Path,
    features: Output,
    clip: Path | None = None,
    config: Config = Config(),
) -> None:
    """Extract, for every frame, a window of 16 speech feature vectors that are 20 ms apart.

    Args:
        wav: Wav file written by `talker audio`.
        statistics: npz file with the PCA and the features of silence. It is written if `--clip` is
            given, and read otherwise.
        features: npy file to write: float32 [T, 16, C] for T frames and C channels.
        clip: clip.json of the clip to which the audio belongs. Omit it for new speech.
        config: Options.
    """
    expected = Clip.load(clip) if clip else None
    sound = clip_sound(wav, expected.frames) if expected and expected.adopted else WavFile(wav)
    frames = whole_frames(sound, wav)
    if expected is None:
        stats = FeatureStats.load(statistics)
        encoder = load_encoder(stats.choice, wav)
        if encoder.sha256 != stats.sha256:
            raise UserError(
                f"{statistics} was computed with other weights of {stats.encoder} than the "
                "installed ones. Install the weights that were used, or train the avatar "
                "again."
            )
        slots = avatar_features(encoder, stats, sound, config.match_level)
        with atomic_write(features) as (file,):
            save_windows(file, windows(slots, stats.look_ahead), frames)
        return
    if frames != expected.frames:
        raise UserError(
            f"{wav} lasts {frames} frames, but {clip} has {expected.frames} frames. Run `talker "
            f"audio --clip {clip}` again."
        )
    choice = Choice(config.encoder, config.model, config.layer)
    stats, slots = extract_clip(
        load_encoder(choice, wav),
        choice,
        sound,
        expected.train_frames,
        config.components,
        config.look_ahead,
        config.pause,
    )
    with atomic_write(features, statistics) as (file, archive):
        save_windows(file, windows([slots], stats.look_ahead), frames)
        stats.save(archive)
