"""Speech encoders: their interface, and one module for each model, loaded by name.

Nothing imports the module of an encoder directly, so that a change of its code only reruns the
stages that use it. To add an encoder, write a module with a function `load(choice, wav)` that
returns an `Encoder`, and add its name to `EncoderName` and `ENCODERS`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from talker.core.config import DEFAULT_ENCODER
from talker.errors import UserError

EncoderName = Literal["hama", "mel", "deepspeech", "hubert", "wav2vec2", "whisper"]
"""Names of the speech encoders."""

ENCODERS: dict[EncoderName, str] = {
    "hama": "hama",
    "mel": "mel",
    "deepspeech": "deepspeech",
    "hubert": "transformer",
    "wav2vec2": "transformer",
    "whisper": "transformer",
}
"""Module of each speech encoder within this package."""


@dataclass(frozen=True)
class Encoder:
    """A frozen speech encoder."""

    name: str
    dims: int
    """Number of values of a feature vector."""
    rate: float
    """Feature vectors per second."""
    first_center: float
    """Time in seconds on which the first feature vector of a piece of audio is centered."""
    sha256: str
    """Hash that identifies the weights; empty if there are none."""
    extract: Callable[[np.ndarray, int], np.ndarray]
    """Map a piece of audio to its features.

    The arguments are float32 [S] at 16 kHz in -1..1, and the position of its first sample in the
    whole audio, which may be negative and is needed only by encoders with stored features. Returns
    float32 [N, dims]; row k is centered on `first_center` + k / `rate` seconds of the piece. Pieces
    last 14 s.
    """


@dataclass(frozen=True)
class Choice:
    """A speech encoder together with its weights and layer, for those that have a choice."""

    name: str = DEFAULT_ENCODER
    model: str = ""
    """Weights of a transformer: a folder, or the ID of a model on the Hugging Face Hub. An empty
    value selects the default of the family."""
    layer: int = 0
    """Layer whose output is used, counted from 1; 0 selects the one at 3/4 of the depth."""


def encoder_module(name: str) -> str:
    """Return the dotted name of the module that implements a speech encoder.

    Raises:
        UserError: there is no encoder of that name.
    """
    for encoder, module in ENCODERS.items():
        if encoder == name:
            return f"{__name__}.{module}"
    raise UserError(
        f"The encoder '{name}' does not exist. The encoders are: {', '.join(ENCODERS)}."
    )


def sync_encoder(encoder: str) -> str | None:
    """Return an encoder to measure the lip sync of an avatar that another encoder drives.

    None means the mel spectrogram of `talker.measure.sync`, which is used if the default encoder
    drives the avatar.
    """
    return None if encoder == DEFAULT_ENCODER else DEFAULT_ENCODER


def stage_encoder(stage: str, encoder: str) -> str | None:
    """Return the encoder that a stage of the workflow runs, or None if it runs no encoder.

    Args:
        stage: name of the stage, such as "speech".
        encoder: the speech encoder that drives the avatar.
    """
    encoders = {"speech": encoder, "lipsync": DEFAULT_ENCODER, "evaluate": sync_encoder(encoder)}
    return encoders.get(stage)


def load_encoder(choice: Choice, wav: Path | None = None) -> Encoder:
    """Load a speech encoder.

    Args:
        choice: the encoder, with its weights and layer.
        wav: the audio that will be encoded, if it is a file; `deepspeech` needs it.

    Raises:
        UserError: there is no encoder of that name, or a package or file that it needs is missing.
    """
    return importlib.import_module(encoder_module(choice.name)).load(choice, wav)
