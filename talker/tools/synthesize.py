"""Render the demo subject, a synthetic head that speaks a given wav, and save its ground truth.

talker synthesize --speech demo/speech.wav --timings demo/timings.json
    --video data/demo/demo.mp4 --truth data/demo/truth.npz
"""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from talker.clip import FPS, SAMPLES_PER_FRAME
from talker.core.config import AtLeast0, AtLeast1, validated
from talker.core.files import Output
from talker.core.progress import progress
from talker.errors import UserError
from talker.media.audio import read_wav, write_wav
from talker.media.video_writer import video_writer
from talker.synthetic.acting import read_timings
from talker.synthetic.subject import SyntheticSubject


@validated
class Config:
    """Options of the synthetic clip."""

    size: Annotated[int, Field(ge=64, multiple_of=2)] = 512
    """Width and height of the video in pixels; an even number."""
    frames: AtLeast1 | None = None
    """Number of frames at 25 fps. By default, the video is as long as the speech."""
    seed: AtLeast0 = 0
    """Seed of the random numbers of head motion, blinks, gaze and textures."""
    crf: Annotated[int, Field(ge=0, le=51)] = 16
    """Constant rate factor of the H.264 encoder. Smaller values give larger videos of better
    quality."""


def main(
    *, speech: Path, timings: Path, video: Output, truth: Output, config: Config = Config()
) -> None:
    """Render a talking synthetic head and save the ground truth of every frame.

    Args:
        speech: 16 kHz mono 16-bit wav file with the speech.
        timings: JSON file with the phonemes of the speech and their times (see
            demo/timings.json).
        video: mp4 file to write, with the speech as its audio.
        truth: npz file to write: the ground truth (see talker.synthetic.subject.GroundTruth).
    """
    samples = read_wav(speech)
    frames = len(samples) // SAMPLES_PER_FRAME if config.frames is None else config.frames
    if not 0 < frames * SAMPLES_PER_FRAME <= len(samples):
        raise UserError(
            f"{speech} lasts {len(samples) / SAMPLES_PER_FRAME / FPS:.2f} s, which is too "
            f"short for {max(frames, 1)} frames at {FPS} fps. Use longer speech, or set "
            "`frames` to a smaller number."
        )
    subject = SyntheticSubject.create(read_timings(timings), frames, config.size, config.seed)
    masks = np.empty((frames, config.size, config.size), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "speech.wav"
        write_wav(sound, samples[: frames * SAMPLES_PER_FRAME])
        # In one sequence, as in earlier versions, so that the demo's frames stay the same.
        with video_writer(video, sound, config.crf, groups=False) as write:
            for i, (image, mask) in enumerate(progress(subject.render(), "synthesize", frames)):
                masks[i] = mask
                write(image)
    subject.ground_truth(masks).save(truth)
