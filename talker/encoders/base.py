"""What a speech encoder is: sound in, a feature vector every few milliseconds out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Name = Literal["hama", "mel", "deepspeech", "hubert", "wav2vec2", "whisper"]


@dataclass(frozen=True)
class Encoder:
    """A frozen description of speech.

    `describe` maps a piece of sound, float32 [S] at 16 kHz in -1..1, and the place of its first
    sample in the whole (which only what is stored beside the sound needs) to float32 [N, dims]; row
    k describes the sound around `first_centre` + k / `rate` seconds of the piece. Pieces have 14 s.
    `sha256` identifies the weights; it is empty where there are none.
    """

    name: str
    dims: int
    rate: float
    first_centre: float
    sha256: str
    describe: Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Choice:
    """Which encoder: its family, and for those that need it which weights and which layer."""

    name: str = "hama"
    model: str = ""
    """folder or hub id of a transformer's weights; empty is the family's usual one"""
    layer: int = 0
    """layer whose output is taken, from 1; 0 is the one at three quarters of the depth"""
