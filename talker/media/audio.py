"""Sound: 16-bit mono wav files in and out, and decoding whatever FFmpeg reads (through PyAV)."""

import wave
from pathlib import Path

import numpy as np

from talker.clip import SAMPLE_RATE
from talker.errors import UserError


def read_wav(path: Path) -> np.ndarray:
    """Read a wav written by `write_wav` as int16 [S] at 16 kHz.

    Raises:
        UserError: the file is missing, is no wav, or is not 16 kHz mono 16 bit.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found = file.getframerate(), file.getnchannels(), 8 * file.getsampwidth()
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(f"{path}: cannot be read as wav ({error})") from error
    if found != (SAMPLE_RATE, 1, 16):
        rate, channels, bits = found
        raise UserError(
            f"{path}: expected {SAMPLE_RATE} Hz, 1 channel, 16 bit; found {rate} Hz, {channels} "
            f"channel(s), {bits} bit; convert it with `talker audio --source {path} --wav OUT.wav`"
        )
    return np.frombuffer(content, np.dtype("<i2")).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write int16 [S] at 16 kHz as a mono wav."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2", casting="equiv").tobytes())
