"""Measure the peak memory and the time of each stage of the preparation for clips of some lengths.

    python scripts/measure_preparation.py 1500 3000

The numbers are lengths in frames. The clips show the demo's person at 192 x 192 pixels: the first
10 s, played forward and backward, with the demo's speech repeated. Linux counts the memory of the
parent at the start of a child process as part of the child's peak, so this script only imports what
it needs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from measure_length import measure

WRITE_CLIP = """
import sys
from pathlib import Path
import numpy as np
from talker.clip import FPS, SAMPLES_PER_FRAME
from talker.media.audio import read_wav, write_wav
from talker.media.video_writer import video_writer
from talker.synthetic.acting import read_timings
from talker.synthetic.subject import SyntheticSubject

demo, folder, *lengths = sys.argv[1:]
subject = SyntheticSubject.create(read_timings(Path(demo, "timings.json")), 10 * FPS, 192)
images = [image for image, _ in subject.render()]
images += images[::-1]
speech = read_wav(Path(demo, "speech.wav"))
for frames in map(int, lengths):
    sound = Path(folder, "sound.wav")
    write_wav(sound, np.resize(speech, frames * SAMPLES_PER_FRAME))
    with video_writer(Path(folder, f"{frames}.mp4"), sound) as write:
        for i in range(frames):
            write(images[i % len(images)])
"""


def stages(video: Path, me: Path) -> dict[str, tuple[object, ...]]:
    """Return the arguments of each stage."""
    clip, images = ("--clip", me / "clip.json"), ("--images", me / "ori_imgs")
    masks, plate = ("--masks", me / "parsing"), ("--plate", me / "bc.jpg")
    landmarks = "--landmarks", me / "landmarks.npz"
    shots, fit = ("--shots", me / "shots.npz"), ("--fit", me / "fit.npz")
    parts = "--train", me / "aud_train.wav", "--novel", me / "aud_novel.wav"
    poses = "--train", me / "transforms_train.json", "--val", me / "transforms_val.json"
    tracked = "--params", me / "track_params.pt", "--report", me / "track_report.json"
    layers = "--truth", me / "gt_imgs", "--torso", me / "torso_imgs"
    features = "--statistics", me / "aud_hama.npz", "--features", me / "aud_hama.npy"
    return {
        "frames": ("--video", video, *clip, *images),
        "audio": ("--source", video, *clip, "--wav", me / "aud.wav", *parts),
        "landmarks": (*clip, *images, *landmarks),
        "parsing": (*clip, *images, *landmarks, *masks),
        "blink": (*clip, *landmarks, "--au", me / "au.csv"),
        "shots": (*clip, *images, *landmarks, *shots),
        "fit": (*clip, *landmarks, *shots, *fit),
        "track": (*clip, *images, *landmarks, *fit, *tracked, *poses),
        "overlay": (
            *(*clip, *images, *landmarks, *tracked[:2]),
            *("--video", me / "track_overlay.mp4"),
        ),
        "background": (*clip, *images, *masks, *plate),
        "layers": (*clip, *images, *masks, *plate, *layers),
        "speech": (*clip, "--wav", me / "aud.wav", *features),
        "verify": ("--data", me, "--verified", me / "verified.json"),
        "lipsync": ("--data", me, "--lipsync", me / "lipsync.json"),
        "check": ("--data", me, "--quality", me / "quality.json", "--force"),
    }


def main() -> None:
    """Run the stages and print a row for each stage and length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("frames", nargs="+", help="Lengths of the clips in frames.")
    lengths = parser.parse_args().frames
    demo = Path(__file__).parents[1] / "demo"
    with tempfile.TemporaryDirectory(prefix="preparation-") as name:
        subprocess.run([sys.executable, "-c", WRITE_CLIP, demo, name, *lengths], check=True)
        print(f"{'frames':>8} {'stage':10} {'peak MB':>8} {'CPU s':>8} {'s':>8}", flush=True)
        for frames in lengths:
            me = Path(name, f"me{frames}")
            me.mkdir()
            for stage, flags in stages(Path(name, f"{frames}.mp4"), me).items():
                peak, cpu, taken = measure(stage, *flags)
                print(f"{frames:>8} {stage:10} {peak:8.0f} {cpu:8.1f} {taken:8.1f}", flush=True)


if __name__ == "__main__":
    main()
