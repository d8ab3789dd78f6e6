"""Speech synthesis with espeak-ng, from the Debian package or the wheel `espeakng-loader`."""

import ctypes
import ctypes.util
import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from talker.clip import SAMPLE_RATE
from talker.errors import UserError
from talker.media.audio import write_wav

MISSING = (
    "speaking a text requires espeak-ng, which is not installed. Install it with `apt install "
    "espeak-ng` or `pip install espeakng-loader`, or give an audio file"
)
WORDS_PER_MINUTE, PITCH = 163, 35
"""Speed, and pitch from 0 to 100, of spoken texts."""
PEAK = 0.5
"""Largest amplitude of spoken texts, relative to full scale."""
SYNCHRONOUS, PHONEME_EVENTS, UTF8 = 2, 1, 1
END_OF_LIST, PHONEME = 0, 7
RATE_PARAMETER, PITCH_PARAMETER = 1, 3


class _Identifier(ctypes.Union):
    """The union `id` of espeak_EVENT."""

    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """The struct espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


@dataclass(frozen=True)
class Speech:
    """Synthesized speech."""

    samples: np.ndarray
    """int16 [S]"""
    rate: int
    """Sample rate in Hz."""
    phonemes: list[tuple[str, float]]
    """Phonemes with their start in seconds."""


def find_espeak() -> tuple[str, str | None]:
    """Return the shared library of espeak-ng, and its data folder if it is not the default.

    Raises:
        UserError: espeak-ng is not installed.
    """
    if library := ctypes.util.find_library("espeak-ng"):
        return library, None
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError:
        raise UserError(MISSING) from None
    return loader.get_library_path(), loader.get_data_path()


def synthesize(text: str, voice: str, words_per_minute: int, pitch: int) -> Speech:
    """Synthesize speech.

    Args:
        text: text to speak.
        voice: name of a voice of espeak-ng, such as en-us.
        words_per_minute: speed of the speech.
        pitch: pitch from 0 to 100.

    Raises:
        UserError: espeak-ng is not installed, does not know the voice, or speaks nothing.
    """
    path, data = find_espeak()
    library = ctypes.CDLL(path)
    rate = library.espeak_Initialize(
        SYNCHRONOUS, 0, data.encode() if data else None, PHONEME_EVENTS
    )
    if rate <= 0:
        raise UserError(f"espeak-ng ({path}) cannot be started; reinstall it")
    if library.espeak_SetVoiceByName(voice.encode()):
        raise UserError(f"espeak-ng has no voice '{voice}'; `espeak-ng --voices` lists the voices")
    samples: list[np.ndarray] = []
    phonemes: list[tuple[str, float]] = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
    )
    def receive(wav, count, events):
        if wav and count > 0:
            samples.append(np.ctypeslib.as_array(wav, (count,)).copy())
        for i in range(10_000):
            if events[i].type == END_OF_LIST:
                break
            if events[i].type == PHONEME:
                phonemes.append((events[i].id.string.decode(), events[i].sample / rate))
        return 0

    library.espeak_SetSynthCallback(receive)
    library.espeak_SetParameter(RATE_PARAMETER, words_per_minute, 0)
    library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, UTF8, None, None)
    if not samples:
        raise UserError(f"espeak-ng produced no audio for the text '{text}'; give another text")
    return Speech(np.concatenate(samples), rate, phonemes)


def speech_samples(text: str, voice: str) -> np.ndarray:
    """Return a spoken text as int16 [S] at 16 kHz.

    Raises:
        UserError: as `synthesize`.
    """
    speech = synthesize(text, voice, WORDS_PER_MINUTE, PITCH)
    sound = resample_poly(speech.samples / 32768, SAMPLE_RATE, speech.rate)
    sound *= PEAK / max(np.abs(sound).max(), 1e-6)
    return np.round(32767 * sound).astype(np.int16)


def write_speech(text: str, voice: str, file: Path) -> None:
    """Speak a text into a wav file at 16 kHz.

    Raises:
        UserError: as `synthesize`.
    """
    write_wav(file, speech_samples(text, voice))
