"""The speech encoders by name. A new one is a module with a function that returns an `Encoder`, its
name in `talker.encoders.base.Name`, and its line in `ENCODERS`.
"""

from collections.abc import Callable
from pathlib import Path

from talker.encoders.base import Choice, Encoder, Name
from talker.errors import UserError


def load_encoder(choice: Choice, wav: Path | None = None) -> Encoder:
    """Load an encoder; `wav` is the sound that it is to describe, where that is a file.

    Raises:
        UserError: there is none of that name, or what it needs is missing.
    """
    if choice.name not in ENCODERS:
        raise UserError(f"speech encoder '{choice.name}': expected one of {', '.join(ENCODERS)}")
    return ENCODERS[choice.name](choice, wav)


def _hama(choice: Choice, wav: Path | None) -> Encoder:
    from talker.encoders.hama import load

    return load()


def _mel(choice: Choice, wav: Path | None) -> Encoder:
    from talker.encoders.mel import load

    return load()


def _deepspeech(choice: Choice, wav: Path | None) -> Encoder:
    from talker.encoders.deepspeech import load

    return load(wav)


def _transformer(choice: Choice, wav: Path | None) -> Encoder:
    from talker.encoders.transformer import load

    return load(choice.name, choice.model, choice.layer)


ENCODERS: dict[Name, Callable[[Choice, Path | None], Encoder]] = {
    "hama": _hama,
    "mel": _mel,
    "deepspeech": _deepspeech,
    "hubert": _transformer,
    "wav2vec2": _transformer,
    "whisper": _transformer,
}
