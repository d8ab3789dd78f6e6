"""Synthesize demo/speech.wav and demo/timings.json with espeak-ng.

    apt-get install espeak-ng
    python scripts/make_speech.py

The timings are exact because they come from the library's phoneme events. The results are part of
the repository, so users do not need espeak-ng.
"""

import ctypes
import ctypes.util
import json
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.media.audio import write_wav

DEMO = Path(__file__).parents[1] / "demo"
VOICE = "en-us"
TEXT = (
    "Hello! I am a face made by a computer. "
    "Every vowel and every pause that you hear moves my mouth. "
    "Five blue boats wobble past the old pier, while happy people watch and laugh out loud. "
    "Watch my lips grow round, open wide, and close."
)
WORDS_PER_MINUTE, PITCH = 163, 35
FRAMES = 16 * FPS
LEADING_SILENCE = 0.24
"""Silence before the first word, in seconds."""
PEAK = 0.5
"""Largest amplitude, relative to full scale."""
SYNCHRONOUS, PHONEME_EVENTS, UTF8 = 2, 1, 1
END_OF_LIST, PHONEME = 0, 7
RATE, PITCH_PARAMETER = 1, 3


class Identifier(ctypes.Union):
    """The union `id` of espeak_EVENT."""

    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class Event(ctypes.Structure):
    """The struct espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", Identifier),
    ]


def main() -> None:
    samples, rate, starts = speak(TEXT)
    sound = resample_poly(samples / 32768, SAMPLE_RATE, rate)
    track = np.zeros(FRAMES * SAMPLES_PER_FRAME)
    lead = round(LEADING_SILENCE * SAMPLE_RATE)
    if lead + len(sound) > len(track):
        limit = FRAMES / FPS - LEADING_SILENCE
        raise SystemExit(
            f"The speech lasts {len(sound) / SAMPLE_RATE:.2f} s (limit: {limit:.2f} s)."
        )
    track[lead : lead + len(sound)] = sound * (PEAK / np.abs(sound).max())
    write_wav(DEMO / "speech.wav", np.round(track * 32767).astype(np.int16))
    ends = [start for _, start in starts[1:]] + [len(samples) / rate]
    phonemes = [
        {
            "phoneme": name,
            "start": round(LEADING_SILENCE + start, 4),
            "end": round(LEADING_SILENCE + end, 4),
        }
        for (name, start), end in zip(starts, ends, strict=True)
        if end > start
    ]
    rows = ",\n    ".join(json.dumps(row) for row in phonemes)
    (DEMO / "timings.json").write_text(
        f'{{\n  "text": {json.dumps(TEXT)},\n  "voice": "espeak-ng {VOICE}",\n'
        f'  "phonemes": [\n    {rows}\n  ]\n}}\n',
        encoding="utf-8",
    )


def speak(text: str) -> tuple[np.ndarray, int, list[tuple[str, float]]]:
    """Return samples int16 [S], the sample rate in Hz, and phonemes with their start in seconds."""
    library = ctypes.CDLL(ctypes.util.find_library("espeak-ng"))
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS)
    samples: list[np.ndarray] = []
    phonemes: list[tuple[str, float]] = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
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
    library.espeak_SetVoiceByName(VOICE.encode())
    library.espeak_SetParameter(RATE, WORDS_PER_MINUTE, 0)
    library.espeak_SetParameter(PITCH_PARAMETER, PITCH, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None)
    return np.concatenate(samples), rate, phonemes


if __name__ == "__main__":
    main()
