"""Extract the audio of a clip, or convert new speech, to 16 kHz mono: 640 samples per frame.

`talker audio --source me.mp4 --clip clip.json --wav aud.wav --train aud_train.wav --novel
aud_novel.wav`, or for new speech `talker audio --source hello.mp3 --wav hello.wav`.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Clip
from talker.core.config import AtLeast1, NonNegative, validated
from talker.core.files import Output, atomic_write
from talker.errors import UserError
from talker.media.audio import audio_tracks, decode_audio, decode_audio_blocks, write_wav

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker audio`."""

    warn_missing: NonNegative = 0.5
    """Tolerance in seconds: a warning is logged if the audio ends earlier than the video by more
    than this."""
    lag_frames: Annotated[int, Field(ge=-250, le=250)] = 0
    """Number of frames by which the audio lags behind the video. The audio is shifted earlier by
    this amount. Negative values shift it later."""
    track: AtLeast1 | None = None
    """Number of the audio track to use, counted from 1. By default, the track that media players
    select is used."""


def clip_sound(source: Path, clip: Clip, config: Config) -> np.ndarray:
    """Decode the audio of a clip as int16 [640 T], where T is its number of frames.

    Raises:
        UserError: `source` has no audio within the clip, or only silence.
    """
    start = clip.source.video_start + config.lag_frames / FPS
    number, count = audio_tracks(source, config.track)
    which = f"audio track {number} of {count}" if count > 1 else "audio track"
    if count > 1:
        logger.info("%s: uses %s", source, which)
    samples = decode_audio(source, start, number, clip.samples)[: clip.samples]
    if not samples.any():
        others = " Choose another track with `audio: {track: N}`." if count > 1 else ""
        raise UserError(f"{source} should contain speech, but its {which} is silent.{others}")
    missing = clip.samples - len(samples)
    if missing > config.warn_missing * SAMPLE_RATE:
        logger.warning(
            "The audio of %s ends %.1f s before the video. The rest is filled with silence.",
            source,
            missing / SAMPLE_RATE,
        )
    return np.pad(samples, (0, missing))


def pad_to_whole_frames(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield int16 blocks, then silence up to the next multiple of 640 samples."""
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
    """Convert the audio of a clip, or new speech, to a 16 kHz mono wav file.

    Args:
        source: Video or audio file of any format.
        wav: Wav file to write.
        clip: clip.json, which defines the start and the length of the audio. Omit it for new
            speech.
        train: Wav file to write with the audio of the training frames (requires `--clip`).
        novel: Wav file to write with the audio of the held-out frames of the clip (requires
            `--clip`).
        config: Options.
    """
    if clip is None:
        if train or novel:
            raise UserError(
                "--train writes the audio of the training frames of a clip, and --novel that of "
                "its held-out frames. Both also need --clip."
            )
        outputs = {wav: pad_to_whole_frames(decode_audio_blocks(source, track=config.track))}
    else:
        about = Clip.load(clip)
        samples = clip_sound(source, about, config)
        split = about.train_frames * SAMPLES_PER_FRAME
        parts = (wav, samples), (train, samples[:split]), (novel, samples[split:])
        outputs = {path: part for path, part in parts if path}
    with atomic_write(*outputs) as scratch:
        for path, part in zip(scratch, outputs.values(), strict=True):
            write_wav(path, part)
