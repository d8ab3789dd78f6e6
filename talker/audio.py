"""Sound of a clip, or new speech, as 16 kHz mono: always 640 samples a frame, from the clip's zero.

`talker audio --source me.mp4 --clip clip.json --wav aud.wav --train aud_train.wav --novel
aud_novel.wav`, or for new speech `talker audio --source hello.mp3 --wav hello.wav`.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Clip
from talker.core.config import validated
from talker.core.files import Output, replacing
from talker.errors import UserError
from talker.media.audio import decode_audio, decoded_blocks, write_wav

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker audio`."""

    warn_missing: float = 0.5
    """Seconds of sound that may be missing at the end of a clip before the log says so."""
    lag_frames: int = 0
    """Frames by which the sound of the source comes late; it is moved back by as many."""


def clip_sound(source: Path, clip: Clip, config: Config) -> np.ndarray:
    """Decode the sound that belongs to a clip's frames as int16 [640 T].

    Raises:
        UserError: `source` has no sound, or only silence, within the clip.
    """
    start = clip.source.video_start + config.lag_frames / FPS
    samples = decode_audio(source, start)[: clip.samples]
    if not samples.any():
        raise UserError(f"{source}: expected speech, but its sound is silent all through")
    missing = clip.samples - len(samples)
    if missing > config.warn_missing * SAMPLE_RATE:
        logger.warning(
            "%s: its sound ends %.1f s before its pictures; silence fills the rest",
            source,
            missing / SAMPLE_RATE,
        )
    return np.pad(samples, (0, missing))


def whole_frames(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass on blocks of int16, and silence up to the next multiple of 640 samples."""
    samples = 0
    for block in blocks:
        samples += len(block)
        yield block
    yield np.zeros(-samples % SAMPLES_PER_FRAME, np.int16)


def main(
    *,
    source: Path,
    wav: Output,
    clip: Path | None = None,
    train: Output | None = None,
    novel: Output | None = None,
    config: Config = Config(),
) -> None:
    """Write the sound of a clip (and its two splits), or of new speech, as 16 kHz mono wav.

    Args:
        source: video or sound file, of any format.
        wav: sound to write.
        clip: the clip.json whose length and zero the sound takes; leave out for new speech.
        train: sound of the training frames to write (needs `clip`).
        novel: sound of the held-out frames to write (needs `clip`).
        config: options.
    """
    if clip is None:
        if train or novel:
            raise UserError("--train and --novel split a clip: give its --clip as well")
        outputs = {wav: whole_frames(decoded_blocks(source))}
    else:
        about = Clip.load(clip)
        samples = clip_sound(source, about, config)
        split = about.train_frames * SAMPLES_PER_FRAME
        parts = (wav, samples), (train, samples[:split]), (novel, samples[split:])
        outputs = {path: part for path, part in parts if path}
    with replacing(*outputs) as scratch:
        for path, part in zip(scratch, outputs.values(), strict=True):
            write_wav(path, part)
