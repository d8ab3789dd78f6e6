"""Film the demo subject: a synthetic head that speaks a given wav, and save its exact truth.

talker synthesize --speech demo/speech.wav --timings demo/timings.json
    --video data/demo/demo.mp4 --truth data/demo/truth.npz
"""

import tempfile
from pathlib import Path

import numpy as np

from talker.clip import FPS, SAMPLES_PER_FRAME
from talker.core.config import validated
from talker.core.files import Output
from talker.core.progress import progress
from talker.errors import UserError
from talker.media.audio import read_wav, write_wav
from talker.media.video import video_writer
from talker.synthetic.acting import read_timings
from talker.synthetic.subject import Subject


@validated
class Config:
    """How the demo subject is filmed."""

    size: int = 512
    """width and height of the video in pixels, even"""
    frames: int | None = None
    """length in frames at 25 fps; None: as long as the speech"""
    seed: int = 0
    """of head motion, blinks, gaze, freckles and hairs"""
    crf: int = 16
    """x264 quality, lower is better"""


def main(
    *, speech: Path, timings: Path, video: Output, truth: Output, config: Config = Config()
) -> None:
    """Render a talking synthetic head and save what is true of each of its frames.

    Args:
        speech: wav, 16 kHz mono 16 bit.
        timings: json with the phonemes of the speech and their times.
        video: the mp4 to make, with the speech as its sound.
        truth: the npz to make (talker.synthetic.subject.Truth).
    """
    samples = read_wav(speech)
    frames = len(samples) // SAMPLES_PER_FRAME if config.frames is None else config.frames
    if not 0 < frames * SAMPLES_PER_FRAME <= len(samples):
        raise UserError(
            f"{speech}: lasts {len(samples) / SAMPLES_PER_FRAME / FPS:.2f} s, "
            f"too short for {frames} frames at {FPS} fps"
        )
    if config.size < 64 or config.size % 2:
        raise UserError(f"size: expected an even number >= 64, found {config.size}")
    subject = Subject.make(read_timings(timings), frames, config.size, config.seed)
    masks = np.empty((frames, config.size, config.size), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "speech.wav"
        write_wav(sound, samples[: frames * SAMPLES_PER_FRAME])
        with video_writer(video, sound, config.crf) as write:
            for i, (image, mask) in enumerate(progress(subject.film(), "filming", frames)):
                masks[i] = mask
                write(image)
    subject.truth(masks).save(truth)
