"""Count how often the gate is wrong about the audio of real clips.

    python scripts/measure_gate.py data/*

Each dataset folder needs clip.json, aud.wav and landmarks.npz, and its audio must be in sync. It is
cut into parts of 5, 8, 12 and 20 s. Each part is judged with its own audio, with its own audio
reversed, and with the audio of the other folders. A part that is refused with its own audio is a
false refusal. A part that passes with another audio, without a warning, is a false pass.
"""

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from talker.clip import FPS, SAMPLES_PER_FRAME, Clip, load_per_frame
from talker.data import layout
from talker.encoders import Choice, load_encoder
from talker.encoders.features import extract_clip, windows
from talker.encoders.loudness import slot_levels
from talker.head.landmarks68 import landmarks68, mouth_opening
from talker.lipsync import sync_facts
from talker.measure.gate import Limits, assess
from talker.media.audio import read_wav

LENGTHS = 5, 8, 12, 20
"""Lengths of the parts in seconds."""
STEP = 3 * FPS
"""Frames between the starts of two parts."""


def judge(opening: np.ndarray, valid: np.ndarray, sound: np.ndarray) -> str:
    """Return what the gate decides about the audio of T frames: pass, warn or refuse."""
    frames = len(opening)
    choice = Choice()
    sound = sound[: frames * SAMPLES_PER_FRAME]
    statistics, slots = extract_clip(ENCODER, choice, sound, frames * 10 // 11)
    speech = np.concatenate(list(windows([slots], statistics.look_ahead)))
    quiet, loud = np.percentile(slot_levels(sound), [5, 95])
    facts: dict[str, Any] = {"rejected": {}, "blinks": 1, "level_range_db": float(loud - quiet)}
    verdict = assess(facts | sync_facts(speech, opening, valid), Limits())
    return "refuse" if verdict.failures else "warn" if verdict.warnings else "pass"


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mouth opening [T], valid [T] and audio of a folder."""
    frames = Clip.load(folder / layout.CLIP).frames
    arrays = load_per_frame(folder / layout.LANDMARKS, frames, "points")
    opening = mouth_opening(landmarks68(arrays["points"]))
    return opening, arrays["valid"], read_wav(folder / layout.SOUND)


def parts(frames: int, length: int) -> Iterator[slice]:
    """Yield the parts of a clip."""
    for start in range(0, frames - length + 1, STEP):
        yield slice(start, start + length)


def main() -> None:
    """Judge all parts and print a row for each length."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+")
    clips = [read(folder) for folder in parser.parse_args().data]
    print(
        "| seconds | clips with their own audio | refused | with a warning "
        "| clips with other audio | accepted | with a warning |"
    )
    print("|---|---|---|---|---|---|---|")
    for length in (seconds * FPS for seconds in LENGTHS):
        own, other = [], []
        for number, (opening, valid, sound) in enumerate(clips):
            strange = [clip[2] for i, clip in enumerate(clips) if i != number]
            for part in parts(len(opening), length):
                here = slice(part.start * SAMPLES_PER_FRAME, part.stop * SAMPLES_PER_FRAME)
                own.append(judge(opening[part], valid[part], sound[here]))
                sounds = chain([sound[here][::-1]], (s[: len(sound[here])] for s in strange))
                other += [
                    judge(opening[part], valid[part], s)
                    for s in sounds
                    if len(s) == len(sound[here])
                ]
        print(
            f"| {length // FPS} | {len(own)} | {own.count('refuse')} | {own.count('warn')} "
            f"| {len(other)} | {other.count('pass')} | {other.count('warn')} |",
            flush=True,
        )


if __name__ == "__main__":
    ENCODER = load_encoder(Choice())
    main()
