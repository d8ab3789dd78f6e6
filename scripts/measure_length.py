"""Measure the peak memory of `audio`, `speech` and `render` for speech of different lengths.

    python scripts/measure_length.py data/me results/me/avatar 1 60

The numbers are lengths in minutes; the speech is the subject's own audio, repeated. With a small
avatar (for example the demo trained at 48 px), one hour of speech takes ten minutes on two cores.
This script imports nothing large, because Linux counts the memory of the parent at the start of a
child process as part of the child's peak.
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


def measure(*command: object) -> tuple[float, float, float]:
    """Run a `talker` command; return its peak memory in MB, CPU time and wall time in seconds."""
    started = time.perf_counter()
    words = [sys.executable, "-m", "talker", *map(str, command)]
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"talker {command[0]} failed with exit status {status}")
    taken = time.perf_counter() - started
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
    statistics = avatar / "speech.npz"
    if not statistics.exists():
        encoder = json.loads((avatar / "config.json").read_text(encoding="utf-8"))["encoder"]
        statistics = data / f"aud_{encoder}.npz"
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
                "speech": ("--wav", wav, "--statistics", statistics, "--features", features),
                "render": (
                    *("--data", data, "--avatar", avatar, "--video", video),
                    *("--speech", features, "--wav", wav, "--batch", 32),
                ),
            }
            for stage, flags in stages.items():
                peak, cpu, taken = measure(stage, *flags)
                print(f"{minutes:8g} {stage:8} {peak:8.0f} {cpu:8.1f} {taken:8.1f}", flush=True)
            frames = len(np.load(features, mmap_mode="r"))
            print(f"{minutes:8g} {frames / FPS:.2f} s of video, {video.stat().st_size} bytes")


if __name__ == "__main__":
    main()
