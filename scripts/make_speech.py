"""Synthesize demo/speech.wav and demo/timings.json with espeak-ng.

    apt-get install espeak-ng
    python scripts/make_speech.py

The timings are exact because they come from the library's phoneme events. The results are part of
the repository, so users do not need espeak-ng.
"""

import json
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.media.audio import write_wav
from talker.media.espeak import PEAK, PITCH, WORDS_PER_MINUTE, synthesize

DEMO = Path(__file__).parents[1] / "demo"
VOICE = "en-us"
TEXT = (
    "Hello! I am a face made by a computer. "
    "Every vowel and every pause that you hear moves my mouth. "
    "Five blue boats wobble past the old pier, while happy people watch and laugh out loud. "
    "Watch my lips grow round, open wide, and close."
)
FRAMES = 16 * FPS
LEADING_SILENCE = 0.24
"""Silence before the first word, in seconds."""


def main() -> None:
    speech = synthesize(TEXT, VOICE, WORDS_PER_MINUTE, PITCH)
    samples, rate, starts = speech.samples, speech.rate, speech.phonemes
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


if __name__ == "__main__":
    main()
