"""Measure that memory does not grow with the speech: peak of audio, speech and render.

    python scripts/measure_length.py data/me results/me/avatar 1 60

Speech of so many minutes is the subject's own sound, over and over. A small avatar (a demo trained
at 48 px, say) keeps an hour to ten minutes of two cores. Nothing large is imported here: Linux
counts what a parent holds when it starts a child as the child's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from talker.clip import FPS, SAMPLE_RATE
from talker.media.audio import WavFile, write_wav


def measured(*command: object) -> tuple[float, float, float]:
    """Peak memory (MB), CPU time and time of a `talker` command, seconds."""
    begun = time.perf_counter()
    words = [sys.executable, "-m", "talker", *map(str, command)]
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"talker {command[0]} failed")
    taken = time.perf_counter() - begun
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime, taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("avatar", type=Path)
    parser.add_argument("minutes", type=float, nargs="+")
    options = parser.parse_args()
    data, avatar = options.data, options.avatar
    learned = avatar / "speech.npz"
    if not learned.exists():
        encoder = json.loads((avatar / "config.json").read_text())["encoder"]
        learned = data / f"aud_{encoder}.npz"
    sound = WavFile(data / "aud.wav")[:]
    print(f"{'minutes':>8} {'stage':8} {'peak MB':>8} {'CPU s':>8} {'s':>8}")
    for minutes in options.minutes:
        repeats = -(-round(60 * minutes * SAMPLE_RATE) // len(sound))
        with tempfile.TemporaryDirectory() as folder:
            source, wav, features, video = (
                Path(folder, name) for name in ("source.wav", "a.wav", "a.npy", "a.mp4")
            )
            write_wav(source, (sound for _ in range(repeats)))
            stages = {
                "audio": ("--source", source, "--wav", wav),
                "speech": ("--wav", wav, "--statistics", learned, "--features", features),
                "render": (
                    *("--data", data, "--avatar", avatar, "--video", video),
                    *("--speech", features, "--wav", wav, "--batch", 32),
                ),
            }
            for stage, flags in stages.items():
                peak, cpu, taken = measured(stage, *flags)
                print(f"{minutes:8g} {stage:8} {peak:8.0f} {cpu:8.1f} {taken:8.1f}", flush=True)
            frames = len(np.load(features, mmap_mode="r"))
            print(f"{minutes:8g} {frames / FPS:.2f} s of video, {video.stat().st_size} bytes")


if __name__ == "__main__":
    main()
