"""Speech features: one window of 16 slots of 20 ms for each frame, reduced by PCA.

`talker speech --wav aud.wav --clip clip.json --statistics aud_hama.npz --features aud_hama.npy`
learns the PCA from the clip's training frames; without `--clip` it applies it to new speech.
"""

from collections.abc import Iterator
from pathlib import Path

from talker.clip import Clip
from talker.core.config import validated
from talker.core.files import Output, atomic_write
from talker.encoders.base import Choice, Encoder, Name
from talker.encoders.features import (
    avatar_features,
    describe_clip,
    save_windows,
    whole_frames,
    windows,
)
from talker.encoders.registry import load_encoder
from talker.encoders.statistics import Statistics
from talker.errors import UserError
from talker.media.audio import WavFile

MOST_LOOK_AHEAD = 8


@validated
class Config:
    """Options of `talker speech` for a clip; new speech takes them from the clip's statistics."""

    encoder: Name = "hama"
    """What describes the sound (the workflow sets it from its own key `encoder`)."""
    model: str = ""
    """Weights of hubert, wav2vec2 or whisper: a folder or a hub id; empty is the usual one."""
    layer: int = 0
    """Layer of hubert, wav2vec2 or whisper, from 1; 0 is the one at three quarters of the depth."""
    components: int = 32
    """Principal components to keep; encoders with fewer dimensions keep those."""
    look_ahead: int = 2
    """Slots of 20 ms that a window's centre lies after its frame: lips move before the sound."""
    pause: float = 0.3
    """Seconds; in longer pauses the features are those of silence, and the mouth closes."""
    match_level: bool = True
    """Bring new speech to the loudness of the training speech before it is described."""


def apply(encoder: Encoder, sound: WavFile, learned: Statistics, config: Config) -> Iterator:
    """The windows of new speech, block by block: float32 [n, 16, C]."""
    return windows(avatar_features(encoder, learned, sound, config.match_level), learned.look_ahead)


def main(
    *,
    wav: Path,
    statistics: Path,
    features: Output,
    clip: Path | None = None,
    config: Config = Config(),
) -> None:
    """Write the speech windows of a clip and their statistics, or those of new speech.

    Args:
        wav: sound that `talker audio` wrote.
        statistics: .npz of the PCA: written with `clip`, read without.
        features: .npy of windows float32 [T, 16, C] to write.
        clip: clip.json of the sound; leave out for new speech.
        config: options.
    """
    sound = WavFile(wav)
    frames = whole_frames(sound, wav)
    if clip is None:
        learned = Statistics.load(statistics)
        encoder = load_encoder(learned.choice, wav)
        if encoder.sha256 != learned.sha256:
            raise UserError(f"{statistics}: was made with other weights of {learned.encoder}")
        with atomic_write(features) as (file,):
            save_windows(file, apply(encoder, sound, learned, config), frames)
        return
    about = Clip.load(clip)
    if frames != about.frames:
        raise UserError(f"{wav}: lasts {frames} frames, expected {about.frames} as in {clip}")
    if not 0 <= config.look_ahead <= MOST_LOOK_AHEAD:
        raise UserError(
            f"look_ahead: expected 0 to {MOST_LOOK_AHEAD} slots, found {config.look_ahead}"
        )
    if not config.pause >= 0:
        raise UserError(f"pause: expected at least 0 seconds, found {config.pause}")
    choice = Choice(config.encoder, config.model, config.layer)
    learned, slots = describe_clip(
        load_encoder(choice, wav),
        choice,
        sound,
        about.train_frames,
        config.components,
        config.look_ahead,
        config.pause,
    )
    with atomic_write(features, statistics) as (file, archive):
        save_windows(file, windows([slots], learned.look_ahead), frames)
        learned.save(archive)
