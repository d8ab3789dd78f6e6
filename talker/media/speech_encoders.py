"""What a speech encoder is, and the ones there are: sound in, a feature vector every few ms out.

A new one is a module with a function that returns an `Encoder`, its name, and its line in
`ENCODERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from talker.errors import UserError

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


def load_encoder(choice: Choice, wav: Path | None = None) -> Encoder:
    """Load an encoder; `wav` is the sound that it is to describe, where that is a file.

    Raises:
        UserError: there is none of that name, or what it needs is missing.
    """
    if choice.name not in ENCODERS:
        raise UserError(f"speech encoder '{choice.name}': expected one of {', '.join(ENCODERS)}")
    return ENCODERS[choice.name](choice, wav)


def _hama(choice: Choice, wav: Path | None) -> Encoder:
    from talker.media.hama import load

    return load()


def _mel(choice: Choice, wav: Path | None) -> Encoder:
    from talker.media.mel import load

    return load()


def _deepspeech(choice: Choice, wav: Path | None) -> Encoder:
    from talker.media.deepspeech import load

    return load(wav)


def _transformer(choice: Choice, wav: Path | None) -> Encoder:
    from talker.media.transformer import load

    return load(choice.name, choice.model, choice.layer)


ENCODERS: dict[Name, Callable[[Choice, Path | None], Encoder]] = {
    "hama": _hama,
    "mel": _mel,
    "deepspeech": _deepspeech,
    "hubert": _transformer,
    "wav2vec2": _transformer,
    "whisper": _transformer,
}
